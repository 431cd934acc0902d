"""Images of all sorts are read as they are shown or refused in a sentence; data sets round-trip."""

import io
import json
import os
import struct
import warnings
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from bloodcount.data import (
    COLUMNS,
    DataSet,
    Smear,
    content_sha256,
    image_path,
    names,
    polygon_mask,
    read_mask,
    read_polygons,
    read_smear,
    real_data,
    write_dataset,
    write_mask,
)
from bloodcount.errors import InputError
from bloodcount.images import MAX_PIXELS, read_image, to_uint8
from bloodcount.settings import load_settings
from bloodcount.synthetic import synthetic_smear

GREY = "ignore:.*a grey image"


@pytest.fixture(scope="module")
def picture():
    "A smear without a symmetry, (96, 160, 3), all of 0..255 in it."
    smear = synthetic_smear(seed=2, shape=(128, 160), rbc=4, wbc=0, plt=1)
    picture = smear.image[:96].copy()
    picture[:16, :16] = np.arange(256).reshape(16, 16, 1)
    return picture


def grey_of(picture):
    return np.asarray(Image.fromarray(picture).convert("L"))


def apart(one, other):
    "Largest difference of two pictures, in grey levels."
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    return int(np.abs(one.astype(int) - other).max())


def png(pixels, kind, depth):
    "A PNG of any bit depth, written from first principles; `kind` is the colour type."
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if depth == 16 else "u1").reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def refused(tmp_path):
    "What `read_image` says of a file that it refuses."

    def refused(path, body=None):
        path = tmp_path / path
        if body is not None:
            path.write_bytes(body)
        with pytest.raises(InputError) as error:
            read_image(path)
        says = str(error.value)
        assert says.startswith(f"{path}: ") and says.endswith(".") and "\n" not in says
        return says.removeprefix(f"{path}: ")

    return refused


# Orientation 1 to 8: what turns the stored pixels into the shown ones.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.swapaxes(stored[::-1, ::-1], 0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_turned_camera(tmp_path, picture, orientation):
    tag = Image.Exif()
    tag[0x0112] = orientation
    for name in ("smear.png", "smear.jpg"):
        Image.fromarray(picture).save(tmp_path / name, exif=tag)
        plain = np.asarray(Image.open(tmp_path / name))
        assert np.array_equal(read_image(tmp_path / name), UPRIGHT[orientation](plain))
    tifffile.imwrite(tmp_path / "smear.tif", picture, extratags=[(274, "H", 1, orientation, True)])
    Image.fromarray(picture).save(tmp_path / "lzw.tif", compression="tiff_lzw", exif=tag)
    for name in ("smear.tif", "lzw.tif"):
        assert np.array_equal(read_image(tmp_path / name), UPRIGHT[orientation](picture))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_jpeg_that_was_cut_short(refused, picture, share, options):
    buffer = io.BytesIO()
    Image.fromarray(np.tile(picture, (8, 8, 1))).save(buffer, "JPEG", quality=95, **options)
    body = buffer.getvalue()
    assert "truncated" in refused("smear.jpg", body[: int(share * len(body))])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["smear.png", "smear.tif", "smear.bmp", "smear.gif"])
def test_other_images_that_were_cut_short(refused, tmp_path, picture, name, share):
    if name == "smear.tif":
        tifffile.imwrite(tmp_path / name, picture, compression="zlib", rowsperstrip=16)
    else:
        Image.fromarray(picture).save(tmp_path / name)
    body = (tmp_path / name).read_bytes()
    assert read_image(tmp_path / name).shape == picture.shape
    says = refused(name, body[: int(share * len(body))])
    assert "truncated" in says or "not an image that can be read" in says


def test_no_image_at_all(refused, tmp_path):
    for name in ("smear.jpg", "smear.png", "smear.tif", "smear"):
        for body in (b"", b"II", b"These are no pixels.\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
            says = refused(name, body)
            assert "pass a JPEG, PNG or TIFF" in says or "truncated" in says
    assert refused("none.jpg") == "no such file."
    assert refused("smear.jpg/inner.jpg") == "no such file."
    assert refused("n" * 300) == "no such file."
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", "."):
        with pytest.raises(InputError, match="not a file"):
            read_image(tmp_path / name)


def test_a_file_that_may_not_be_read(refused, tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "smear.png")
    (tmp_path / "smear.png").chmod(0)
    if os.access(tmp_path / "smear.png", os.R_OK):
        pytest.skip("this user may read everything")
    assert "Permission denied" in refused("smear.png")


def damaged(body, seed):
    "Copies of a file with one bit flipped, at places spread over it, its first 200 bytes all."
    rng = np.random.default_rng(seed)
    places = [*range(min(200, len(body))), *rng.integers(200, len(body), 300)]
    for place in places:
        flipped = bytearray(body)
        flipped[place] ^= 1 << rng.integers(8)
        yield bytes(flipped)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["smear.png", "smear.tif", "smear.jpg", "smear.gif", "smear.bmp"])
def test_a_damaged_file_is_an_image_or_a_sentence(tmp_path, picture, name, caplog):
    caplog.set_level("CRITICAL")
    path = tmp_path / name
    tag = Image.Exif()
    tag[0x0112] = 6
    if name == "smear.tif":
        tifffile.imwrite(path, picture, compression="zlib", rowsperstrip=16)
    else:
        Image.fromarray(picture).save(
            path, **({"exif": tag} if name[-3:] in ("png", "jpg") else {})
        )
    right, wrong = read_image(path), 0
    for body in damaged(path.read_bytes(), seed=1):
        path.write_bytes(body)
        try:
            found = read_image(path)
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
            wrong += not np.array_equal(found, right)
        except InputError as error:
            assert "\n" not in str(error)
    if name == "smear.png":
        assert wrong == 0, "a PNG has checksums"


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_pixels_are_those_of_8_bits(tmp_path, picture, suffix, bits):
    deep = np.rint(picture / 255.0 * (2**bits - 1)).astype(np.uint16)
    alpha = np.full((*deep.shape[:2], 1), 65535, np.uint16)
    for kind, pixels in (
        (0, deep[..., 0]),
        (2, deep),
        (4, np.dstack([deep[..., :1], alpha])),
        (6, np.dstack([deep, alpha])),
    ):
        path = tmp_path / f"{kind}.{suffix}"
        if suffix == "png":
            path.write_bytes(png(pixels, kind, 16))
        else:
            rgb = "rgb" if kind in (2, 6) else "minisblack"
            extra = {"extrasamples": ["unassalpha"]} if kind > 2 else {}
            tifffile.imwrite(path, pixels, photometric=rgb, planarconfig="contig", **extra)
        same = picture if kind in (2, 6) else np.repeat(picture[..., :1], 3, axis=2)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*a grey image")
            assert apart(read_image(path), same) <= 1, kind


def test_a_deep_png_is_turned_and_refused_like_any(refused, tmp_path, picture):
    deep = picture.astype(np.uint16) * 257
    body = png(deep, 2, 16)
    exif = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    chunk = (
        struct.pack(">I", len(exif))
        + b"eXIf"
        + exif
        + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    )
    (tmp_path / "turned.png").write_bytes(body[:33] + chunk + body[33:])
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(picture, -1))
    for share in (0.3, 0.6, 0.99):
        assert "truncated" in refused("cut.png", body[: int(share * len(body))])
    flipped = bytearray(body)
    flipped[len(body) // 2] ^= 1
    assert "damaged" in refused("flipped.png", bytes(flipped))


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1, np.float32), (1, np.float64), (1, np.float16), (255, np.float32), (65535, np.float32)],
)
def test_float_tiff(tmp_path, picture, scale, dtype):
    pixels = (picture / 255.0 * scale).astype(dtype)
    tifffile.imwrite(tmp_path / "smear.tif", pixels, photometric="rgb")
    assert apart(read_image(tmp_path / "smear.tif"), picture) <= 1


def test_float_of_0_to_1_may_overshoot(refused, tmp_path):
    ramp = np.linspace(0, 1.02, 64, dtype=np.float32)
    assert to_uint8(ramp)[-4:].tolist() == [248, 252, 255, 255]
    for bad in (np.nan, np.inf, -np.inf):
        tifffile.imwrite(
            tmp_path / "smear.tif", np.append(ramp, bad).reshape(5, 13).astype(np.float32)
        )
        assert "not finite" in refused("smear.tif")


@pytest.mark.filterwarnings("error")
def test_alpha_and_palettes(tmp_path, picture):
    alpha = np.linspace(0, 255, 160).astype(np.uint8) * np.ones((96, 1), np.uint8)
    share = alpha[..., None] / 255
    on_white = np.rint(picture * share + 255 * (1 - share)).astype(np.uint8)
    rgba = np.dstack([picture, alpha])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read_image(tmp_path / "rgba.png"), on_white)
    assert np.array_equal(read_image(tmp_path / "rgba.tif"), on_white)

    palette = Image.fromarray(picture).quantize(64, dither=Image.Dither.NONE)
    shown = np.asarray(palette.convert("RGB"))
    for name in ("palette.png", "palette.gif", "palette.bmp", "palette.tif"):
        palette.save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), shown), name
    clear = int(np.asarray(palette)[50, 50])
    palette.save(tmp_path / "clear.png", transparency=clear)
    expected = np.where(np.asarray(palette)[..., None] == clear, 255, shown)
    assert np.array_equal(read_image(tmp_path / "clear.png"), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_warns_that_colour_is_needed(tmp_path, picture, suffix):
    grey = grey_of(picture)
    three = np.repeat(grey[..., None], 3, axis=2)
    opaque = np.dstack([grey, np.full_like(grey, 255)])
    for mode, pixels, shown in (("L", grey, three), ("LA", opaque, three)):
        Image.fromarray(pixels, mode).save(tmp_path / f"{mode}.{suffix}")
        with pytest.warns(UserWarning, match=f"{mode}.{suffix}: a grey image.*need colour"):
            assert np.array_equal(read_image(tmp_path / f"{mode}.{suffix}"), shown)
    Image.fromarray(grey > 127).save(tmp_path / f"bits.{suffix}")
    with pytest.warns(UserWarning, match="a grey image"):
        assert np.array_equal(
            read_image(tmp_path / f"bits.{suffix}"), (three > 127) * np.uint8(255)
        )


def test_a_jpeg_for_the_printer(tmp_path, picture):
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "smear.jpg", quality=95)
    assert Image.open(tmp_path / "smear.jpg").mode == "CMYK"
    found = read_image(tmp_path / "smear.jpg")
    assert np.abs(found.astype(int) - picture).mean() < 2
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "smear.tif")
    assert np.array_equal(read_image(tmp_path / "smear.tif"), picture)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planarconfig": "separate"},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"tile": (32, 32)},
        {"compression": "zlib", "predictor": True},
    ],
)
def test_tiff_of_any_layout(tmp_path, picture, options):
    pixels = picture.transpose(2, 0, 1) if "planarconfig" in options else picture
    tifffile.imwrite(tmp_path / "smear.tif", pixels, photometric="rgb", **options)
    assert np.array_equal(read_image(tmp_path / "smear.tif"), picture)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_tiff_of_any_compression(tmp_path, picture, compression):
    options = {"quality": 95} if compression == "jpeg" else {}
    Image.fromarray(picture).save(tmp_path / "smear.tif", compression=compression, **options)
    found = read_image(tmp_path / "smear.tif")
    assert found.shape == picture.shape
    assert np.abs(found.astype(int) - picture).mean() < (3 if compression == "jpeg" else 1e-9)


@pytest.mark.filterwarnings(GREY)
@pytest.mark.parametrize("bits", [12, 16])
def test_deep_tiff_with_lzw(refused, tmp_path, picture, bits):
    deep = np.rint(picture / 255.0 * (2**bits - 1)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "colour.tif"), deep[..., ::-1])
    cv2.imwrite(str(tmp_path / "grey.tif"), deep[..., 0])
    assert all(Image.open(tmp_path / f"{n}.tif").tag_v2[259] == 5 for n in ("colour", "grey"))
    assert apart(read_image(tmp_path / "colour.tif"), picture) <= 1
    assert apart(read_image(tmp_path / "grey.tif")[..., 0], picture[..., 0]) <= 1
    body = (tmp_path / "colour.tif").read_bytes()
    says = refused("cut.tif", body[: len(body) // 2])
    assert "truncated" in says or "not an image" in says


@pytest.mark.filterwarnings(GREY)
def test_tiff_of_12_packed_bits(tmp_path, picture):
    one, two = np.rint(grey_of(picture) / 255.0 * 4095).astype(int).reshape(-1, 2).T
    body = np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], axis=1).astype(np.uint8)
    height, width = picture.shape[:2]
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags[279] = body.size
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    start = b"II*\0" + struct.pack("<I", 8 + body.size)
    (tmp_path / "packed.tif").write_bytes(start + body.tobytes() + directory)
    assert apart(read_image(tmp_path / "packed.tif")[..., 0], grey_of(picture)) <= 1


@pytest.mark.filterwarnings(GREY)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_white_may_be_zero(tmp_path, picture, dtype):
    grey = grey_of(picture)
    pixels = grey > 127 if dtype is bool else grey.astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    options = {"compression": "zlib"} if dtype is bool else {}
    tifffile.imwrite(tmp_path / "white.tif", ~pixels, photometric="miniswhite", **options)
    assert np.array_equal(read_image(tmp_path / "white.tif")[..., 0], to_uint8(pixels))


def test_more_than_one_picture_is_refused(refused, tmp_path, picture):
    stack = np.stack([picture] * 3)
    tifffile.imwrite(tmp_path / "pages.tif", stack, photometric="rgb")
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="rgb", imagej=True)
    tifffile.imwrite(tmp_path / "joined.tif", stack, photometric="rgb", metadata={"axes": "ZYXS"})
    one_directory = {"photometric": "rgb", "truncate": True}
    tifffile.imwrite(tmp_path / "hidden.tif", stack, **one_directory)
    for name in ("pages.tif", "stack.tif", "joined.tif", "hidden.tif"):
        assert "3 pages" in refused(name)
    frames = [Image.fromarray(np.roll(picture, 9 * i, axis=1)) for i in range(2)]
    for name in ("frames.gif", "frames.png", "frames.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert "2 frames" in refused(name)
    frames[0].save(tmp_path / "one.gif")
    assert np.array_equal(
        read_image(tmp_path / "one.gif"), Image.open(tmp_path / "one.gif").convert("RGB")
    )


def test_a_planes_first_tiff_is_refused(refused, tmp_path, picture):
    planes = np.stack([picture[..., 0]] * 5)
    tifffile.imwrite(
        tmp_path / "planes.tif", planes, photometric="minisblack", planarconfig="separate"
    )
    assert "pass a single plane" in refused("planes.tif")
    cube = np.stack([picture[..., 0]] * 16)
    tifffile.imwrite(
        tmp_path / "cube.tif", cube, volumetric=True, tile=(16, 16, 16), photometric="minisblack"
    )
    assert "pass a single plane" in refused("cube.tif")


def test_a_telephones_second_picture_is_not_looked_at(tmp_path, picture):
    "Telephones put a gain map or a preview behind the JPEG that is shown."
    shown, behind = Image.fromarray(picture), Image.fromarray(picture[::4, ::4])
    shown.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[behind], quality=95)
    assert Image.open(tmp_path / "phone.jpg").n_frames == 2
    found = read_image(tmp_path / "phone.jpg")
    assert found.shape == picture.shape and np.abs(found.astype(int) - picture).mean() < 3


def test_too_large_is_refused_before_it_is_decoded(refused, tmp_path):
    side = 14_200
    header = png(np.zeros((1, 1), np.uint8), 0, 8)
    size = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(b"IHDR" + size))
    assert "202 megapixels" in refused("large.png", header[:16] + size + check + header[33:])
    tifffile.memmap(tmp_path / "large.tif", shape=(side, side), dtype=np.uint8)
    assert "202 megapixels; the limit is 200" in refused("large.tif")
    assert MAX_PIXELS == 200_000_000


@pytest.mark.filterwarnings(GREY)
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "bmp", "gif"])
def test_small_pictures(tmp_path, shape, suffix):
    pixels = np.full((*shape, 3), 200, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"small.{suffix}")
    assert np.array_equal(read_image(tmp_path / f"small.{suffix}"), pixels)


def test_no_pixels(refused, tmp_path):
    empty = png(np.zeros((1, 1), np.uint8), 0, 8)
    size = struct.pack(">IIBBBBB", 0, 5, 8, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(b"IHDR" + size))
    refused("empty.png", empty[:16] + size + check + empty[33:])


def test_names_do_not_decide(tmp_path, picture):
    "Capital letters, spaces, letters of all languages, and a suffix that lies."
    for name in ("SMEAR.PNG", "a smear.Png", "кровь 血.png", "=1+1.png", "smear.tif", "smear"):
        Image.fromarray(picture).save(tmp_path / name, "PNG")
        assert np.array_equal(read_image(tmp_path / name), picture), name
    for name in ("SMEAR.TIF", "smear.TiFf", "smear.jpg"):
        tifffile.imwrite(tmp_path / name, picture.astype(np.uint16) * 257, photometric="rgb")
        assert np.array_equal(read_image(str(tmp_path / name)), picture), name
    Image.fromarray(picture).save(tmp_path / "SMEAR.JPG", "JPEG", quality=95)
    assert np.abs(read_image(tmp_path / "SMEAR.JPG").astype(int) - picture).mean() < 3


def test_masks(tmp_path):
    mask = np.random.default_rng(0).random((33, 70)) < 0.4
    write_mask(tmp_path / "mask.png", mask)
    assert Image.open(tmp_path / "mask.png").mode == "1"
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)
    (tmp_path / "text.png").write_text("no mask")
    (tmp_path / "cut.png").write_bytes((tmp_path / "mask.png").read_bytes()[:-60])
    for name, says in (
        ("none.png", "no such mask"),
        ("text.png", "not a mask"),
        ("cut.png", "not a mask"),
    ):
        with pytest.raises(InputError, match=f"{name}: {says}"):
            read_mask(tmp_path / name)


def test_outlines_that_are_none(tmp_path):
    for text in (
        "",
        "[]",
        "{}",
        '{"polygons": 3}',
        '{"polygons": [[1, 2, 3]]}',
        '{"polygons": [["a", "b"]]}',
    ):
        (tmp_path / "outlines.json").write_text(text)
        with pytest.raises(InputError, match="not a file of outlines"):
            read_polygons(tmp_path / "outlines.json")
    with pytest.raises(InputError, match="no such outlines"):
        read_polygons(tmp_path / "none.json")


@pytest.fixture(scope="module")
def smears():
    size = {"shape": (128, 192), "rbc": 6, "plt": 3}
    one = synthetic_smear(seed=1, wbc=1, patient=True, **size)
    two = synthetic_smear(seed=2, wbc=0, overlap=0.5, **size)
    bare = Smear("Syn003_0", two.image[:90], counts={"wbc": 0}, splits={"rbc": "test"})
    one.splits.update(rbc="train", wbc="test")
    two.splits.update(rbc="test")
    return [one, two, bare]


def test_a_data_set_is_read_as_it_was_written(tmp_path, smears):
    data = write_dataset(tmp_path / "all", smears)
    assert list(data.index.columns) == COLUMNS[1:]
    assert data.title == "synthetic sample (3 smears)"
    for smear in smears:
        back = read_smear(data, smear.name)
        assert (back.name, back.counts, back.splits) == (smear.name, smear.counts, smear.splits)
        assert np.array_equal(back.image, smear.image)
        for found, drawn in ((back.masks, smear.masks), (back.edges, smear.edges)):
            assert found.keys() == drawn.keys()
            assert all(np.array_equal(found[cell], drawn[cell]) for cell in drawn)
        assert back.polygons.keys() == smear.polygons.keys()
        for cell, drawn in smear.polygons.items():
            assert len(back.polygons[cell]) == len(drawn)
            assert all(np.allclose(a, b, atol=0.0051) for a, b in zip(back.polygons[cell], drawn))
    assert set(read_smear(data, "Syn001_1", ["wbc"]).masks) == {"wbc"}
    assert list(data.index["all_patient"]) == [1, 0, 0]
    with pytest.raises(InputError, match="already"):
        write_dataset(tmp_path / "all", smears)
    assert [p.name for p in tmp_path.iterdir()] == ["all"]


def test_a_data_set_that_cannot_be_written_leaves_nothing(tmp_path, smears):
    def broken():
        yield smears[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "all", broken())
    assert list(tmp_path.iterdir()) == []
    assert len(write_dataset(tmp_path / "none", []).index) == 0


def test_names_by_what_they_have(tmp_path, smears):
    data = write_dataset(tmp_path / "all", smears)
    assert names(data, "rbc") == ["Syn001_1", "Syn002_0", "Syn003_0"]
    assert names(data, "rbc", having=["mask", "edge", "polygons"]) == ["Syn001_1", "Syn002_0"]
    assert names(data, "wbc", having=["count"]) == [s.name for s in smears if "wbc" in s.counts]
    assert names(data, "wbc", having=["edge"]) == []
    for split in ("train", "test"):
        assert names(data, "rbc", split) == [s.name for s in smears if s.splits.get("rbc") == split]


def rewrite_masks(root):
    for path in (root / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            mask.copy().save(path, compress_level=1)


def rewrite_outlines(root):
    for path in (root / "polygons").rglob("*.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(values.items())), indent=2))


def rewrite_index(root):
    text = (root / "index.csv").read_bytes()
    (root / "index.csv").write_bytes(text.replace(b"\n", b"\r\n"))


def leave_traces(root):
    (root / "README.md").write_text("Where the data are from.")
    (root / "images" / ".DS_Store").write_bytes(b"\0")
    (root / "images" / "Thumbs.db").write_bytes(b"\0")
    (root / "masks" / "a.folder").mkdir()


SAME = [rewrite_masks, rewrite_outlines, rewrite_index, leave_traces]


@pytest.mark.parametrize("change", SAME)
def test_equal_data_have_one_fingerprint(tmp_path, smears, change):
    one = write_dataset(tmp_path / "one", smears).fingerprint
    root = write_dataset(tmp_path / "two", smears).root
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    change(root)
    assert before != {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert DataSet(root).fingerprint == one and len(one) == 12


def flip_a_mask(root):
    path = root / "masks" / "rbc" / "Syn001_1.png"
    mask = read_mask(path)
    mask[64, 96] ^= True
    write_mask(path, mask)


def change_a_count(root):
    index = pd.read_csv(root / "index.csv", dtype={"rbc_count": "Int64"})
    index.loc[0, "rbc_count"] += 1
    index.to_csv(root / "index.csv", index=False)


def change_a_pixel(root):
    pixels = np.array(Image.open(root / "images" / "Syn001_1.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(root / "images" / "Syn001_1.png")


def move_an_outline(root):
    path = root / "polygons" / "rbc" / "Syn002_0.json"
    values = json.loads(path.read_text())
    values["polygons"][0][0][0] += 0.01
    path.write_text(json.dumps(values))


def lose_an_edge(root):
    (root / "edges" / "rbc" / "Syn002_0.png").unlink()


def swap_two_masks(root):
    one, two = (root / "masks" / "rbc" / f"{n}.png" for n in ("Syn001_1", "Syn002_0"))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


OTHER = [flip_a_mask, change_a_count, change_a_pixel, move_an_outline, lose_an_edge, swap_two_masks]


@pytest.mark.parametrize("change", OTHER)
def test_other_data_have_another_fingerprint(tmp_path, smears, change):
    data = write_dataset(tmp_path / "all", smears)
    before = data.fingerprint
    change(data.root)
    assert DataSet(data.root).fingerprint != before


def test_an_index_that_is_wrong(tmp_path, smears):
    data = write_dataset(tmp_path / "all", smears)
    path = data.root / "index.csv"
    right = path.read_text()

    def says(text):
        path.write_text(text)
        with pytest.raises(InputError) as error:
            DataSet(data.root).index  # noqa: B018
        return str(error.value)

    for column in COLUMNS:
        short = right.replace(f"{column},", f"{column[:-1]},", 1)
        short = short.replace(f",{column}\n", f",{column[:-1]}\n", 1) if short == right else short
        assert f"lacks the column {column!r}. Did you mean {column[:-1]!r}?" in says(short)
    rows = right.splitlines()
    assert "Syn002_0" in says("\n".join([*rows, rows[2]]))
    for text in ("", 'image,"width\n1', "\n".join([*rows, rows[2] + ",1,2,3"])):
        assert "not a table of images" in says(text)
    path.unlink()
    for lost in (lambda: DataSet(data.root).index, lambda: DataSet(data.root).fingerprint):
        with pytest.raises(InputError, match="index.csv is missing"):
            lost()


def test_images_may_be_named_by_number(tmp_path, smears):
    named = [Smear(name, smears[0].image) for name in ("001", "1e3")]
    data = write_dataset(tmp_path / "all", named)
    assert list(data.index.index) == ["001", "1e3"]
    assert read_smear(data, "001").name == "001"


def test_a_data_set_with_something_missing(tmp_path, smears):
    data = write_dataset(tmp_path / "all", smears)
    with pytest.raises(InputError, match="no image Syn001_0. Did you mean 'Syn00[13]_.'"):
        read_smear(data, "Syn001_0")
    write_mask(data.root / "masks" / "rbc" / "Syn001_1.png", np.ones((8, 8), bool))
    with pytest.raises(InputError, match="Syn001_1.png.*8 x 8.*128 x 192"):
        read_smear(data, "Syn001_1")
    (data.root / "masks" / "rbc" / "Syn001_1.png").unlink()
    with pytest.raises(InputError, match="Syn001_1.png: no such mask"):
        read_smear(data, "Syn001_1")
    (data.root / "images" / "Syn001_1.png").unlink()
    with pytest.raises(InputError, match="no image Syn001_1"):
        image_path(data, "Syn001_1")


def test_content_of_what_is_damaged_matches_nothing(tmp_path):
    for name, body in (
        ("cut.png", b"\x89PNG\r\n\x1a\n"),
        ("text.json", b"{"),
        ("latin.csv", b"\xe4"),
    ):
        (tmp_path / name).write_bytes(body)
        (tmp_path / "same.bin").write_bytes(body)
        assert content_sha256(tmp_path / name) == content_sha256(tmp_path / "same.bin")


def test_where_the_real_data_are(tmp_path, smears, monkeypatch):
    shown = dict(data=tmp_path / "data", authors=tmp_path / "authors")
    text = "\n".join(f"{key} = {folder}" for key, folder in shown.items())
    source = (load_settings().paths.data.parents[1] / "settings.ini").read_text()
    source = source.replace("data = data/all-idb1\nauthors = data/authors", text)
    (tmp_path / "settings.ini").write_text(source)
    settings = load_settings("paper", path=tmp_path / "settings.ini")
    monkeypatch.delenv("BLOODCOUNT_DATA", raising=False)
    with pytest.raises(InputError, match="bloodcount data authors"):
        real_data(settings)
    for name in ("authors", "data", "named"):
        write_dataset(tmp_path / name, smears[:1])
        if name == "named":
            monkeypatch.setenv("BLOODCOUNT_DATA", str(tmp_path / name))
        assert real_data(settings).root == tmp_path / name
    monkeypatch.setenv("BLOODCOUNT_DATA", str(tmp_path / "none"))
    with pytest.raises(InputError, match="BLOODCOUNT_DATA=.*none"):
        real_data(settings)


def test_the_outlines_of_all_idb1_are_its_counts(data_folder):
    data = DataSet(data_folder)
    chosen = names(data, "rbc", having=["polygons"])
    found = [len(read_polygons(data.root / "polygons" / "rbc" / f"{name}.json")) for name in chosen]
    assert found == list(data.index.loc[chosen, "rbc_count"])
    assert len(chosen) == 13 and sum(found) == 5341
    assert [len(names(data, "rbc", split)) for split in ("train", "test")] == [10, 3]
    assert data.title == "ALL-IDB1 (108 images)"


def test_smears_of_all_idb1(data_folder):
    data = DataSet(data_folder)
    for name in ("Im037_0", "Im001_1"):
        smear = read_smear(data, name)
        assert smear.image.shape == (*data.index.loc[name, ["height", "width"]], 3)
        mask, edge = smear.masks["rbc"], smear.edges["rbc"]
        assert mask.shape == edge.shape == smear.image.shape[:2]
        inside = np.zeros_like(mask)
        for outline in smear.polygons["rbc"]:
            first = np.floor(outline.min(axis=0)).astype(int).clip(0)
            size = np.ceil(outline.max(axis=0)).astype(int) + 1 - first
            part = inside[first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
            part |= polygon_mask(outline - first, part.shape)
        assert 2 * (inside & mask).sum() / (inside.sum() + mask.sum()) > 0.95


@pytest.mark.parametrize(
    "outline", [[], [[1, 2]], [[1, 2], [3, 4]], [[1, 2], [3, 4], [5, float("nan")]]]
)
def test_an_outline_without_three_points_is_refused(tmp_path, outline):
    path = tmp_path / "outlines.json"
    path.write_text(json.dumps({"polygons": [[[0, 0], [9, 0], [9, 9]], outline]}))
    with pytest.raises(InputError, match="outline 2 has no three points"):
        read_polygons(path)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", "/root"])
def test_a_name_of_an_image_holds_no_folder(tmp_path, name):
    write_dataset(tmp_path / "data", [synthetic_smear(0, (128, 128), rbc=2, wbc=0, plt=0)])
    path = tmp_path / "data" / "index.csv"
    path.write_text(path.read_text().replace("Syn000_0", name))
    with pytest.raises(InputError, match="the name of an image holds no folder"):
        _ = DataSet(tmp_path / "data").index

"""Images of all sorts are read as they are shown, or refused in a sentence."""

import hashlib
import io
import os
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from bloodcount.errors import InputError
from bloodcount.images import (
    MAX_PIXELS,
    as_rgb,
    full_scale,
    open_picture,
    read_image,
    to_uint8,
)
from bloodcount.synthetic import LOOKS, synthetic_smear

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
            assert "not an image that can be read" in says or "truncated" in says
    assert "an empty file" in refused("none.tif", b"")
    assert refused("none.jpg") == "no such file."
    assert refused("smear.jpg/inner.jpg") == "no such file."
    assert refused("n" * 300) == "no such file."
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", "."):
        with pytest.raises(InputError, match="not a file"):
            read_image(tmp_path / name)


def test_a_program_is_no_image(refused, tmp_path, picture):
    "Pillow hands an EPS to Ghostscript, where there is one."
    Image.fromarray(picture).save(tmp_path / "smear.eps")
    assert "not an image that can be read" in refused("smear.eps")


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
    assert to_uint8(ramp)[-4:].tolist() == [247, 251, 255, 255]
    for bad in (np.nan, np.inf, -np.inf):
        tifffile.imwrite(
            tmp_path / "smear.tif", np.append(ramp, bad).reshape(5, 13).astype(np.float32)
        )
        assert "not finite" in refused("smear.tif")


@pytest.mark.filterwarnings("error", "ignore:.*transparent in")
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
        assert "2 pages; pass page=1 to 2" in refused(name)
    frames[0].save(tmp_path / "one.gif")
    assert np.array_equal(
        read_image(tmp_path / "one.gif"), Image.open(tmp_path / "one.gif").convert("RGB")
    )


def test_a_block_of_planes_needs_a_page(refused, tmp_path, picture):
    planes = np.stack([np.roll(picture[..., 0], i, axis=1) for i in range(16)])
    grey = {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "planes.tif", planes[:5], planarconfig="separate", **grey)
    tifffile.imwrite(tmp_path / "cube.tif", planes, volumetric=True, tile=(16, 16, 16), **grey)
    for name, pages in (("planes.tif", 5), ("cube.tif", 16)):
        assert f"{pages} pages" in refused(name)
        with pytest.warns(UserWarning, match="a grey image"):
            assert np.array_equal(read_image(tmp_path / name, 4)[..., 0], planes[3])
        for page in (0, pages + 1):
            with pytest.raises(InputError, match=f"no page {page}; pages count from 1 to {pages}"):
                read_image(tmp_path / name, page)


def test_several_pictures_in_colour_are_no_planes(tmp_path, picture):
    tifffile.imwrite(tmp_path / "four.tif", np.stack([picture] * 4), photometric="rgb")
    for page in (None, "rgb"):
        with pytest.raises(InputError, match="a stack of 4 pages; pass page=1 to 4"):
            read_image(tmp_path / "four.tif", page)
    assert np.array_equal(read_image(tmp_path / "four.tif", 2), picture)


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
    large = header[:16] + size + check + header[33:]
    assert "over 178 megapixels, the limit" in refused("large.png", large)
    tifffile.memmap(tmp_path / "large.tif", shape=(side, side), dtype=np.uint8)
    assert "202 megapixels; the limit is 178" in refused("large.tif")
    assert MAX_PIXELS == 178_956_970


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


@pytest.mark.filterwarnings("error")
def test_pillows_limit_stays_on(tmp_path):
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    header = png(np.zeros((1, 1), np.uint8), 2, 8)
    size = struct.pack(">IIBBBBB", 12_000, 9_000, 8, 2, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(b"IHDR" + size))
    (tmp_path / "large.png").write_bytes(header[:16] + size + check + header[33:])
    with pytest.raises(InputError):
        read_image(tmp_path / "large.png")
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "large.png").close()


def test_brightness_does_not_jump():
    "The brightest of a 12-bit image may be 4095 or, in one image, 4096."
    ramp = np.linspace(0, 4095, 10_000).astype(np.uint16).reshape(100, 100)
    dim, last = ramp <= 3900, to_uint8(ramp)
    for top in np.geomspace(4095, 65535, 2000):
        one = to_uint8(np.where(dim, ramp, top).astype(np.uint16))
        assert np.abs(one[dim].astype(int) - last[dim]).max() <= 2
        last = one
    for dtype, most in ((np.uint16, 65535), (np.uint32, 3e5), (np.float32, 3e5)):
        white = [full_scale(np.full((9, 9), top, dtype)) for top in np.geomspace(1, most, 2000)]
        assert max(b / a for a, b in zip(white, white[1:])) < 1.03
        assert all(b >= a for a, b in zip(white, white[1:]))


@pytest.mark.parametrize("look", LOOKS)
def test_deep_smears_are_as_bright_as_those_of_8_bits(look):
    "No smear reaches the largest value that its camera knows."
    image = synthetic_smear(seed=4, shape=(160, 240), rbc=6, wbc=1, plt=2, look=look).image
    for scale in (1023, 4095, 16383, 65535):
        deep = np.rint(image / 255 * scale).astype(np.uint16)
        assert apart(open_picture(deep).pixels, image) <= 1
        assert apart(as_rgb((image / 255 * scale).astype(np.float32)), image) <= 1
    assert apart(as_rgb(image / 255), image) <= 1


@pytest.mark.parametrize("scale", [4095, 65535, 1.0])
def test_a_hot_pixel_moves_nothing(tmp_path, picture, scale):
    deep = picture / 255 * scale
    deep = deep.astype(np.float32) if scale == 1 else np.rint(deep).astype(np.uint16)
    hot = deep.copy()
    hot[40, 40] = 2.5 if scale == 1 else 65535
    tifffile.imwrite(tmp_path / "hot.tif", hot, photometric="rgb")
    found = open_picture(tmp_path / "hot.tif")
    elsewhere = np.ones(picture.shape[:2], bool)
    elsewhere[40, 40] = False
    assert apart(found.pixels[elsewhere], picture[elsewhere]) <= 1
    assert "became 255 (by the brightest pixels)" in found.scaling


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_negative_pixels_are_refused(refused, tmp_path, picture, dtype):
    pixels = picture.astype(dtype)
    pixels[3, 3, 1] = -1
    tifffile.imwrite(tmp_path / "smear.tif", pixels, photometric="rgb")
    assert refused("smear.tif") == "some pixels are negative; pass values from 0 on."
    with pytest.raises(InputError, match="^the image: some pixels are negative"):
        as_rgb(pixels)


def test_stated_bits_are_believed_where_they_can_be(tmp_path, picture):
    "A dark image of 12 bits, of which only the file can know that it is not one of 10 bits."
    dark = (picture // 4).astype(np.uint16) * 16
    stated = {"metadata": {"axes": "YXS", "SignificantBits": 12}, "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "dark.ome.tif", dark, **stated)
    most = {"photometric": "rgb", "extratags": [(281, "H", 3, (4095,) * 3, True)]}
    tifffile.imwrite(tmp_path / "dark.tif", dark, **most)
    for name in ("dark.ome.tif", "dark.tif"):
        found = open_picture(tmp_path / name)
        assert found.scaling == "4095 of uint16 became 255 (12 bits, as the file states)"
        assert apart(found.pixels, picture // 4) <= 1
    tifffile.imwrite(tmp_path / "false.ome.tif", picture.astype(np.uint16) * 257, **stated)
    assert apart(read_image(tmp_path / "false.ome.tif"), picture) <= 1
    few = np.arange(96, dtype=np.uint8).reshape(1, 96) % 16
    tifffile.imwrite(tmp_path / "four.tif", np.repeat(few, 8, 0), bitspersample=4)
    with pytest.warns(UserWarning, match="a grey image"):
        assert np.array_equal(read_image(tmp_path / "four.tif")[0, :16, 0], np.arange(16) * 17)


def test_three_planes_are_one_picture(tmp_path, picture):
    "As OME-TIFF, as a composite of ImageJ, and as ImageJ's RGB stack."
    planes = np.moveaxis(picture, -1, 0)
    grey = {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "c.ome.tif", planes, metadata={"axes": "CYX"}, **grey)
    lzw = {"compression": "lzw", "metadata": {"axes": "CYX"}}
    tifffile.imwrite(tmp_path / "lzw.ome.tif", planes, **lzw, **grey)
    tifffile.imwrite(tmp_path / "c.tif", planes, imagej=True, metadata={"axes": "CYX"}, **grey)
    labels = {"axes": "ZYX", "Labels": ["Red", "Green", "Blue"]}
    tifffile.imwrite(tmp_path / "labels.tif", planes, imagej=True, metadata=labels, **grey)
    for name in ("c.ome.tif", "lzw.ome.tif", "c.tif", "labels.tif"):
        assert np.array_equal(read_image(tmp_path / name), picture), name


def test_a_stack_gives_the_page_that_is_asked_for(refused, tmp_path, picture):
    shifted = [np.roll(picture, 7 * i, axis=1) for i in range(4)]
    planes = np.stack([np.moveaxis(one, -1, 0) for one in shifted])
    tifffile.imwrite(tmp_path / "zcyx.ome.tif", planes, metadata={"axes": "ZCYX"})
    swapped = planes.swapaxes(0, 1)
    tifffile.imwrite(
        tmp_path / "czyx.ome.tif", swapped, metadata={"axes": "CZYX"}, photometric="minisblack"
    )
    tifffile.imwrite(tmp_path / "zyxs.tif", np.stack(shifted), photometric="rgb")
    tifffile.imwrite(tmp_path / "hidden.tif", np.stack(shifted), photometric="rgb", truncate=True)
    frames = [Image.fromarray(one) for one in shifted]
    frames[0].save(tmp_path / "frames.png", save_all=True, append_images=frames[1:])
    for name in ("zcyx.ome.tif", "czyx.ome.tif", "zyxs.tif", "hidden.tif", "frames.png"):
        assert "4 pages; pass page=1 to 4" in refused(name)
        for page in (1, 3, 4):
            assert np.array_equal(read_image(tmp_path / name, page), shifted[page - 1]), name


def test_three_grey_planes_are_red_green_and_blue_if_one_says_so(refused, tmp_path, picture):
    planes = np.moveaxis(picture, -1, 0)
    tifffile.imwrite(tmp_path / "three.tif", planes, photometric="minisblack")
    assert "3 pages" in refused("three.tif")
    assert np.array_equal(read_image(tmp_path / "three.tif", "rgb"), picture)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("subfiletype", [0, 1])
def test_a_thumbnail_is_not_counted(tmp_path, picture, first, subfiletype):
    small = {"data": picture[::4, ::4], "subfiletype": subfiletype}
    with tifffile.TiffWriter(tmp_path / "smear.tif") as tiff:
        for page in ([small, {"data": picture}], [{"data": picture}, small])[first]:
            tiff.write(page.pop("data"), photometric="rgb", metadata=None, **page)
    assert np.array_equal(read_image(tmp_path / "smear.tif"), picture)


def test_a_pyramid_is_read_at_its_full_size(tmp_path, picture):
    with tifffile.TiffWriter(tmp_path / "smear.ome.tif", bigtiff=True) as tiff:
        tiff.write(picture, subifds=2, photometric="rgb", tile=(32, 32))
        for step in (2, 4):
            small = np.ascontiguousarray(picture[::step, ::step])
            tiff.write(small, subfiletype=1, photometric="rgb", tile=(32, 32))
    assert np.array_equal(read_image(tmp_path / "smear.ome.tif"), picture)


@pytest.mark.parametrize("compression", ["lzw", "jpeg", "zstd", "webp"])
def test_tiff_that_was_cut_short_within_its_pixels(refused, tmp_path, picture, compression):
    "The directory stands in front, as many scanners write it."
    big = np.tile(picture, (4, 4, 1))
    options = {"compression": compression, "photometric": "rgb", "rowsperstrip": 64}
    tifffile.imwrite(tmp_path / "smear.tif", big, **options)
    assert np.abs(read_image(tmp_path / "smear.tif").astype(int) - big).mean() < 8
    body = (tmp_path / "smear.tif").read_bytes()
    assert "truncated" in refused("cut.tif", body[: len(body) * 3 // 4])


@pytest.mark.parametrize("name", ["smear.webp", "smear.bmp", "smear.jp2", "smear.tga"])
def test_other_formats(tmp_path, picture, name):
    options = {"lossless": True} if name == "smear.webp" else {}
    Image.fromarray(picture).save(tmp_path / name, **options)
    assert np.array_equal(read_image(tmp_path / name), picture)


@pytest.fixture(scope="module")
def swapping_profile():
    "A colour profile in which the red of a file is blue, made of Pillow's own for sRGB."
    body = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    body = body.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    return body.replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be"))


@pytest.mark.parametrize("name", ["smear.png", "smear.tif", "deep.tif"])
def test_colours_are_converted_to_srgb(tmp_path, picture, swapping_profile, name):
    if name == "deep.tif":
        tag = (34675, "B", len(swapping_profile), swapping_profile, True)
        deep = picture.astype(np.uint16) * 257
        tifffile.imwrite(tmp_path / name, deep, photometric="rgb", extratags=[tag])
    else:
        Image.fromarray(picture).save(tmp_path / name, icc_profile=swapping_profile)
    assert apart(read_image(tmp_path / name), picture[..., ::-1]) <= 2
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile"):
        Image.fromarray(picture).save(tmp_path / "smear.png", icc_profile=profile)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*The colour profile cannot be used")
            assert np.array_equal(read_image(tmp_path / "smear.png"), picture)


def resolution(unit, value):
    return {"resolution": (value, value), "resolutionunit": unit, "photometric": "rgb"}


@pytest.mark.parametrize(
    ("options", "um"),
    [
        (resolution(3, 1e5), 0.1),
        (resolution(2, 254_000), 0.1),
        (resolution(2, 300), None),
        (resolution(1, 1), None),
        ({"imagej": True, "resolution": (8, 8), "metadata": {"unit": "um"}}, 0.125),
        ({"imagej": True, "resolution": (8e-3, 8e-3), "metadata": {"unit": "nm"}}, 0.125),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.2, "axes": "YXS"}}, 0.2),
        ({"ome": True, "metadata": {"PhysicalSizeX": 90, "PhysicalSizeXUnit": "nm"}}, 0.09),
        ({"description": "Aperio Image Library v1|AppMag = 40|MPP = 0.2520"}, 0.252),
        ({}, None),
    ],
)
def test_the_size_of_a_pixel(tmp_path, picture, options, um):
    tifffile.imwrite(tmp_path / "smear.tif", picture, **options)
    found = open_picture(tmp_path / "smear.tif")
    assert np.array_equal(found.pixels, picture)
    assert found.um_per_px == (um and pytest.approx(um, rel=1e-3))


def test_the_size_of_a_pixel_in_a_png(tmp_path, picture):
    for dpi, um in ((254_000, 0.1), (96, None)):
        Image.fromarray(picture).save(tmp_path / "smear.png", dpi=(dpi, dpi))
        found = open_picture(tmp_path / "smear.png").um_per_px
        assert found == (um and pytest.approx(um, rel=1e-3))


def test_what_is_known_of_a_picture(tmp_path, picture):
    path = tmp_path / "smear.png"
    Image.fromarray(picture).save(path)
    found = open_picture(str(path))
    assert (found.pixels.shape, found.kind) == ((96, 160, 3), "colour")
    assert found.scaling == "8 bits, as they are" and found.warnings == ()
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    three = np.repeat(grey_of(picture)[..., None], 3, axis=2)
    Image.fromarray(three).save(tmp_path / "grey.jpg", quality=80)
    found = open_picture(tmp_path / "grey.jpg")
    assert found.kind == "grey stored as RGB"
    assert found.warnings[0].endswith("a grey image; white cells and platelets need colour.")
    Image.fromarray(np.dstack([picture, np.zeros((96, 160), np.uint8)])).save(path)
    assert (
        open_picture(path).hidden == 1 and "transparent in 100%" in open_picture(path).warnings[1]
    )


def test_what_is_no_picture_is_refused_by_name(tmp_path, picture):
    tifffile.imwrite(tmp_path / "whole.tif", picture, photometric="rgb")
    bad = {"text.jpg": b"words", "empty.png": b""}
    bad["cut.tif"] = (tmp_path / "whole.tif").read_bytes()[:-5000]
    for name, body in bad.items():
        (tmp_path / name).write_bytes(body)
    os.mkfifo(tmp_path / "pipe.tif")
    for name in (*bad, "pipe.tif", ".", "none.jpg"):
        with pytest.raises(InputError) as error:
            read_image(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.filterwarnings(GREY, "ignore:.*transparent in")
def test_arrays_are_taken_as_files_are(picture):
    assert as_rgb(picture) is picture
    for pixels in (
        picture.astype(np.uint16) * 257, picture / 255, (picture / 255).astype(np.float16),
        np.dstack([picture, np.full((96, 160), 255, np.uint8)]), Image.fromarray(picture),
        picture.tolist(), picture.astype(np.uint16) * 16, np.asfortranarray(picture),
    ):  # fmt: skip
        found = as_rgb(pixels)
        assert apart(found, picture) <= 1 and found.flags.c_contiguous
    grey = grey_of(picture)
    for pixels in (grey, grey[..., None], grey / 255, np.dstack([grey, np.full_like(grey, 255)])):
        assert np.array_equal(as_rgb(pixels), np.repeat(grey[..., None], 3, axis=2))
    assert as_rgb(grey > 127).max() == 255
    tag = Image.Exif()
    tag[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", exif=tag)
    assert np.array_equal(as_rgb(Image.open(buffer)), np.rot90(picture, -1))


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((0, 5, 3)), "no pixels"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((3, 40, 50), np.uint8), "3 x 40 x 50 is not one picture; put the channels last"),
        (np.zeros((2, 4, 4, 3)), "not one picture"),
        (np.zeros(7), "not one picture"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.full((4, 4), -0.5), "negative"),
        (np.zeros((4, 4), complex), "pixels of type complex128; pass numbers"),
        (None, "pass numbers"),
        (np.array([["a"]]), "pass numbers"),
    ],
)
def test_arrays_that_are_no_picture(pixels, says):
    with pytest.raises(InputError, match=f"^the image: .*{says}"):
        as_rgb(pixels)

"""Tiles, networks and maps: seamless, deterministic, and refused where weights are not right."""

import dataclasses
import itertools
import shutil
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest

from bloodcount.counting import count
from bloodcount.data import read_mask
from bloodcount.errors import InputError, IntegrityError, SettingsError
from bloodcount.files import sha256
from bloodcount.images import read_image
from bloodcount.networks import MODELS, OUTPUTS, do_unet, keras, load_legacy_weights
from bloodcount.segmentation import (
    Maps,
    Segmenter,
    cut,
    kept_maps,
    load_segmenter,
    maps_name,
    outline_maps,
    truth_maps,
)
from bloodcount.settings import CELLS, PROJECT, Preprocess, Segment, load_settings
from bloodcount.synthetic import synthetic_smear
from bloodcount.tiles import cut_grid, equalise, grid_centres, plan_tiles, stitch_grid, to_input

SETTINGS = load_settings("paper")
MARGIN, STEP = MODELS["do_unet"].margin, MODELS["do_unet"].step
FIELDS = [(1944, 2592), (1368, 1712), (652, 1226)]  # Sizes of ALL-IDB1
ODD = [(1, 1), (1, 12), (3, 7), (44, 45), (50, 60), (97, 301), (333, 1)]


def shake(model, seed=0):
    "Statistics for the batch normalisation, so that an untrained network answers everywhere else."
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.set_weights(
                [
                    rng.uniform(0.5, 1.5, size),
                    *rng.normal(0, 0.3, (2, *size)),
                    rng.uniform(0.5, 1, size),
                ]
            )
    return model


@pytest.fixture(scope="module")
def network():
    "DO-U-Net with two outputs, untrained."
    keras.utils.set_random_seed(1)
    return shake(do_unet())


@pytest.fixture(scope="module")
def thin():
    "A light network of the same margin and step, for fields of 5 megapixels."
    keras.utils.set_random_seed(2)
    layers = keras.layers
    x = image = keras.Input((None, None, 3))
    for _ in range(3):
        x = layers.Conv2D(4, 3, activation="relu")(x)
        x = layers.Conv2D(4, 3, activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.UpSampling2D(8)(layers.Conv2D(4, 3, activation="tanh")(x))
    steep = keras.initializers.RandomNormal(stddev=20, seed=2)
    head = layers.Conv2D(1, 1, activation="sigmoid", kernel_initializer=steep, name="mask")
    return keras.Model(image, [head(layers.Cropping2D(22)(x))])


@pytest.fixture(scope="module")
def field():
    "A smear as large as any of ALL-IDB1."
    smear = synthetic_smear(seed=3, shape=(652, 1226), rbc=60, wbc=2, plt=6)
    return np.pad(smear.image, ((0, 1944 - 652), (0, 2592 - 1226), (0, 0)), mode="symmetric")


def segmenter(model, tile, cell="rbc"):
    kind = Segment(tile=tile, precision="float32")
    settings = dataclasses.replace(SETTINGS, segment={"do_unet": kind, "segnet": kind})
    return Segmenter(cell, "do_unet", "none", "0" * 64, model, settings)


def at_once(model, image):
    "The outputs of a network for a whole image, mirrored and padded to one valid input."
    sides = [(MARGIN, MARGIN + (4 - side) % 8) for side in image.shape[:2]]
    seen = to_input(equalise(image, SETTINGS.preprocess))
    mode = "reflect" if min(image.shape[:2]) > 1 else "edge"
    outputs = model.predict_on_batch(np.pad(seen, [*sides, (0, 0)], mode=mode)[None])
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return [o[0, : image.shape[0], : image.shape[1], 0] for o in outputs]


@pytest.mark.parametrize(
    ("shape", "tile"),
    [*((shape, 188) for shape in ODD), ((97, 301), 156), ((652, 1226), 588)],
)
def test_tiles_leave_no_seam(network, field, shape, tile):
    image = field[: shape[0], : shape[1]]
    maps = segmenter(network, tile)(image)
    mask, edge = at_once(network, image)
    assert maps.mask.shape == maps.edge.shape == shape and maps.mask.dtype == np.float32
    assert 0 <= maps.mask.min() and maps.mask.max() <= 1
    assert np.abs(maps.mask - mask).max() < 1e-5 and np.abs(maps.edge - edge).max() < 1e-5
    if shape == (652, 1226):
        assert mask.std() > 0.01 and edge.std() > 0.01


@pytest.mark.parametrize("shape", FIELDS)
@pytest.mark.parametrize("tile", [348, 1084])
def test_tiles_leave_no_seam_in_any_field_of_the_data_set(thin, field, shape, tile):
    image = field[: shape[0], : shape[1]]
    maps = segmenter(thin, tile)(image)
    assert maps.edge is None and maps.mask.std() > 0.01
    assert np.abs(maps.mask - at_once(thin, image)[0]).max() < 1e-5


@pytest.mark.parametrize("tile", [100, 188, 348, 588, 1084, 2948])
def test_plans_cover_each_pixel_and_keep_to_the_grid(tile):
    sides = [1, 2, 7, 11, 12, 13, 60, 100, 101, 499, 500, 501, 996, 997, 1368, 1944, 2592]
    for shape in itertools.product(sides, (1, 13, 652, 2592)):
        plan = plan_tiles(shape, tile, MARGIN, STEP)
        for side, size, origins in zip(shape, plan.size, zip(*plan.origins)):
            starts = sorted(set(origins))
            assert starts[0] == 0 and starts[-1] < side <= starts[-1] + size
            assert all(start % STEP == 0 for start in starts)
            assert all(after - before <= size for before, after in itertools.pairwise(starts))
            assert size % STEP == 4 and size <= tile - 2 * MARGIN
            assert len(starts) == 1 or size < side


def test_table_1_to_the_digit():
    index = pd.read_csv(PROJECT / "data" / "all-idb1-index.csv", index_col="image")
    tiles = [
        len(grid_centres((h, w), SETTINGS.grid)) for h, w in zip(index["height"], index["width"])
    ]
    found = {
        cell: tuple(
            pd.Series(tiles, index.index)[index[f"{cell}_split"] == split].sum()
            for split in ("train", "test")
        )
        for cell in CELLS
    }
    assert found == {"rbc": (3916, 1072), "wbc": (28126, 15892), "plt": (27650, 14410)}


@pytest.mark.parametrize("shape", [(652, 1226), (188, 200), (100, 151)])
def test_the_papers_tiles_go_back_to_their_places(field, shape):
    image, grid = field[: shape[0], : shape[1]], SETTINGS.grid
    inputs, outputs = (cut_grid(image, grid, size) for size in (188, 100))
    assert inputs.shape[1:] == (188, 188, 3) and np.array_equal(inputs[:, 44:-44, 44:-44], outputs)
    back = stitch_grid(outputs, shape, grid)
    seen = stitch_grid(np.ones(outputs.shape[:3], bool), shape, grid)
    assert np.array_equal(back[seen], image[seen]) and not back[~seen].any()
    assert all(side - seen.any(axis=1 - axis).sum() < 100 for axis, side in enumerate(shape))


@pytest.mark.parametrize("value", [0, 127, 255])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1, 300), (64, 64)])
def test_what_the_network_sees_of_a_flat_image(shape, value):
    flat = np.full((*shape, 3), value, np.uint8)
    seen = to_input(equalise(flat, SETTINGS.preprocess))
    assert seen.shape == (*shape, 3) and seen.dtype == np.float32
    assert np.isfinite(seen).all() and seen.min() >= -1 and seen.max() <= 1


def test_preprocessing_leaves_the_image_alone(field):
    image = field[:100, :100].copy()
    image.setflags(write=False)
    first = to_input(equalise(image, SETTINGS.preprocess))
    other = to_input(equalise(image, Preprocess(clahe_clip=4.0, clahe_grid=4)))
    assert np.array_equal(first, to_input(equalise(field[:100, :100], SETTINGS.preprocess)))
    assert not np.array_equal(first, other)


NEXT = np.nextafter(np.float32(0.5), np.float32(1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([0.0], 0), ([1.0], 1), ([1e-8, 3e-7], 0), ([0.0, 6e-8], 0), ([0.02, 0.09], 0),
        ([0.92, 0.99], 1), ([0.5, NEXT], 0.5), ([0.2, 0.7], 0.5), ([0.0, 1.0], 0.5),
    ],
)  # fmt: skip
def test_otsu_stays_sensible(values, share):
    for dtype in (np.float32, np.float16):
        field = np.resize(np.asarray(values, dtype).astype(np.float32), (32, 32))
        if len(np.unique(field)) == len(values):
            assert cut(field, "otsu").mean() == share


@pytest.mark.parametrize("threshold", ["otsu", 0.5])
def test_cutting_no_pixels(threshold):
    assert cut(np.zeros((0, 5), np.float32), threshold).shape == (0, 5)
    assert cut(np.full((1, 1), 0.7, np.float32), 0.7).sum() == 0


def save_legacy(model, path, layer_names=None):
    "A weights file as Keras 2 wrote it."
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = layer_names or [layer.name for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = [f"{layer.name}/{i}" for i in range(len(layer.weights))]
            for i, values in enumerate(layer.get_weights()):
                group[f"{layer.name}/{i}"] = values


def test_legacy_weights_round_trip(network, tmp_path, field):
    save_legacy(network, tmp_path / "weights.h5")
    twin = load_legacy_weights(do_unet(), tmp_path / "weights.h5")
    tile = to_input(equalise(field[:188, :188], SETTINGS.preprocess))[None]
    for ours, theirs in zip(network.predict_on_batch(tile[..., ::-1]), twin.predict_on_batch(tile)):
        assert np.abs(ours - theirs).max() < 1e-5


def test_weights_that_are_no_weights(network, thin, tmp_path):
    twin = do_unet()

    def says(path, model=twin):
        with pytest.raises(IntegrityError) as error:
            load_legacy_weights(model, path)
        assert str(path) in str(error.value) and error.value.exit_code == 3
        return str(error.value)

    right = tmp_path / "right.h5"
    save_legacy(network, right)
    assert "another network than do_unet with 1 outputs" in says(right, do_unet(("mask",)))
    save_legacy(thin, tmp_path / "thin.h5")
    assert "another network" in says(tmp_path / "thin.h5")
    body = right.read_bytes()
    for share in (0, 0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.h5").write_bytes(body[: int(share * len(body))])
        assert "not a Keras 2 weights file" in says(tmp_path / "cut.h5")
    (tmp_path / "text.h5").write_text("These are no weights.")
    network.save_weights(tmp_path / "keras3.weights.h5")
    save_legacy(network, tmp_path / "names.h5", layer_names=["no such layer"])
    for name in ("text.h5", "keras3.weights.h5", "names.h5"):
        assert "not a Keras 2 weights file" in says(tmp_path / name)
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["conv"] = np.zeros(3)
        file["conv"].attrs["weight_names"] = ["kernel"]
        file.attrs["layer_names"] = ["conv"]
    assert "not a Keras 2 weights file" in says(tmp_path / "flat.h5")
    assert "no such weights" in says(tmp_path / "none.h5")


@pytest.fixture(scope="module")
def dark():
    "A network that answers how dark a pixel is, with the margin of DO-U-Net."
    layers = keras.layers
    image = keras.Input((None, None, 3))
    head = layers.Conv2D(1, 1, activation="sigmoid", name="mask")
    model = keras.Model(image, [head(layers.Cropping2D(MARGIN)(image))])
    head.set_weights([np.full((1, 1, 3, 1), -1, np.float32), np.zeros(1, np.float32)])
    return model


@pytest.mark.parametrize("shape", [(300, 401), (97, 64), (1, 1), (3, 7)])
@pytest.mark.parametrize("zoom", [0.5, 0.37, 2.0])
def test_maps_of_a_smaller_picture_are_as_large_as_the_image(dark, shape, zoom):
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    disc = np.hypot(rows - shape[0] * 0.4, cols - shape[1] * 0.6) - min(shape) / 4
    image = np.repeat(np.uint8(128 + 90 * np.tanh(disc / 8))[..., None], 3, axis=2)
    whole = segmenter(dark, 188, "wbc")
    maps, wanted = dataclasses.replace(whole, zoom=zoom)(image), whole(image)
    assert maps.mask.shape == shape and maps.mask.dtype == np.float32 and maps.edge is None
    if min(shape) > 50:  # In its place to less than a pixel: a shift by one would be twice as far
        shifted = np.abs(np.roll(wanted.mask, 1, axis=1) - wanted.mask)[1:-1, 1:-1].mean()
        assert np.abs(maps.mask - wanted.mask)[1:-1, 1:-1].mean() < shifted / 2


def test_a_network_that_answers_nan_is_an_error(field):
    for value in (np.nan, np.inf):
        model = do_unet(("mask",))
        kernel, bias = model.layers[1].get_weights()
        kernel[0, 0, 0, 0] = value
        model.layers[1].set_weights([kernel, bias])
        with pytest.raises(IntegrityError, match="NaN") as error:
            segmenter(model, 188, "wbc")(field[:60, :80])
        assert error.value.exit_code == 3


def test_the_same_image_has_the_same_maps(network, field):
    first, second = (segmenter(network, 348)(field[:300, :400]) for _ in range(2))
    assert first.mask.tobytes() == second.mask.tobytes()
    assert first.edge.tobytes() == second.edge.tobytes()


def test_maps_are_made_once(network, thin, field, tmp_path):
    image = field[:90, :120]
    made = segmenter(network, 188)
    first = kept_maps(image, made, tmp_path)
    blind = dataclasses.replace(made, model=None)
    second = kept_maps(image, blind, tmp_path)
    assert np.array_equal(first.mask, second.mask) and np.array_equal(first.edge, second.edge)
    assert first.mask.dtype == second.mask.dtype == np.float32
    assert np.abs(first.mask - made(image).mask).max() < 5e-4
    [path] = tmp_path.rglob("*.npz")
    for broken in (path.read_bytes()[:-200], b""):
        path.write_bytes(broken)
        again = kept_maps(image, made, tmp_path)
        assert np.array_equal(first.mask, again.mask) and zipfile.is_zipfile(path)
    assert kept_maps(image, segmenter(thin, 188, "wbc"), tmp_path).edge is None
    assert len(list(tmp_path.rglob("*.npz"))) == 2 == len(list(tmp_path.rglob("*.*")))


def test_the_name_of_kept_maps_says_all_they_depend_on(field, monkeypatch):
    image = field[:90, :120]
    made = segmenter(None, 188)
    clahe = dataclasses.replace(made.settings, preprocess=Preprocess(clahe_clip=3, clahe_grid=8))
    pixel = image.copy()
    pixel[0, 0, 0] ^= 1
    names = [
        maps_name(image, made),
        maps_name(pixel, made),
        maps_name(image.reshape(120, 90, 3), made),
        maps_name(image, dataclasses.replace(made, checksum="1" * 64)),
        maps_name(image, dataclasses.replace(made, network="segnet")),
        maps_name(image, dataclasses.replace(made, zoom=0.5)),
        maps_name(image, segmenter(None, 196)),
        maps_name(image, dataclasses.replace(made, settings=clahe)),
    ]
    monkeypatch.setattr("bloodcount.segmentation.computed_by", lambda *modules: "another code")
    names.append(maps_name(image, made))
    assert len(set(names)) == len(names)


def test_truth_is_a_map_too():
    smear = synthetic_smear(seed=4, shape=(320, 416), rbc=16, wbc=1, plt=2, overlap=0.4)
    for cell in CELLS:
        maps = truth_maps(smear, cell)
        assert np.array_equal(maps.mask, smear.masks[cell]) and maps.mask.dtype == np.float32
        assert (maps.edge is None) == (cell != "rbc")
    outlined = outline_maps(smear, "rbc").mask
    assert (outlined != smear.masks["rbc"]).mean() < 0.001
    for maps, bare in ((truth_maps, {"masks": {}}), (outline_maps, {"polygons": {}})):
        with pytest.raises(InputError, match=f"{smear.name} has no rbc"):
            maps(dataclasses.replace(smear, **bare), "rbc")


def test_outlines_may_leave_the_image_or_be_degenerate():
    smear = synthetic_smear(seed=4, shape=(128, 128), rbc=1, wbc=0, plt=0)
    corners = np.array([(-9, -9), (-9, 20), (20, 20), (20, -9)], np.float32)
    line, outside = np.full((2, 2), 40, np.float32), corners + 500
    smear = dataclasses.replace(smear, polygons={"rbc": [corners, line, outside]})
    mask = outline_maps(smear, "rbc").mask
    assert mask[:20, :20].all() and mask[21:].sum() <= 1 and mask[:21, 21:].sum() == 0


def test_wrong_names():
    with pytest.raises(SettingsError, match="'rcb'.*Did you mean 'rbc'"):
        load_segmenter("rcb", SETTINGS)
    with pytest.raises(SettingsError, match="'author'.*Did you mean 'authors'"):
        load_segmenter("rbc", SETTINGS, "author")


@pytest.mark.parametrize("cell", CELLS)
def test_the_authors_weights_must_be_theirs(authors_folder, tmp_path, cell):
    paths = dataclasses.replace(SETTINGS.paths, authors=tmp_path)
    settings = dataclasses.replace(SETTINGS, paths=paths)
    with pytest.raises(IntegrityError, match="bloodcount data authors"):
        load_segmenter(cell, settings, "authors")
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / f"{cell}.h5"
    shutil.copy(authors_folder / "weights" / f"{cell}.h5", path)
    right = sha256(path)
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    for wrong in (bytes(body), bytes(body[:-1]), b""):
        path.write_bytes(wrong)
        with pytest.raises(IntegrityError, match=f"{sha256(path)}, expected {right}") as error:
            load_segmenter(cell, settings, "authors")
        assert error.value.exit_code == 3


@pytest.fixture(scope="module")
def authors_maps(authors_folder):
    "The maps of the authors' own smear by their own weights."
    image = read_image(authors_folder / "images" / "Im037_0.jpg")
    paths = dataclasses.replace(SETTINGS.paths, authors=authors_folder)
    settings = dataclasses.replace(SETTINGS, paths=paths)
    return {cell: load_segmenter(cell, settings, "authors")(image) for cell in CELLS}


# What these weights gave here for Im037_0 (105 red cells, 1 white cell, 6 platelets).
GOLDEN = {
    ("rbc", "cht"): 91, ("rbc", "ccl"): 81, ("rbc", "watershed"): 98, ("rbc", "edt"): 54,
    ("rbc", "ccl_mask"): 55,
    ("wbc", "ccl"): 1, ("wbc", "watershed"): 1, ("wbc", "edt"): 1,
    ("plt", "cht"): 6, ("plt", "ccl"): 8, ("plt", "edt"): 7,
}  # fmt: skip


def test_the_authors_weights_count_as_they_did(authors_maps):
    theirs = SETTINGS.published["do_unet"]
    found = {
        (cell, method): len(count(authors_maps[cell], theirs[cell], method))
        for cell, method in GOLDEN
    }
    apart = {case: found[case] - n for case, n in GOLDEN.items()}
    assert all(abs(n) <= max(1, 0.02 * GOLDEN[case]) for case, n in apart.items()), apart


@pytest.mark.parametrize(("cell", "dice"), [("rbc", 0.97), ("wbc", 0.80), ("plt", 0.78)])
def test_the_authors_weights_segment_as_they_did(authors_maps, data_folder, cell, dice):
    maps = authors_maps[cell]
    assert isinstance(maps, Maps) and (maps.edge is not None) == ("edge" in OUTPUTS[cell])
    path = data_folder / "masks" / cell / "Im037_0.png"
    found, truth = maps.mask > 0.5, read_mask(path)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) >= dice

"SegNet: exact pooling and unpooling, VGG16's encoder, the same network on both backends."

import dataclasses
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from backends import numbers_elsewhere, write_numbers

from bloodcount.errors import IntegrityError, RunError
from bloodcount.networks import MODELS, MaxPoolWithIndices, MaxUnpool, do_unet, keras, segnet
from bloodcount.segmentation import LEVELS, Segmenter
from bloodcount.settings import Segment, load_settings
from bloodcount.synthetic import synthetic_smear
from bloodcount.tiles import equalise, to_input

SETTINGS = load_settings("smoke")
rng = np.random.default_rng(0)
# Whole numbers, so that windows are full of equal pixels; and all of them negative in one channel.
TIES = rng.integers(-3, 3, (2, 12, 16, 5)).astype(np.float32)
TIES[..., 0] -= 4
CHIPS = rng.uniform(-1, 1, (2, 64, 32, 3)).astype(np.float32)
TRUTH = (rng.random((2, 64, 32, 1)) < 0.4).astype(np.float32)

both_pools = pytest.mark.parametrize("size", (2, 3))


def pooled(x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    "Maxima and the first places of them, window by window."
    n, height, width, channels = x.shape
    largest = np.zeros((n, height // 2, width // 2, channels), x.dtype)
    index = np.zeros(largest.shape, int)
    for image, row, col, channel in np.ndindex(largest.shape):
        part = x[image, 2 * row : 2 * row + size, 2 * col : 2 * col + size, channel]
        at = np.unravel_index(part.argmax(), part.shape)
        largest[image, row, col, channel] = part[at]
        index[image, row, col, channel] = at[0] * size + at[1]
    return largest, index


def scattered(x: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    "Values added up where their windows' maxima stood."
    n, height, width, channels = x.shape
    whole = np.zeros((n, 2 * height, 2 * width, channels), x.dtype)
    for image, row, col, channel in np.ndindex(x.shape):
        down, right = divmod(index[image, row, col, channel], size)
        whole[image, 2 * row + down, 2 * col + right, channel] += x[image, row, col, channel]
    return whole


def pool_and_unpool(size: int) -> keras.Model:
    x = keras.Input((None, None, TIES.shape[-1]))
    largest, index = MaxPoolWithIndices(size)(x)
    return keras.Model(x, [largest, index, MaxUnpool(size)(largest, index)])


def settle(model: keras.Model, images: np.ndarray) -> keras.Model:
    "The model, its batch normalisation with the statistics of `images`, as after training."
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images, training=True)
    return model


def trained(model: keras.Model, steps: int = 4) -> list[float]:
    "The loss before each of a few steps on one batch."
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return [float(model.train_on_batch(CHIPS, [TRUTH, 1 - TRUTH])[0]) for _ in range(steps)]


@both_pools
def test_pooling_and_unpooling_are_exact(size):
    largest, index, whole = map(np.asarray, pool_and_unpool(size)(TIES))
    expected = pooled(TIES, size)
    np.testing.assert_array_equal(largest, expected[0])
    np.testing.assert_array_equal(index, expected[1])
    assert index.dtype == np.int32
    np.testing.assert_array_equal(whole, scattered(*expected, size))


def test_maxima_return_to_their_places():
    "Where windows share no pixel, what comes back is the image itself at its maxima, 0 elsewhere."
    x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    whole = np.asarray(MaxUnpool()(*MaxPoolWithIndices()(x)))
    kept = whole != 0
    assert np.array_equal(whole[kept], x[kept]) and kept.sum() == x.size / 4
    assert np.array_equal(np.asarray(MaxPoolWithIndices()(x)[0]).sum(), whole.sum())


@both_pools
def test_gradient_reaches_the_first_maximum_alone(size):
    "One step of gradient descent on the sum of the maxima moves the chosen pixels, by their number of windows."

    class Held(keras.layers.Layer):
        def build(self, _):
            self.map = self.add_weight(shape=TIES.shape[1:], initializer="zeros")

        def call(self, x):
            return MaxPoolWithIndices(size)(0 * x + self.map)[0]

    model = keras.Sequential([keras.Input(TIES.shape[1:]), Held()])
    model.layers[0].map.assign(TIES[0])
    model.compile(keras.optimizers.SGD(1.0), lambda _, largest: keras.ops.sum(largest))
    largest, index = pooled(TIES[:1], size)
    model.train_on_batch(TIES[:1], largest)
    moved = TIES[0] - np.asarray(model.layers[0].map)
    np.testing.assert_array_equal(moved, scattered(np.ones_like(largest), index, size)[0])


@both_pools
def test_layers_keep_their_size_when_saved(size, tmp_path):
    model = pool_and_unpool(size)
    model.save(tmp_path / "pool.keras")
    again = keras.saving.load_model(tmp_path / "pool.keras")
    for before, after in zip(model(TIES), again(TIES)):
        np.testing.assert_array_equal(before, after)


@both_pools
@pytest.mark.parametrize("outputs", [("mask", "edge"), ("mask",)])
def test_output_is_as_large_as_the_input(size, outputs):
    model = segnet(outputs, pool=size)
    assert model.output_names == list(outputs) and model.name == "segnet"
    for output, name in zip(model(CHIPS[:1, :, :32]), outputs):
        assert tuple(output.shape)[-3:] == (64, 32, 1), name
        assert 0 <= np.asarray(output).min() <= np.asarray(output).max() <= 1
    assert [tuple(o.shape) for o in segnet(outputs, size=128, pool=size).outputs] == [
        (None, 128, 128, 1)
    ] * len(outputs)


def test_size_of_the_network():
    model = segnet()
    kernels = [w.shape for w in model.weights if w.name == "kernel"]
    encoder = sum(int(np.prod(shape)) + shape[-1] for shape in kernels[:13])
    assert encoder == keras.applications.VGG16(include_top=False, weights=None).count_params()
    assert len(kernels) == 13 + 12 + 2 and model.count_params() == 29_459_010
    assert segnet(pool=3).count_params() == model.count_params()


@both_pools
def test_padding_is_felt_no_farther_than_the_margin(size):
    strip = rng.uniform(-1, 1, (1, 480, 32, 3)).astype(np.float32)
    model = settle(segnet(("mask",), pool=size), strip)
    whole, part = (np.asarray(model(x))[..., 0].squeeze() for x in (strip, strip[:, 32:]))
    apart = np.abs(whole[32:] - part).max(axis=1)
    reach, network = {2: (185, "segnet"), 3: (217, "segnet_3x3")}[size]
    assert apart[reach:].max() < 1e-4 < apart[reach - 32 : reach].max()
    assert reach <= MODELS[network].margin < reach + 32


def test_tiles_leave_no_seam_once_their_rim_is_cut_off(monkeypatch):
    keras.utils.set_random_seed(0)
    smear = synthetic_smear(4, (128, 160), rbc=4, wbc=1, plt=1)
    seen = to_input(equalise(smear.image, SETTINGS.preprocess))
    model = settle(segnet(), seen[None])

    def mapped(tile, margin):
        rim = dataclasses.replace(MODELS["segnet"], margin=margin)
        monkeypatch.setitem(MODELS, "segnet", rim)
        settings = dataclasses.replace(
            SETTINGS, segment={"segnet": Segment(tile=tile, precision="float32")}
        )
        maps = Segmenter("rbc", "segnet", "random", "", model, settings)(smear.image[:32, :64])
        return np.stack([maps.mask, maps.edge])

    margin = MODELS["segnet"].margin
    assert len(np.unique(mapped(2 * margin + 68, margin))) == LEVELS
    monkeypatch.setattr("bloodcount.segmentation.in_levels", lambda probability: probability)
    whole, tiles, seams = mapped(2 * margin + 68, margin), mapped(100, margin), mapped(356, 160)
    assert margin == 192 and whole.shape == (2, 32, 64) and whole.std() > 0.1
    # Where two pixels of a window differ by rounding alone, another one may be the largest there
    assert (np.abs(tiles - whole) > 1e-4).mean() < 0.005
    assert (np.abs(seams - whole) > 1e-4).mean() > 0.3


@pytest.fixture(scope="module")
def vgg16() -> keras.Model:
    "A VGG16 with random weights, biases too."
    keras.utils.set_random_seed(0)
    model = keras.applications.VGG16(include_top=False, weights=None)
    for weight in model.weights:
        if weight.name == "bias":
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


def convolutions(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


@pytest.mark.parametrize("name", ["vgg16.weights.h5", "vgg16.keras"])
def test_encoder_is_vgg16_but_for_batch_normalisation(vgg16, name, tmp_path):
    vgg16.save_weights(tmp_path / name) if name.endswith("h5") else vgg16.save(tmp_path / name)
    encoder = convolutions(segnet(encoder_weights=tmp_path / name))[:13]
    known = keras.Model(vgg16.input, [layer.output for layer in convolutions(vgg16)])
    x = CHIPS
    for number, (layer, expected) in enumerate(zip(encoder, known(CHIPS[..., ::-1])), 1):
        x = keras.ops.relu(layer(x))
        np.testing.assert_allclose(x, expected, atol=1e-5, err_msg=f"convolution {number}")
        if number in (2, 4, 7, 10, 13):
            x = MaxPoolWithIndices()(x)[0]


def test_wrong_encoder_weights_are_refused(tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    do_unet().save_weights(tmp_path / "other.weights.h5")
    for name, reason in (
        ("none.h5", "no such weights"),
        ("text.h5", "not the weights of Keras's VGG16"),
        ("other.weights.h5", "not the weights of Keras's VGG16"),
    ):
        with pytest.raises(IntegrityError, match=f"{name}: {reason}"):
            segnet(encoder_weights=tmp_path / name)


def test_offline_imagenet_weights_are_one_sentence(monkeypatch, tmp_path):
    from keras.src.backend import config
    from keras.src.utils import file_utils

    def offline(*_):
        raise URLError("no internet")

    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    monkeypatch.setattr(file_utils, "urlretrieve", offline)
    with pytest.raises(RunError, match="cannot be fetched .*no internet.*encoder_weights"):
        segnet(encoder_weights="imagenet")


def numbers(model: keras.Model) -> dict[str, np.ndarray]:
    "What the layers and a network say on this backend."
    found = dict(zip(model.output_names, map(np.asarray, model(CHIPS))))
    for size in (2, 3):
        for name, values in zip(("largest", "index", "whole"), pool_and_unpool(size)(TIES)):
            found[f"{name} {size}"] = np.asarray(values)
    return found


@pytest.mark.slow
def test_trains_and_is_equal_on_the_other_backend(tmp_path):
    keras.utils.set_random_seed(0)
    model = segnet()
    losses = trained(model)
    saved = segnet()  # Without the optimizer's state, which is twice as large as the network
    saved.set_weights(settle(model, CHIPS).get_weights())
    saved.save(tmp_path / "segnet.keras")
    again = keras.saving.load_model(tmp_path / "segnet.keras")
    here, there = numbers(again), numbers_elsewhere(__file__, tmp_path)
    for found in (losses, there.pop("losses")):
        assert found[-1] < found[0]
    assert here.keys() == there.keys()
    for name, output in zip(("mask", "edge"), model(CHIPS)):
        np.testing.assert_array_equal(here[name], output)
        assert here[name].std() > 0.05
        # Where two pixels of a window differ by rounding alone, another one may be the largest there.
        assert (np.abs(there.pop(name) - here[name]) > 1e-5).mean() < 0.005, name
    for name in there:
        np.testing.assert_array_equal(there[name], here[name], err_msg=name)


def pooling() -> keras.Model:
    "A network of a few weights that learns through pooling and unpooling."
    image = keras.Input((64, 32, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(image)
    x = MaxUnpool()(*MaxPoolWithIndices()(x))
    heads = [keras.layers.Conv2D(1, 1, activation="sigmoid", name=n)(x) for n in ("mask", "edge")]
    return keras.Model(image, heads)


if __name__ == "__main__":
    network = keras.saving.load_model(Path(sys.argv[1]) / "segnet.keras")
    write_numbers({**numbers(network), "losses": np.array(trained(pooling()))}, sys.argv[1])

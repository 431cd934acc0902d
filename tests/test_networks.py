"The fast batch normalisation is Keras's: outputs, gradients and moving statistics; in use it is part of convolutions."

import numpy as np
import pytest

from bloodcount.networks import BatchNormalization, do_unet, folded, keras, segnet

rng = np.random.default_rng(0)
IMAGES = rng.normal(3, 2, (4, 10, 12, 5)).astype(np.float32)
WANTED = rng.normal(0, 1, IMAGES.shape).astype(np.float32)


def normalised(kind: type, policy: str, trainable: bool = True) -> list[np.ndarray]:
    "The outputs in training and in use around one step of learning, and all weights after it."
    image = keras.Input(IMAGES.shape[1:])
    layer = kind(momentum=0.7, epsilon=0.01, dtype=policy, trainable=trainable)
    model = keras.Model(image, keras.layers.Activation("linear", dtype="float32")(layer(image)))
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.train_on_batch(IMAGES, WANTED)
    outputs = [model(IMAGES, training=training) for training in (True, False)]
    return [np.asarray(each, np.float32) for each in (*outputs, *model.weights)]


@pytest.mark.parametrize(
    ("policy", "trainable", "near"),
    [("float32", True, 1e-5), ("float32", False, 1e-5), ("mixed_bfloat16", True, 0.04)],
)
def test_batch_normalisation_is_keras_own(policy, trainable, near):
    found = normalised(BatchNormalization, policy, trainable)
    expected = normalised(keras.layers.BatchNormalization, policy, trainable)
    assert len(found) == len(expected) == 6
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=near, atol=near)


def test_learning_moves_every_weight_of_batch_normalisation():
    *_, gamma, beta, mean, variance = normalised(BatchNormalization, "float32")
    for weights, start in ((gamma, 1), (beta, 0), (mean, 0), (variance, 1)):
        assert (weights != start).all()


@pytest.mark.parametrize("build", [do_unet, segnet])
@pytest.mark.parametrize("outputs", [("mask", "edge"), ("mask",)])
def test_the_folded_network_is_the_same(build, outputs):
    keras.utils.set_random_seed(0)
    model = build(outputs)
    side = {do_unet: 156, segnet: 160}[build]
    seen = rng.uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.momentum = 0.0
    model(seen, training=True)
    for layer in model.layers:  # A factor and an offset of each channel, as after learning
        if isinstance(layer, BatchNormalization):
            gamma, beta, *statistics = layer.get_weights()
            changed = rng.uniform(0.5, 1.5, gamma.shape), rng.normal(0, 0.3, beta.shape)
            layer.set_weights([*changed, *statistics])
    before = model.get_weights()
    use = folded(model)
    assert not any(isinstance(layer, BatchNormalization) for layer in use.layers)
    assert use.output_names == model.output_names == list(outputs)
    for ours, theirs in zip(_planes(use, seen), _planes(model, seen)):
        assert theirs.std() > 0.02
        # SegNet: where two pixels of a window are equal but for rounding, another may win
        assert (np.abs(ours - theirs) > 1e-4).mean() <= (0 if build is do_unet else 0.005)
    for ours, theirs in zip(before, model.get_weights()):
        np.testing.assert_array_equal(ours, theirs)


def _planes(model: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    found = model.predict_on_batch(images)
    return found if isinstance(found, list) else [found]

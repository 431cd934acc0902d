"The fast batch normalisation is Keras's: outputs, gradients and moving statistics."

import numpy as np
import pytest

from bloodcount.models import BatchNormalization, keras

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

"Losses and metrics: the scores of bloodcount.evaluate, on both backends, with finite gradients."

import sys

import numpy as np
import pytest
from backends import numbers_elsewhere, write_numbers

from bloodcount import evaluation
from bloodcount.losses import LOSSES, METRICS, THRESHOLDS
from bloodcount.networks import keras

FUNCTIONS = {**METRICS, **{f"{name} loss": loss for name, loss in LOSSES.items()}}


def batch(share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Truth with this share of foreground, and probabilities from 0 to 1, both ends included."
    rng = np.random.default_rng(seed)
    truth = (rng.random((3, 20, 24, 1)) < share).astype(np.float32)
    predicted = rng.random(truth.shape).astype(np.float32)
    predicted[0, :10] = rng.choice(np.float32([0, *THRESHOLDS, 1]), (10, 24, 1))
    return truth, predicted


NOTHING, ALL = np.zeros((2, 8, 8, 1), np.float32), np.ones((2, 8, 8, 1), np.float32)
HALF = (np.arange(128) % 2).astype(np.float32).reshape(2, 8, 8, 1)
PAIRS = {
    "random": batch(0.3),
    "rare": batch(0.01),
    "no truth": batch(0),
    **{
        f"{t} truth, {p} predicted": (truth, predicted)
        for t, truth in (("no", NOTHING), ("full", ALL), ("half", HALF))
        for p, predicted in (("no", NOTHING), ("full", ALL), ("half", HALF), ("0.5", ALL / 2))
    },
}
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def gradient(loss, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    "Of the loss by the prediction."
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(lambda p: loss(truth, p))(predicted))
    import tensorflow as tf

    predicted = tf.Variable(predicted)
    with tf.GradientTape() as tape:
        value = loss(truth, predicted)
    return tape.gradient(value, predicted).numpy()


def numbers() -> dict[str, np.ndarray]:
    "All values and all gradients of the pairs above."
    found = {}
    for pair, (truth, predicted) in PAIRS.items():
        for name, function in FUNCTIONS.items():
            found[f"{pair}: {name}"] = np.asarray(function(truth, predicted))
        for name, loss in LOSSES.items():
            found[f"{pair}: gradient of {name}"] = gradient(loss, truth, predicted)
    return found


@each_pair
def test_metrics_are_the_pixel_scores(pair):
    truth, predicted = pair
    expected = evaluation.pixel_scores(predicted, truth > 0)
    found = {name: float(metric(truth, predicted)) for name, metric in METRICS.items()}
    assert found == pytest.approx({name: expected[name] for name in METRICS}, rel=1e-5, abs=1e-7)
    losses = {name: float(loss(truth, predicted)) for name, loss in LOSSES.items()}
    assert losses["mse"] == pytest.approx(expected["loss"], rel=1e-5)
    assert losses["dice"] == pytest.approx(1 - expected["soft_dice"], abs=1e-6)
    assert losses["tversky"] == pytest.approx(1 - expected["tversky"], abs=1e-6)
    focal = (1 - expected["tversky"]) ** 0.75
    assert losses["focal_tversky"] == pytest.approx(focal, rel=1e-5, abs=1e-5)
    assert losses["bce_dice"] == pytest.approx(losses["bce"] + losses["dice"])


def test_thresholds_are_the_papers():
    assert THRESHOLDS == evaluation.THRESHOLDS


def test_crossentropy_follows_its_definition():
    truth, p = PAIRS["random"]
    p = np.clip(p, 0.001, 0.999)
    wide = p.astype(float)
    expected = -np.where(truth > 0, np.log(wide), np.log(1 - wide)).mean()
    assert float(LOSSES["bce"](truth, p)) == pytest.approx(expected, rel=1e-6)


@each_pair
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_and_point_the_right_way(name, pair):
    truth, predicted = pair
    slope = gradient(LOSSES[name], truth, predicted)
    assert np.isfinite(float(LOSSES[name](truth, predicted))) and np.isfinite(slope).all()
    assert (slope[truth > 0] <= 1e-9).all() and (slope[truth == 0] >= -1e-9).all()


def test_a_missed_pixel_costs_more_than_an_invented_one():
    missed, invented = HALF.copy(), HALF.copy()
    missed.flat[1], invented.flat[0] = 0, 1
    tversky = LOSSES["tversky"]
    assert float(tversky(HALF, missed)) > 2 * float(tversky(HALF, invented)) > 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_and_bool_are_taken(name):
    truth, predicted = PAIRS["random"]
    half = predicted.astype(np.float16)
    expected = float(FUNCTIONS[name](truth, half.astype(np.float32)))
    assert float(FUNCTIONS[name](truth > 0, half)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(3, 20, 24), (1, 20, 24, 1), (3, 20, 24, 3)])
def test_unequal_shapes_are_refused(name, shape):
    with pytest.raises(ValueError, match="cannot be compared"):
        FUNCTIONS[name](np.zeros(shape, np.float32), PAIRS["random"][1])


@pytest.mark.parametrize("name", LOSSES)
def test_saved_model_keeps_its_loss_and_metrics(name, tmp_path):
    truth, image = PAIRS["random"]
    model = keras.Sequential(
        [keras.Input((None, None, 1)), keras.layers.Conv2D(1, 1, activation="sigmoid", name="mask")]
    )
    metrics = list(METRICS.values())
    model.compile("sgd", LOSSES[name], metrics=metrics, run_eagerly=True)  # Tracing takes longest
    scores = model.evaluate(image, truth, batch_size=3, verbose=0, return_dict=True)
    expected = evaluation.pixel_scores(model.predict(image, verbose=0), truth > 0)
    assert {n: scores[n] for n in METRICS} == pytest.approx(
        {n: expected[n] for n in METRICS}, rel=1e-5, abs=1e-7
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.loss is LOSSES[name]
    assert again.evaluate(image, truth, batch_size=3, verbose=0, return_dict=True) == scores


@pytest.mark.slow
def test_equal_on_the_other_backend(tmp_path):
    here, there = numbers(), numbers_elsewhere(__file__, tmp_path)
    assert here.keys() == there.keys()
    for name in here:
        np.testing.assert_allclose(there[name], here[name], rtol=1e-5, atol=1e-7, err_msg=name)


if __name__ == "__main__":
    write_numbers(numbers(), sys.argv[1])

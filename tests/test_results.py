"Scores as one long table."

import numpy as np
import pandas as pd
import pytest

from bloodcount.evaluation import pixel_scores
from bloodcount.studies import results


def test_the_pooled_dice_is_that_of_all_pixels_together():
    rng = np.random.default_rng(5)
    shapes = {"large": (60, 80), "small": (20, 30), "missed": (30, 30), "empty": (10, 12)}
    truths = {name: rng.random(shape) < 0.2 for name, shape in shapes.items()}
    truths["empty"][:] = False
    found = {name: truth ^ (rng.random(truth.shape) < 0.1) for name, truth in truths.items()}
    found["missed"][:] = False
    scores = pd.DataFrame({n: pixel_scores(found[n], truths[n]) for n in shapes}).T
    sizes = pd.Series({name: truth.size for name, truth in truths.items()})
    f, t = (np.concatenate([part[n].ravel() for n in shapes]) for part in (found, truths))
    expected = 2 * (f & t).sum() / (f.sum() + t.sum())
    assert results.pooled_dice(scores, sizes) == pytest.approx(expected)
    nothing = pd.DataFrame([pixel_scores(np.zeros((4, 4)), np.zeros((4, 4)))])
    assert results.pooled_dice(nothing, pd.Series([16])) == 1

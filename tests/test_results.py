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


def test_results_read_back_are_as_they_were(tmp_path):
    "Parts of several notebooks have the same row numbers; no row may meet another's numbers."
    keys = {
        "table": "pixels",
        "model": "truth",
        "weights": "none",
        "cell": "rbc",
        "profile": "paper",
    }
    rows = [keys | {"quantity": "dice", "images": "test", "value": v, "n": 3} for v in (0.5, 0.25)]
    frame = pd.DataFrame(rows).reindex(columns=results.RESULTS)
    path = tmp_path / "results.csv"
    pd.concat([frame.head(1), frame.tail(1).set_axis([0])]).to_csv(path, index=False)
    read = results.typed(pd.read_csv(path, keep_default_na=False).set_axis([0, 0]))
    assert read["value"].tolist() == [0.5, 0.25] and read["n"].tolist() == [3, 3]
    assert read["paper"].isna().all() and (read["condition"] == "").all()

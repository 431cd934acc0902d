"Training images against test images, the agreement of counts, and other work."

import numpy as np
import pandas as pd
import pytest

from bloodcount.studies import held_out, protocol
from bloodcount.studies.figures import bland_altman_figure
from bloodcount.studies.results import AUTHORS_SEGNET, long_form, segnet_counts


@pytest.fixture
def run(index_run) -> protocol.Run:
    return index_run.by("bloodcount")


def test_the_authors_segnet_loses_on_held_out_images(run):
    "notes of the authors' result files: 95.19 and 90.16 by CHT, 82.7 and 56.0, 88.1 and 73.2."
    counts = segnet_counts("rbc_count")[0].assign(truth="rbc_count", **AUTHORS_SEGNET)
    results = held_out.held_out(run, counts)
    assert set(results["table"]) == {"held_out_rbc_count"}
    scored = results.set_index(["method", "quantity", "images"])["value"].sort_index()
    accuracy = scored.xs("count_accuracy", level="quantity").unstack()
    known = {"cht": (90.16, 95.19, 0.006), "ccl": (56.0, 82.7, 0.06), "edt": (73.2, 88.1, 0.06)}
    for method, (test, train, error) in known.items():
        expected = pytest.approx({"test": test, "train": train}, abs=error)
        assert accuracy.loc[method].to_dict() == expected
    difference = scored["cht"].xs("test-train", level="images")
    low, middle, high = (difference[f"count_accuracy_difference{e}"] for e in ("_low", "", "_high"))
    assert low < middle < high and np.isclose(middle, 90.16 - 95.19, atol=0.01)
    [row] = held_out.held_out_table(results[results["method"] == "cht"]).to_dict("records")
    assert (row["train"], row["test"]) == ("95.19 (10)", "90.16 (3)")


def made_up(run: protocol.Run) -> pd.DataFrame:
    "Counts of two networks: by a method that is right on training images, on test images, on both."
    real = run.data.index["rbc_count"].dropna()
    side = run.data.index.loc[real.index, "rbc_split"]

    def counts(weights: str, method: str, right: list[str]) -> pd.DataFrame:
        predicted = real.where(side.isin(right), real // 2)
        key = {
            "cell": "rbc",
            "method": method,
            "truth": "rbc_count",
            **run.by(weights).counted("rbc"),
        }
        return pd.DataFrame({"image": real.index, "predicted": predicted, **key})

    ours = [counts("bloodcount", "cht", ["test"]), counts("bloodcount", "edt", ["train"])]
    return pd.concat([*ours, counts("authors", "cht", ["train", "test"])], ignore_index=True)


def test_the_best_method_is_chosen_on_training_images_and_of_the_own_network(run):
    counts = made_up(run)
    results = held_out.held_out(run, counts)
    assert held_out.best_on_training(run, results, "rbc_count") == "edt"
    assert held_out.best_on_training(run.by("authors"), results, "rbc_count") == "cht"
    assert held_out.best_on_training(run, results, "wbc_count") == run.how("wbc").method
    best = held_out.best_counts(run, counts, results)
    assert len(best) == 13 and set(best["method"]) == {"edt"}
    train = best[best["split"] == "train"]
    assert (train["predicted"] == train["real"]).all()
    [mine, theirs] = held_out.related_table(run, results).tail(2).to_dict("records")
    assert (mine["by"], mine["images"]) == ("EDT", "3, held out")
    assert (theirs["by"], theirs["images"], theirs["percent"]) == ("CHT", "3, test split", "100.00")


def test_nothing_counted_makes_empty_tables(run):
    counts = pd.DataFrame({"image": ["Im037_0"], "predicted": 100, "cell": "rbc", "method": "cht"})
    counts = counts.assign(truth="rbc_count", **run.counted("rbc"))
    results = held_out.held_out(run, counts)
    own = held_out.best_counts(run, counts, results)
    assert held_out.held_out_table(results).empty
    assert held_out.agreement_by_cell(long_form(run, [])).empty
    related = held_out.related_table(run, results)
    quoted = {"the paper", *held_out.RELATED.values()}
    assert len(related) == 22 and set(related["work"]) == quoted, "nothing of ours was counted"
    figure = bland_altman_figure(own.iloc[:0], "")
    assert "No image here" in figure.texts[0].get_text()

"What the choice of parameters is worth: leads of one network over another, and parameters from other images."

import dataclasses

import numpy as np
import pandas as pd
import pytest

from bloodcount.studies import choices, held_out, protocol
from bloodcount.studies.results import long_form, value_of


@pytest.fixture
def tuned(monkeypatch):
    "Every network was tuned."
    monkeypatch.setattr(protocol, "read_counting", lambda folder: True)
    monkeypatch.setattr(protocol, "counting_for", lambda folder, published: published)


def counts_of(run: protocol.Run, weights: str, short: float) -> pd.DataFrame:
    "A network that finds a share of the red cells too few on test images, by every method."
    real = run.data.index["rbc_count"].dropna()
    test = run.data.index.loc[real.index, "rbc_split"] == "test"
    predicted = (real * np.where(test, 1 - short, 1)).round()
    key = {"cell": "rbc", "truth": "rbc_count", **run.by(weights).counted("rbc")}
    frame = pd.DataFrame({"image": real.index, "predicted": predicted, **key})
    return pd.concat([frame.assign(method=method) for method in run.how("rbc").count])


def test_a_lead_is_taken_image_by_image(index_run, tuned, monkeypatch):
    run = index_run
    monkeypatch.setattr(choices, "MAIN_TRUTH", {"rbc": "rbc_count"})
    counts = pd.concat([counts_of(run, "bloodcount", 0.1), counts_of(run, "authors", 0.3)])
    results = choices.head_to_head(run, counts, held_out.held_out(run, counts))
    assert set(results["table"]) == {"head_to_head_rbc_count"}
    best = results[results["condition"] == choices.BEST]
    lead, low, high = (value_of(best, q, "test") for q in ("lead", "lead_low", "lead_high"))
    assert lead == pytest.approx(20, abs=0.5) and low <= lead <= high and high - low < 2
    assert value_of(best, "lead", "train") == 0
    table = choices.head_to_head_table(run, results)
    assert (
        len(table) == 5 and set(table["n"]) == {"3"} and (table["ours - published"] > "+19").all()
    )


def test_what_is_near_is_one_step_away(index_run):
    counting = index_run.how("wbc")
    ways = choices.nearby("wbc", counting)
    assert ways[0] == counting and len(ways) == len({str(way) for way in ways}) > 8
    options = [way.count["watershed"] for way in ways]
    assert {o.at_least_one for o in options} == {True, False}
    assert len({o.min_area for o in options}) == len({o.min_height for o in options}) == 3
    assert {way.threshold for way in ways} == {counting.threshold}


def test_parameters_from_other_images(index_run):
    "The tuned way is right; then one that is right on test images alone, which the other half must find."
    run, truth = index_run, "wbc_count"
    chosen = protocol.groups(run.data, truth)
    images = chosen["train"] + chosen["test"]
    real = run.data.index.loc[images, truth].to_numpy()
    right = pd.DataFrame({0: real, 1: 2 * real}, images)
    results = choices.resplit(run, truth, right)
    assert [
        value_of(results, f"count_accuracy{end}", "test") for end in ("", "_low", "_tuned")
    ] == [100] * 3
    test = np.isin(images, chosen["test"])
    late = pd.DataFrame({0: real, 1: np.where(test, real, 2 * real)}, images)
    late[0] = np.where(test, 2 * real, real)
    results = choices.resplit(run, truth, late)
    assert value_of(results, "count_accuracy", "test") < 50, (
        "most images say that the first is better"
    )
    assert choices.resplit(run, truth, right.iloc[:1]).empty


def test_the_rule_alone_is_switched_off(index_run):
    run, truth = index_run, "wbc_count"
    counting = run.how("wbc")
    assert counting.count["watershed"].at_least_one
    off = dataclasses.replace(counting.count["watershed"], at_least_one=False)
    place = [way.count["watershed"] for way in choices.nearby("wbc", counting)].index(off)
    images = protocol.groups(run.data, truth)["test"]
    real = run.data.index.loc[images, truth]
    counts = pd.DataFrame({i: real * (2 if i == place else 1) for i in range(18)}, images)
    assert value_of(choices.rule_off(run, truth, counts), "count_accuracy", "test") == 0
    table = choices.resplit_table(
        pd.concat([choices.resplit(run, truth, counts), choices.rule_off(run, truth, counts)])
    )
    assert len(table) == 1 and table["as tuned, but without ‡"].tolist() == ["0.00"]
    assert choices.resplit_table(choices.rule_off(run, truth, counts)).empty, "too few to split"


def test_nothing_to_show(index_run):
    none = long_form(index_run, [])
    assert choices.head_to_head_table(index_run, none).empty and choices.resplit_table(none).empty

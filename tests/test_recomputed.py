"""Every aggregate of results.csv follows from the counts of single images beside it: computed here once more, by other code."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from bloodcount.settings import PROJECT, SECOND
from bloodcount.studies.other_smears import KEPT_OUT, SETS

FIGURES = PROJECT / "figures"
INDEX = pd.read_csv(PROJECT / "data" / "all-idb1-index.csv").set_index("image")
REPEAT = "Im093_0"  # The same picture as Im108_0, of which more is known
KEY = ["table", "model", "weights", "recipe", "cell", "counting", "method", "condition", "level"]
WHO = KEY[1:7]


def read(path) -> pd.DataFrame:
    frame = pd.read_csv(path, keep_default_na=False)
    numbers = [name for name in ("level", "n", "value", "paper") if name in frame]
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    return frame.fillna({"level": -1.0})


RESULTS = read(FIGURES / "results.csv")
IMAGES = pd.concat(read(path) for path in sorted((FIGURES / "numbers").glob("counts_*.csv")))
BY_KEY = dict(list(IMAGES.groupby([*KEY, "quantity"])))


def truth_of(table: str, cell: str) -> str:
    "The column of the index that a table's counts are held against."
    if cell == "plt":
        published = "plt_count" in table or table in ("ceilings_plt_published", "thresholds")
        return "plt_count" if published else "plt_mask_components"
    return f"{cell}_count"


def members(truth: str, group: str) -> list[str]:
    "The images of a group, each picture once."
    cell = truth.partition("_")[0]
    known = INDEX[INDEX[truth].notna()]
    if group in ("train", "test"):
        chosen = known[known[f"{cell}_split"] == group]
    elif group in INDEX.index:
        return [group]
    else:
        masked, benchmark = known[known[f"{cell}_mask"] == 1], known[known["rbc_count"].notna()]
        [chosen] = [f for f in (known, masked, benchmark) if f"all{len(f)}" == group][:1]
    return [name for name in chosen.index if name != REPEAT]


def counts_of(row) -> pd.Series | None:
    "What a row was made of: the counts of single images, from its own table or from that of all counts."
    own = tuple(getattr(row, name) for name in KEY)
    shared = ("counting_" + truth_of(row.table, row.cell), *own[1:-2], "", -1.0)
    images = members(truth_of(row.table, row.cell), row.images)
    found = [BY_KEY.get((*key, "count")) for key in (own, shared)]
    if (row.model, row.weights) == ("segnet", "authors"):  # Two files, the one of 13 images first
        found = [BY_KEY.get((*shared[:-1], size, "count")) for size in (13.0, float(len(INDEX)))]
        found += [part for key, part in BY_KEY.items() if key[:8] == shared[:8]]
    for part in found:
        if part is not None and set(images) <= set(part["image"]):
            return part.drop_duplicates("image").set_index("image")["value"].loc[images]
    return None


def accuracy(counted: np.ndarray, real: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(real > 0, np.abs(counted - real) / real, (counted > 0).astype(float))
    return 100 * np.clip(1 - share, 0, None)


def interval(values: np.ndarray, share: float) -> float:
    "An end of the bootstrap interval of a mean."
    if len(values) < 2:
        return math.nan
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    return float(np.quantile(values[drawn].mean(axis=1), share))


def scores(counted: np.ndarray, real: np.ndarray) -> dict[str, float]:
    "The scores of one group of images."
    error, some = counted - real, real > 0
    each = accuracy(counted, real)
    spread = error.std(ddof=1) if len(error) > 1 else math.nan
    both = np.cov(counted, real, ddof=0)
    apart = (both[0, 0] + both[1, 1] + error.mean() ** 2) if len(error) > 1 else 0
    return {
        "count_accuracy": each.mean(),
        "count_accuracy_low": interval(each, 0.025),
        "count_accuracy_high": interval(each, 0.975),
        "mae": np.abs(error).mean(),
        "mape": 100 * (np.abs(error[some]) / real[some]).mean() if some.any() else math.nan,
        "bias": 100 * error.sum() / real.sum() if real.sum() else math.nan,
        "ba_bias": error.mean(),
        "ba_low": error.mean() - 1.96 * spread,
        "ba_high": error.mean() + 1.96 * spread,
        "ccc": 2 * both[0, 1] / apart if apart else math.nan,
        "poisson_share": (np.abs(error) <= 2 * np.sqrt(real)).mean(),
    }


COUNTED = tuple(scores(np.ones(3), np.ones(3)))
TABLES = sorted(
    t
    for t in set(RESULTS["table"])
    if t.startswith(("counting_", "ceilings_", "combining_", "baseline_counts_"))
)
TABLES += ["agreement", "thresholds", "magnification"]


@pytest.mark.parametrize("table", TABLES)
def test_scores_of_counts_follow_from_the_counts_of_single_images(table):
    checked, known = 0, {}
    part = RESULTS[
        (RESULTS["table"] == table) & RESULTS["quantity"].isin(COUNTED) & RESULTS["value"].notna()
    ]
    for row in part.itertuples():
        where = tuple(getattr(row, name) for name in (*KEY, "images"))
        if where not in known:
            counted = counts_of(row)
            assert counted is not None, f"no counts for {where}"
            real = INDEX.loc[counted.index, truth_of(table, row.cell)].to_numpy(float)
            known[where] = scores(counted.to_numpy(float), real)
            assert row.n == len(counted), where
        assert row.value == pytest.approx(known[where][row.quantity], abs=2e-6), (
            where,
            row.quantity,
        )
        checked += 1
    assert checked > 10 or table in ("agreement", "thresholds")


def test_scores_of_cells_follow_from_the_matches_of_single_images():
    part = RESULTS[
        RESULTS["quantity"].isin(["f1_50", "precision_50", "recall_50"])
        & (RESULTS["table"] != "overlap")
    ]
    for row in part.itertuples():
        key, images = (
            tuple(getattr(row, name) for name in KEY),
            members(truth_of(row.table, row.cell), row.images),
        )
        tp, fp, fn = (
            BY_KEY[(*key, q)].drop_duplicates("image").set_index("image")["value"].loc[images].sum()
            for q in ("tp", "fp", "fn")
        )
        expected = {
            "f1_50": 2 * tp / (2 * tp + fp + fn),
            "precision_50": tp / max(tp + fp, 1),
            "recall_50": tp / (tp + fn),
        }
        assert row.value == pytest.approx(expected[row.quantity], abs=2e-6), (key, row.quantity)
    assert len(part) > 100


def sums(row, quantity: str, side: str) -> float:
    "Of a class of outlined cells over the images of a side."
    key = tuple(getattr(row, name) for name in KEY)
    part = BY_KEY.get((*key, quantity))
    return (
        0
        if part is None
        else part.loc[part["image"].map(INDEX["rbc_split"]) == side, "value"].sum()
    )


def test_recall_by_class_follows_from_the_cells_of_single_images():
    part = RESULTS[(RESULTS["table"] == "overlap") & (RESULTS["condition"] != "")]
    assert len(part) > 100
    for row in part.itertuples():
        outlined, found = (sums(row, quantity, row.images) for quantity in ("outlined", "found"))
        expected = {"cells": outlined, "recall_50": found / outlined if outlined else math.nan}
        assert row.value == pytest.approx(expected[row.quantity], abs=2e-6, nan_ok=True), row


def test_differences_follow_from_the_counts_of_both_sides():
    held_out = RESULTS[RESULTS["table"].str.startswith("held_out_")]
    assert set(held_out["images"]) == {"train", "test", "test-train"}
    for row in held_out[held_out["quantity"] == "count_accuracy"].itertuples():
        counted = counts_of(row)
        real = INDEX.loc[counted.index, truth_of(row.table, row.cell)].to_numpy(float)
        assert row.value == pytest.approx(accuracy(counted.to_numpy(float), real).mean(), abs=2e-6)
    for _, part in held_out.groupby(KEY):
        value = part.set_index(["quantity", "images"])["value"]
        lost = value["count_accuracy", "test"] - value["count_accuracy", "train"]
        assert value["count_accuracy_difference", "test-train"] == pytest.approx(lost, abs=3e-6)


def test_drifts_follow_from_the_counts_of_single_images():
    part = RESULTS[
        RESULTS["table"].isin(["colour", "robustness"])
        & (RESULTS["quantity"] == "drift")
        & RESULTS["value"].notna()
    ]
    assert len(part) > 50
    for row in part.itertuples():
        key = tuple(getattr(row, name) for name in KEY)
        here, before = (
            BY_KEY[(*k, "count")]["value"].sum() for k in (key, (*key[:-2], "unchanged", 0.0))
        )
        assert row.value == pytest.approx(100 * (here / before - 1), abs=2e-6)


def test_leads_are_differences_of_the_same_images():
    part = RESULTS[RESULTS["table"].str.startswith("head_to_head_") & (RESULTS["method"] != "")]
    assert len(part) > 50
    for (table, cell, method, images), one in part.groupby(["table", "cell", "method", "images"]):
        value, truth = one.set_index("quantity")["value"], truth_of(table, cell)
        both = []
        for weights, recipe in (("bloodcount", one["recipe"].iloc[0]), ("authors", "")):
            found = IMAGES[
                (IMAGES["table"] == f"counting_{truth}")
                & (IMAGES["weights"] == weights)
                & (IMAGES["recipe"] == recipe)
            ]
            found = found[
                (found["model"] == "do_unet")
                & (found["method"] == method)
                & (found["quantity"] == "count")
            ]
            found = (
                found[found["counting"] == "tuned"]
                .set_index("image")["value"]
                .loc[members(truth, images)]
            )
            both.append(
                accuracy(found.to_numpy(float), INDEX.loc[found.index, truth].to_numpy(float))
            )
        lead = both[0] - both[1]
        expected = [both[0].mean(), lead.mean(), interval(lead, 0.025), interval(lead, 0.975)]
        got = [value[name] for name in ("count_accuracy", "lead", "lead_low", "lead_high")]
        assert got == pytest.approx(expected, abs=2e-6, nan_ok=True), (table, method, images)


def test_platelets_found_follow_from_the_matches_of_single_images():
    part = RESULTS[RESULTS["quantity"].isin(["f1_30", "precision_30", "recall_30"])]
    for row in part.itertuples():
        key = tuple(getattr(row, name) for name in KEY)
        tp, fp, fn = (
            one.loc[one["image"].isin(members("plt_mask_components", row.images)), "value"].sum()
            for one in (BY_KEY[(*key, quantity)] for quantity in ("tp", "fp", "fn"))
        )
        expected = {
            "f1_30": 2 * tp / (2 * tp + fp + fn),
            "precision_30": tp / max(tp + fp, 1),
            "recall_30": tp / (tp + fn),
        }
        assert row.value == pytest.approx(expected[row.quantity], abs=2e-6), key


def test_what_is_found_elsewhere_follows_from_single_fields():
    part = RESULTS[(RESULTS["table"] == "elsewhere")]
    second = IMAGES[(IMAGES["table"] == "elsewhere") & (IMAGES["weights"] == SECOND)]
    kept_out = set(second["image"])  # These weights have numbers of such fields alone
    part = part[part["quantity"].isin(["found_share", "split_share", "right_share"])]
    assert set(part["images"]) == {of + rest for of in SETS for rest in ("", KEPT_OUT)}
    for row in part.itertuples():
        key, numbers = tuple(getattr(row, name) for name in KEY), {}
        of = row.images.removesuffix(KEPT_OUT)
        for quantity in ("outlined", "found", "split", "count"):
            one = BY_KEY[(*key, quantity)].set_index("image")["value"]
            one = one[one.index.str.startswith(f"{of}/")]
            numbers[quantity] = one if of == row.images else one[one.index.isin(kept_out)]
        marked = numbers["outlined"].sum()
        expected = {
            "found_share": numbers["found"].sum() / marked,
            "split_share": numbers["split"].sum() / marked,
            "right_share": (numbers["count"] == numbers["outlined"]).mean(),
        }
        assert row.n == len(numbers["found"])
        assert row.value == pytest.approx(expected[row.quantity], abs=2e-6), (key, row.images)


def test_the_star_networks_readme_says_the_results():
    told = (PROJECT / "bloodcount" / "weights" / "stars" / "README.md").read_text(encoding="utf-8")
    own = RESULTS[(RESULTS["model"] == "stardist") & (RESULTS["weights"] == "bloodcount")]

    def value(table: str, quantity: str, images: str, digits: int) -> str:
        part = own[(own["table"] == table) & (own["quantity"] == quantity)]
        (found,) = part.loc[part["images"] == images, "value"]
        return f"{found:.{digits}f}"

    for images, n in (("train", 10), ("test", 3)):
        scores = [
            value("counting_rbc_count", f"{q}_50", images, 2) for q in ("f1", "precision", "recall")
        ]
        scores.append(value("counting_rbc_count", "count_accuracy", images, 1))
        assert f"| {images} | {n} | {' | '.join(scores)} |" in told
    for table in ("counting_wbc_count", "counting_plt_mask_components"):
        train, test = (value(table, "count_accuracy", images, 1) for images in ("train", "test"))
        assert re.search(rf"\| {train} \(\d+( images)?\) \| {test} \(\d+\) \|", told), table

"""Scores against stardist's own and against the plain definitions."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from stardist_golden import CASES, GOLDEN, THRESHOLDS, checksum, label_pair

from bloodcount import evaluation
from bloodcount.data import polygon_mask
from bloodcount.evaluation import instances_from_labels as instances

golden = json.loads(GOLDEN.read_text())
# stardist computes IoUs in float32, so its means of IoUs are good to seven digits.
SINGLE = ["mean_true_score", "mean_matched_score", "panoptic_quality"]


def assert_as_stardist(ours: pd.DataFrame, theirs: list[dict]) -> None:
    theirs = pd.DataFrame(theirs).drop(columns="by_image", errors="ignore")
    assert set(ours) == set(theirs) and (ours["criterion"] == "iou").all()
    for field in theirs.columns.drop("criterion"):
        tolerance = 1e-6 if field in SINGLE else 1e-9
        np.testing.assert_allclose(
            ours[field], theirs[field], atol=tolerance, rtol=0, err_msg=field
        )


def scored(name: str) -> pd.DataFrame:
    truth, predicted = label_pair(*CASES[name])
    return evaluation.matching(instances(truth), instances(predicted), THRESHOLDS)


@pytest.mark.parametrize("name", CASES)
def test_matching_is_stardists(name):
    checksums = [checksum(labels) for labels in label_pair(*CASES[name])]
    assert checksums == golden["labels"][name], "not the label images that stardist scored"
    assert_as_stardist(scored(name), golden["matching"][name])


def test_pooled_matching_is_stardists():
    pooled = evaluation.pool_matching(map(scored, CASES))
    assert_as_stardist(pooled, golden["matching_dataset"])


def test_permuted_labels_score_the_same():
    truth, predicted = label_pair(*CASES["crowded"])
    numbers = np.random.default_rng(0).permutation(np.arange(1, 1000))
    permuted = np.concatenate([[0], numbers])[predicted]
    before, after = (
        evaluation.matching(instances(truth), instances(p)) for p in (predicted, permuted)
    )
    pd.testing.assert_frame_equal(before, after)


def test_iou_is_that_of_the_masks_where_instances_overlap():
    rng = np.random.default_rng(0)
    shape, centre, radius = (70, 90), rng.uniform(-5, 95, (15, 2)), rng.uniform(0.5, 25, 15)
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack([np.sin(angle), np.cos(angle)], 1)
    polygons = [(c + r * ring).astype(np.float32) for c, r in zip(centre, radius)]
    row, col = np.indices(shape)
    discs = [np.hypot(row - r, col - c) <= size for (r, c), size in zip(centre, radius)]
    drawn = [polygon_mask(polygon, shape) for polygon in polygons]
    iou = evaluation.iou_matrix(
        evaluation.instances_from_polygons(polygons, shape),
        evaluation.instances_from_discs(centre, radius, shape),
    )
    plain = [[(a & b).sum() / max((a | b).sum(), 1) for b in discs] for a in drawn]
    np.testing.assert_allclose(iou, plain)
    assert min(d.sum() for d in discs) == 0 < max(d.sum() for d in discs)


def test_many_instances_do_not_wrap():
    labels = np.arange(1, 70_001, dtype=np.int32).reshape(700, 100)
    rows = instances(labels)
    assert rows.shape == (70_000, 70_000) and rows.sum() == 70_000


def test_instances_of_unequal_images_are_refused():
    with pytest.raises(ValueError, match="different sizes"):
        evaluation.matching(instances(np.eye(3, dtype=int)), instances(np.eye(4, dtype=int)))


def test_pixel_scores_follow_their_definitions():
    rng = np.random.default_rng(0)
    truth, p = rng.random((37, 41)) < 0.3, rng.random((37, 41)).astype(np.float32)
    p[:5] = np.float32(0.55)  # On a threshold is not above it
    scores = evaluation.pixel_scores(p, truth, threshold=0.4)
    found, wide = p > 0.4, p.astype(float)
    ious = [
        (found & truth).sum() / (found | truth).sum()
        for found in (p > t for t in evaluation.THRESHOLDS)
    ]
    hit, missed, invented = (wide * truth).sum(), ((1 - wide) * truth).sum(), (wide * ~truth).sum()
    expected = {
        "accuracy": (found == truth).mean(),
        "dice": 2 * (found & truth).sum() / (found.sum() + truth.sum()),
        "iou": (found & truth).sum() / (found | truth).sum(),
        "precision": truth[found].mean(),
        "recall": found[truth].mean(),
        "mean_iou": np.mean(ious),
        "soft_dice": (2 * hit + 1) / (wide.sum() + truth.sum() + 1),
        "tversky": (hit + 1) / (hit + 0.7 * missed + 0.3 * invented + 1),
        "loss": ((wide - truth) ** 2).mean(),
        "all_background_accuracy": (~truth).mean(),
    }
    assert scores == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("wrong", [np.full((4, 4), np.nan), np.full((4, 4), 255), np.zeros((4, 5))])
def test_what_is_no_probability_map_is_refused(wrong):
    with pytest.raises(ValueError):
        evaluation.pixel_scores(wrong, np.ones((4, 4), bool))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("real", [[7], [0], [5, 5, 5], [0, 0], [0, 3, 800]])
def test_agreement_never_warns(real):
    for predicted in (real, np.add(real, 2), np.zeros(len(real))):
        scores = evaluation.agreement(predicted, real)
        assert scores["n"] == len(real) and scores["mae"] >= 0
        assert np.isnan(scores["bias"]) == (sum(real) == 0) == np.isnan(scores["mape"])
        assert np.isnan(scores["ba_low"]) == (len(real) == 1)


def test_counts_that_are_missing_are_refused():
    for predicted, real in [([1, np.nan], [1, 2]), ([1], [1, 2]), ([], [])]:
        with pytest.raises(ValueError, match="count|Count"):
            evaluation.agreement(predicted, real)


def test_bootstrap_is_scipys_but_for_the_draws():
    rng = np.random.default_rng(3)
    pair = rng.poisson(40, 60), rng.poisson(40, 60)
    ours = evaluation.bootstrap(pair, evaluation.pooled_bias, resamples=20_000)
    theirs = stats.bootstrap(
        pair, evaluation.pooled_bias, n_resamples=20_000, paired=True, method="percentile", rng=1
    )
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.15)


def test_summary_takes_whole_groups_only():
    counts = pd.DataFrame({"image": list("abc"), "real": [10, 20, 0], "predicted": [9, 22, 0]})
    counts = counts.assign(cell="plt", model="truth", weights="none", method="ccl")
    table = evaluation.summarise(
        counts, {"all": "abc", "train": "ab", "more": "abcd"}, resamples=50
    )
    values = table.set_index(["images", "quantity"])["value"]
    assert set(table["images"]) == {"all", "train"}
    assert values["all", "count_accuracy"] == pytest.approx((90 + 90 + 100) / 3)
    assert values["train", "n"] == 2 and values["all", "bias"] == pytest.approx(100 / 30)
    assert list(table) == [*evaluation.BY, "images", "quantity", "value", "low", "high"]
    with pytest.raises(ValueError, match="twice"):
        evaluation.summarise(pd.concat([counts, counts]), {"all": "abc"})

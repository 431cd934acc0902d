"""Scores against stardist's own and against the plain definitions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from stardist.matching import matching, matching_dataset

from bloodcount import evaluation
from bloodcount.data import polygon_mask
from bloodcount.evaluation import instances_from_labels as instances

SHAPE = (160, 200)
THRESHOLDS = (0.1, 0.3, 0.5, 0.6, 0.75, 0.9)
# Seed, true discs, those missed and those invented, how far the others move, px.
CASES = {
    "apart": (1, 12, 0, 0, 1.0),
    "crowded": (2, 60, 5, 8, 3.0),
    "far off": (12, 60, 0, 0, 12.0),
    "few found": (4, 30, 25, 2, 2.0),
    "too many": (5, 10, 1, 40, 2.0),
    "nothing there": (6, 0, 0, 7, 0.0),
    "nothing found": (7, 7, 7, 0, 0.0),
    "nothing at all": (8, 0, 0, 0, 0.0),
}


def label_pair(
    seed: int, n: int, missed: int, invented: int, move: float
) -> tuple[np.ndarray, np.ndarray]:
    "True and predicted label image, discs painted over each other, numbers permuted and with gaps."
    rng = np.random.default_rng(seed)
    row, col = np.indices(SHAPE)

    def paint(discs: np.ndarray) -> np.ndarray:
        labels = np.zeros(SHAPE, np.int32)
        for number, (r, c, radius) in zip(3 * rng.permutation(len(discs)) + 1, discs):
            labels[(row - r) ** 2 + (col - c) ** 2 <= radius**2] = number
        return labels

    def some(k: int) -> np.ndarray:
        return rng.uniform((0, 0, 6), (*SHAPE, 14), (k, 3))

    truth, extra = some(n), some(invented)
    found = truth[missed:] + rng.normal(0, 1, (n - missed, 3)) * (move, move, move / 4)
    return paint(truth), paint(np.concatenate([found, extra]))


# stardist computes IoUs in float32, so its means of IoUs are good to seven digits.
SINGLE = ["mean_true_score", "mean_matched_score", "panoptic_quality"]


def assert_as_stardist(ours: pd.DataFrame, theirs: Sequence[tuple]) -> None:
    theirs = pd.DataFrame([score._asdict() for score in theirs]).drop(
        columns="by_image", errors="ignore"
    )
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
    assert_as_stardist(scored(name), matching(*label_pair(*CASES[name]), thresh=THRESHOLDS))


def test_pooled_matching_is_stardists():
    pooled = evaluation.pool_matching(map(scored, CASES))
    pairs = [label_pair(*case) for case in CASES.values()]
    theirs = matching_dataset(*zip(*pairs), thresh=THRESHOLDS, show_progress=False)
    assert_as_stardist(pooled, theirs)


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

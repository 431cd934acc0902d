"Boxes and points: which cell is meant, and what is learnt where network and marks disagree."

import numpy as np
import pytest

from bloodcount.scale import AnyScale
from bloodcount.settings import CELLS
from bloodcount.star_marks import (
    NOTHING,
    PIECE,
    UNKNOWN,
    box_iou,
    kinds_by_boxes,
    kinds_by_points,
    marked_truth,
    owners,
)
from bloodcount.star_truth import PLATELET, RED, WHITE
from bloodcount.stars import Stars, load_stars
from bloodcount.synthetic import synthetic_smear

SHAPE = (200, 400)


def cells(*told: tuple[int, int, int, float]) -> Stars:
    "Discs: column of the middle, radius (px), kind, score; all in row 100."
    col, radius, kind, score = (np.array(each) for each in zip(*told))
    return Stars(
        np.stack([np.full(len(col), 100), col], axis=1).astype(np.float32),
        np.repeat(np.float32(radius)[:, None], 32, axis=1),
        score.astype(np.float32),
        kind - 1,
    )


def box(col: float, radius: float) -> list[float]:
    return [100 - radius, col - radius, 100 + radius, col + radius]


def test_what_boxes_share():
    a = np.array([[0, 0, 10, 10], [0, 0, 4, 4]], float)
    shared = box_iou(a, np.array([[0, 5, 10, 15], [20, 20, 30, 30]], float))
    assert shared == pytest.approx(np.array([[1 / 3, 0], [0, 0]]))


def test_the_closest_pair_goes_first():
    assert owners(np.array([[0.5, 0.9], [0.4, 0.8], [0.2, 0.1]])).tolist() == [1, 0, -1]
    assert owners(np.zeros((2, 0))).tolist() == [-1, -1]


def test_a_box_says_what_a_cell_is():
    stars = cells((50, 18, WHITE, 0.9), (150, 18, RED, 0.9), (250, 5, RED, 0.9))
    boxes = np.array([box(50, 18), box(150, 20), box(250, 5), box(350, 18)])
    kinds = np.array([RED, WHITE, PLATELET, WHITE])
    told, missed = kinds_by_boxes(stars, boxes, kinds, SHAPE)
    assert told.tolist() == [RED, WHITE, PLATELET]
    assert missed.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    "kind, radius, score, whole, told",
    [
        (RED, 18, 0.9, ("wbc", "plt"), RED),
        (RED, 18, 0.5, ("wbc", "plt"), UNKNOWN),
        (RED, 18, 0.9, ("rbc", "wbc"), UNKNOWN),
        (WHITE, 18, 0.9, ("wbc",), RED),
        (WHITE, 18, 0.9, ("rbc", "wbc"), UNKNOWN),
        (WHITE, 40, 0.9, ("wbc",), UNKNOWN),  # Too large for a red cell
        (WHITE, 18, 0.9, (), UNKNOWN),
        (PLATELET, 5, 0.9, ("plt",), NOTHING),
        (PLATELET, 5, 0.9, ("wbc",), UNKNOWN),
    ],
)
def test_a_cell_without_a_box(kind, radius, score, whole, told):
    stars = cells((100, radius, kind, score))
    nothing = np.zeros((0, 4)), np.zeros(0, int)
    assert kinds_by_boxes(stars, *nothing, SHAPE, whole)[0].tolist() == [told]


def test_a_second_cell_in_a_box_is_a_piece():
    stars = cells((100, 18, RED, 0.7), (104, 9, RED, 0.9), (104, 4, PLATELET, 0.9))
    told, _ = kinds_by_boxes(stars, np.array([box(100, 18)]), np.array([RED]), SHAPE)
    assert told.tolist() == [RED, PIECE, UNKNOWN]


def test_a_point_makes_a_red_cell():
    stars = cells(
        (50, 18, WHITE, 0.5), (150, 18, WHITE, 0.9), (250, 18, RED, 0.9), (350, 5, PLATELET, 1)
    )
    told = kinds_by_points(stars, np.array([[100, 60], [100, 350]]), SHAPE)
    assert told.tolist() == [RED, UNKNOWN, RED, UNKNOWN]


@pytest.fixture(scope="module")
def smear():
    return synthetic_smear(seed=3, shape=(240, 320), rbc=12, wbc=0, plt=0, overlap=0)


def test_what_is_learnt_of_a_field(smear):
    finder = AnyScale(load_stars(), diameter=68)
    found = finder(smear.image)["rbc"]
    row, col = found.centre[0].tolist()
    empty = [2, 2, 40, 40] if (found.labels[2:40, 2:40] == 0).all() else [200, 280, 238, 318]
    marks = {
        "rbc": np.array([[row - 30, col - 30, row + 30, col + 30]]),
        "wbc": np.array([empty], float),
    }
    truth = marked_truth("a", smear.image, marks, finder, whole=("rbc", "wbc"))
    assert len(truth.numbers(RED)) == 1 and len(truth.numbers(WHITE)) == 1
    assert truth.whole == {"rbc", "wbc"} and truth.zoom == pytest.approx(37 / 68)
    here = np.rint(np.array([row, col]) * truth.zoom).astype(int)
    assert truth.kinds[truth.labels[tuple(here)]] == RED
    others = np.rint(found.centre[1:] * truth.zoom).astype(int)
    assert (truth.labels[others[:, 0], others[:, 1]] <= 0).all()
    assert (truth.labels < 0).any(), "cells that nobody marked are not to be learnt"


def test_what_is_learnt_of_points(smear):
    finder = AnyScale(load_stars(), diameter=68)
    found = finder(smear.image)["rbc"]
    there = np.c_[found.centre, found.centre].astype(float)
    nowhere = np.argwhere(np.pad(found.labels, 40, constant_values=1)[40:-40, 40:-40] == 0)[0]
    points = np.vstack([there, np.tile(nowhere, 2)])
    truth = marked_truth("a", smear.image, {"rbc": points}, finder, points=True)
    assert len(truth.numbers(RED)) == len(found)
    place = np.rint(nowhere * truth.zoom).astype(int)
    assert truth.labels[tuple(place)] != 0, "a point without a cell is not background"
    assert set(CELLS) & truth.whole == {"rbc"}

"""Names, colours and numbers, and the overlay: what is drawn is where the cells are."""

import itertools

import matplotlib
import numpy as np
import pytest

from bloodcount.counting import COUNTERS, cells_from_discs, cells_from_labels
from bloodcount.drawing import (
    CELL_COLOURS,
    CELL_TITLES,
    LINE_COLOURS,
    METHOD_COLOURS,
    METHOD_TITLES,
    number,
    outlines,
    overlay,
)
from bloodcount.settings import CELLS

GREY = np.full((120, 160, 3), 128, np.uint8)
# Vienot, Brettel and Mollon (1999, doi 10.1002/(SICI)1520-6378(199908)24:4), linear RGB, protan and deutan.
SEEN_BY = {
    "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    "all": np.eye(3),
}


def discs(*places: tuple[int, int, int]) -> np.ndarray:
    "A label image of discs: row, col, radius."
    labels = np.zeros(GREY.shape[:2], np.int32)
    rows, cols = np.mgrid[: labels.shape[0], : labels.shape[1]]
    for i, (row, col, radius) in enumerate(places):
        labels[np.hypot(rows - row, cols - col) <= radius] = i + 1
    return labels


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in matplotlib.colors.to_rgb(colour))


def where(picture: np.ndarray, colour: str) -> np.ndarray:
    return (picture == rgb(colour)).all(axis=2)


def lab(colour: str, seen_by: str) -> np.ndarray:
    "CIE Lab of a colour as one sees it."
    from skimage.color import rgb2lab

    light = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(SEEN_BY[seen_by]) @ linear, 0, 1)
    light = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(light[None, None])[0, 0]


def test_every_method_and_cell_type_has_a_name_and_a_colour_of_its_own():
    assert COUNTERS.keys() <= METHOD_TITLES.keys() == METHOD_COLOURS.keys()
    assert CELL_COLOURS.keys() == set(CELLS) and CELL_COLOURS.keys() <= CELL_TITLES.keys()
    colours = [*METHOD_COLOURS.values(), *CELL_COLOURS.values()]
    assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("seen_by", SEEN_BY)
@pytest.mark.parametrize(
    "palette", (METHOD_COLOURS, CELL_COLOURS, dict(enumerate(LINE_COLOURS[:4])))
)
def test_colours_of_one_kind_can_be_told_apart(palette, seen_by):
    for one, other in itertools.combinations(palette.values(), 2):
        assert np.linalg.norm(lab(one, seen_by) - lab(other, seen_by)) > 15, (one, other)


def test_numbers():
    assert number(95.358, "count_accuracy, test") == "95.36"
    assert number(0.46371, "f1_50") == "0.464"
    assert number(3916, "tiles") == "3,916"
    assert number(float("nan")) == number(None) == ""


def test_outlines_part_cells_that_touch():
    labels = discs((60, 50, 20), (60, 90, 20))
    line = outlines(labels) > 0
    assert not line[labels == 0].any()
    inside = (labels > 0) & ~line
    assert not ((inside[:, 1:] & inside[:, :-1]) & (labels[:, 1:] != labels[:, :-1])).any()
    assert not outlines(np.zeros((5, 6), np.int32)).any()
    assert not outlines(np.ones((5, 6), np.int32)).any()  # The border of the image is no outline


def test_an_overlay_draws_the_cells_and_nothing_else():
    cells = cells_from_labels(discs((60, 50, 20), (30, 130, 8)))
    drawn = overlay(GREY, cells, "#00FF00", thick=1)
    changed = (drawn != GREY).any(axis=2)
    far = np.ones(changed.shape, bool)
    for (row, col), radius in zip(cells.centre, cells.radius):
        rows, cols = np.mgrid[: far.shape[0], : far.shape[1]]
        far &= abs(np.hypot(rows - row, cols - col) - radius) > 4
        far &= np.hypot(rows - row, cols - col) > 4
    assert not changed[far].any()
    assert np.array_equal(where(drawn, "#00FF00") & (cells.labels > 0), where(drawn, "#00FF00"))
    assert where(drawn, "#00FF00")[outlines(cells.labels) > 0].all()
    assert (GREY == 128).all()  # The image itself is left as it was


def test_several_cell_types_each_in_its_colour():
    found = {
        "rbc": cells_from_labels(discs((60, 50, 20))),
        "plt": cells_from_labels(discs((30, 130, 8))),
        "wbc": cells_from_labels(discs()),
    }
    drawn = overlay(GREY, found)
    left, right = drawn[:, :90], drawn[:, 90:]
    assert where(left, CELL_COLOURS["rbc"]).any() and not where(left, CELL_COLOURS["plt"]).any()
    assert where(right, CELL_COLOURS["plt"]).any() and not where(right, CELL_COLOURS["rbc"]).any()
    assert not where(drawn, CELL_COLOURS["wbc"]).any()
    assert np.array_equal(overlay(GREY, found["rbc"]), overlay(GREY, {"rbc": found["rbc"]}))


def test_discs_that_overlap_are_whole_circles():
    cells = cells_from_discs([(60, 60), (60, 80)], [20, 20], GREY.shape[:2])
    drawn = where(overlay(GREY, cells, "#00FF00", thick=1), "#00FF00")
    assert drawn[60, 79:82].any() and drawn[60, 59:62].any()  # Each where the other one lies

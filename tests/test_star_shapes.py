"What one red cell looks like, and the whole of covered ones."

import cv2
import numpy as np
import pytest

from bloodcount.star_shapes import (
    DIAMETER,
    claimed,
    is_rest,
    parts_of,
    pixels_of,
    single,
    whole_outline,
    whole_outlines,
)

RADIUS = DIAMETER / 2


def contour_of(*middles):
    "The contour of discs as large as a red cell, their middles (x, y) in px."
    mask = np.zeros((90, 90), np.uint8)
    for middle in middles:
        cv2.circle(mask, middle, round(DIAMETER / 2), 1, -1)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return contours[0][:, 0]


@pytest.mark.parametrize("apart", [0, 2, 16, 24, 34])
def test_one_cell_does_not_look_like_two(apart):
    assert single(contour_of((30, 45), (30 + apart, 45))) == (apart < 16)


def seen_of(middles, shape=(140, 160)):
    "Labels of discs, the last on top; the outline of what is seen of each; the discs."
    labels = np.zeros(shape, np.int32)
    row, col = np.mgrid[: shape[0], : shape[1]]
    discs = [np.hypot(row - r, col - c) < RADIUS for r, c in middles]
    for number, disc in enumerate(discs, 1):
        labels[disc] = number
    outlines = {}
    for number in range(1, len(discs) + 1):
        where, _, contour = max(parts_of(labels == number), key=lambda part: part[1].sum())
        outlines[number] = contour[:, ::-1] + [s.start for s in where]
    return labels, outlines, discs


def iou(outline, disc):
    where, inside = pixels_of(outline, disc.shape)
    drawn = np.zeros(disc.shape, bool)
    drawn[where] = inside
    return (drawn & disc).sum() / (drawn | disc).sum()


@pytest.mark.parametrize("apart", [14, 20, 28])
def test_a_covered_cell_is_completed(apart):
    labels, outlines, discs = seen_of([(60, 60), (60, 60 + apart)])
    whole = whole_outlines(labels, outlines)
    assert set(whole) == {1} and iou(whole[1], discs[0]) > 0.9 > iou(outlines[1], discs[0])


def test_a_cell_between_two_others_is_completed():
    labels, outlines, discs = seen_of([(60, 70), (60, 46), (60, 94)])
    assert iou(whole_outline(labels, 1, outlines[1], RADIUS), discs[0]) > 0.9


def test_at_the_border_of_the_image_it_ends_there():
    labels, outlines, discs = seen_of([(8, 60), (8, 84)])
    whole = whole_outline(labels, 1, outlines[1], RADIUS)
    assert iou(whole, discs[0]) > 0.9 and whole.min() >= -1


def test_cells_that_only_touch_are_whole_as_they_are():
    labels, outlines, _ = seen_of([(60, 40), (60, 40 + round(2 * RADIUS)), (110, 120)])
    assert whole_outlines(labels, outlines) == {}


def test_what_hardly_shows_is_a_rest():
    labels, outlines, _ = seen_of([(60, 60), (60, 64)])
    assert whole_outline(labels, 1, outlines[1], RADIUS) is None
    assert is_rest(labels, 1, outlines[1], RADIUS)
    assert not is_rest(labels, 2, outlines[2], RADIUS)


def test_a_bent_cell_alone_is_no_rest():
    bent = np.zeros((100, 100), np.int32)
    cv2.ellipse(bent, (50, 50), (20, 20), 0, 0, 200, 1, 9)
    (where, _, contour), *_ = parts_of(bent)
    outline = contour[:, ::-1] + [s.start for s in where]
    assert not is_rest(bent, 1, outline, RADIUS)


def test_a_pixel_goes_to_the_cell_in_which_it_lies_deepest():
    deepest, square = np.zeros((40, 60), np.float32), np.array([[5, 5], [5, 35], [35, 35], [35, 5]])
    first, second = claimed(square, deepest), claimed(square + (0, 10), deepest)
    assert first[1].sum() > second[1].sum() > 0.5 * first[1].sum()
    assert not claimed(square, deepest)[1].any()  # As deep is not deeper

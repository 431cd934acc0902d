"What one red cell looks like, and whose a shared pixel is."

import cv2
import numpy as np
import pytest

from bloodcount.star_shapes import DIAMETER, claimed, single


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


def test_a_pixel_goes_to_the_cell_in_which_it_lies_deepest():
    deepest, square = np.zeros((40, 60), np.float32), np.array([[5, 5], [5, 35], [35, 35], [35, 5]])
    first, second = claimed(square, deepest), claimed(square + (0, 10), deepest)
    assert first[1].sum() > second[1].sum() > 0.5 * first[1].sum()
    assert not claimed(square, deepest)[1].any()  # As deep is not deeper

"""The white balance that the networks see: left alone where they know it, brought back where they do not."""

import numpy as np
import pytest

from bloodcount import balance
from bloodcount.picture import LazyFinder, count, look_at
from bloodcount.settings import CELLS
from bloodcount.synthetic import synthetic_smear

SMEAR = synthetic_smear(seed=5, shape=(300, 400), rbc=12, wbc=1, plt=2, look="cream").image


def cast(image, red, blue):
    return np.minimum(np.rint(image * np.array([red, 1, blue])), 255).astype(np.uint8)


def over_green(image):
    red, green, blue = balance.background(balance.shrunk(image)) + 1
    return red / green, blue / green


def test_a_picture_in_a_known_balance_is_the_same_array():
    known = balance.balanced(cast(SMEAR, 1.1, 0.9))
    assert balance.balanced(known) is known
    grey = np.repeat(SMEAR[..., 1:2], 3, axis=2)
    assert balance.balanced(grey) is grey


@pytest.mark.parametrize(("red", "blue"), [(1.3, 0.8), (0.7, 1.25), (1.0, 1.3), (0.75, 1.0)])
def test_a_cast_is_taken_back_to_the_nearest_known_balance(red, blue):
    image = balance.balanced(cast(SMEAR, red, blue))
    for value, of, (low, high) in zip(
        over_green(image), over_green(cast(SMEAR, red, blue)), balance.KNOWN.values()
    ):
        assert low - 0.01 <= value <= high + 0.01
        assert abs(value - np.clip(of, low, high)) < 0.01, "no further than to the nearest end"
    assert (image[..., 1] == SMEAR[..., 1]).all(), "green and the brightness stay"


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_picture_of_one_grey_stays(value):
    flat = np.full((40, 50, 3), value, np.uint8)
    assert balance.balanced(flat) is flat


def test_the_background_is_looked_for_where_one_may_see():
    image, seen = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), bool)
    image[:, 20:] = SMEAR[:60, :60]
    seen[:, 20:] = True
    assert (balance.background(image, seen) == balance.background(SMEAR[:60, :60])).all()


def test_what_was_done_is_said():
    assert balance.said(None) == ""
    assert balance.said(np.array([0.8, 1, 1.254])) == "red x0.80, blue x1.25"


class Recorder(LazyFinder):
    "A finder that keeps what it was shown, and finds nothing."

    def __call__(self, image):
        self.__dict__["shown"] = image
        return {}

    def about(self, cell):
        return dict.fromkeys(["network", "weights", "checksum", "method"], "")


@pytest.mark.parametrize("weights", ["bloodcount", "authors", "elsewhere"])
def test_the_networks_that_ship_see_the_balanced_picture_and_people_the_other(weights):
    image, finder = cast(SMEAR, 1.3, 0.8), Recorder(CELLS, "", weights, "", "paper")
    result = count(image, finder=finder)
    assert (finder.shown == balance.balanced(image)).all() and (finder.shown != image).any()
    assert (result.image == image).all()
    assert result.rows[0]["white_balance"] == balance.said(balance.gains(image))


def test_a_network_of_ones_own_sees_the_picture_as_it_learnt_it():
    image, finder = cast(SMEAR, 1.3, 0.8), Recorder(CELLS, "", "runs/mine", "", "paper")
    result = count(image, finder=finder)
    assert (finder.shown == image).all() and result.rows[0]["white_balance"] == ""


def test_the_margin_is_no_background():
    image = cast(SMEAR, 1.3, 0.8)
    framed = np.pad(image, ((60, 60), (60, 60), (0, 0)), constant_values=255)
    assert np.allclose(look_at(framed).gains, look_at(image).gains, atol=0.02)

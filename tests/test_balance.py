"""The white balance that the networks see: left alone where they know it, brought back where they do not."""

import numpy as np
import pytest

from bloodcount import balance
from bloodcount.cache import made_once
from bloodcount.picture import CountPlan, LazyFinder, count, look_at, settings_name
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
    assert balance.said(balance.AS_IT_IS) == ""
    assert balance.said((0.8, 1.0, 1.254)) == "red x0.80, blue x1.25"


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
    assert result.rows[0]["white_balance"] == balance.said(balance.gains(balance.background(image)))


def test_a_network_of_ones_own_sees_the_picture_as_it_learnt_it():
    image, finder = cast(SMEAR, 1.3, 0.8), Recorder(CELLS, "", "runs/mine", "", "paper")
    result = count(image, finder=finder)
    assert (finder.shown == image).all() and result.rows[0]["white_balance"] == ""


def test_the_margin_is_no_background():
    image = cast(SMEAR, 1.3, 0.8)
    framed = np.pad(image, ((60, 60), (60, 60), (0, 0)), constant_values=255)
    assert np.allclose(look_at(framed).gains, look_at(image).gains, atol=0.02)


def test_an_overexposed_background_does_not_tell_its_colour():
    bright = np.minimum(SMEAR.astype(int) * 8 // 5, 255).astype(np.uint8)
    assert balance.background(balance.shrunk(bright)).max() >= balance.OVEREXPOSED
    seen = look_at(cast(bright, 1.25, 0.8))
    assert seen.gains == balance.AS_IT_IS and np.isnan(seen.red_over_green)


def test_what_was_not_counted_was_not_balanced():
    tiny = cast(SMEAR, 1.3, 0.8)[:40, :30]
    row = count(tiny, finder=Recorder(CELLS, "", "bloodcount", "", "paper")).rows[0]
    assert row.get("count") is None and not row.get("white_balance")


def test_all_methods_share_one_balanced_picture(monkeypatch):
    framed, made = np.pad(cast(SMEAR, 1.3, 0.8), ((60, 60), (60, 60), (0, 0))), []

    def noted(*given):
        made.append(balance.balanced(*given))
        return made[-1]

    monkeypatch.setattr("bloodcount.picture.balanced", noted)
    with made_once():
        for method in ("cht", "ccl"):
            finder = Recorder(CELLS, "", "bloodcount", method, "paper")
            count(framed, finder=finder, method=method)
    assert len(made) == 1


def test_the_range_names_the_settings_of_networks_that_ship_alone(monkeypatch):
    def named(weights):
        finder = Recorder(CELLS, "", weights, "", "paper")
        return settings_name(CountPlan(), finder)

    ours, own = named("bloodcount"), named("runs/mine")
    monkeypatch.setattr("bloodcount.picture.KNOWN", {"red": (1, 1), "blue": (1, 1)})
    assert named("bloodcount") != ours and named("runs/mine") == own

"""The scale: the same smear at any size, and what cannot be told."""

import numpy as np
import pytest

from bloodcount import scale as scale_module
from bloodcount.errors import SettingsError
from bloodcount.scale import (
    RED_CELL,
    AnyScale,
    Scale,
    find_scale,
    middle,
    usual_diameter,
)
from bloodcount.stars import Stars, joined, load_stars
from bloodcount.synthetic import synthetic_smear
from bloodcount.tiles import resized


@pytest.fixture(scope="module")
def finder():
    return load_stars()


@pytest.fixture(scope="module")
def smear():
    return synthetic_smear(seed=2, overlap=0.1)


@pytest.mark.parametrize("factor", [0.4, 0.7, 1, 1.6, 2.5])
def test_the_same_smear_at_any_size(finder, smear, factor):
    scale = find_scale(finder, resized(smear.image, factor))
    assert scale.sure, scale.why
    assert abs(np.log(scale.diameter / (68 * factor))) < np.log(1.15)


def test_counts_do_not_follow_the_size(finder, smear):
    counts = [len(AnyScale(finder)(resized(smear.image, f))["rbc"]) for f in (0.6, 1, 2)]
    assert max(counts) - min(counts) <= 0.1 * smear.counts["rbc"]


def test_an_empty_field_is_not_sure(finder):
    scale = find_scale(finder, np.full((300, 300, 3), 180, np.uint8))
    assert not scale.sure and "no red cells" in scale.why
    assert scale.diameter == finder.diameter / finder.zoom
    known = find_scale(finder, np.full((300, 300, 3), 180, np.uint8), um_per_px=0.1)
    assert known.diameter == RED_CELL / 0.1 and not known.sure


def test_specks_are_no_red_cells(finder, smear, monkeypatch):
    "An untrained network sees cells of a hundredth of a pixel: no picture is made a thousand times as large for them."
    specks = scale_module.Look(0.5, 0.01, 500, 0.9, 0.9)
    monkeypatch.setattr(scale_module, "best_look", lambda finder, image: specks)
    scale = find_scale(finder, smear.image)
    assert not scale.sure and scale.diameter == finder.diameter / finder.zoom


def test_the_micrometres_are_held_against_the_cells(finder, smear):
    right = find_scale(finder, smear.image, RED_CELL / 68)
    assert right.sure and right.diameter == pytest.approx(68, rel=0.15)
    wrong = find_scale(finder, smear.image, RED_CELL / 30)
    assert not wrong.sure and "micrometres" in wrong.why


@pytest.mark.parametrize("um", [0, -0.1, 1e-4, 100, np.nan])
def test_impossible_micrometres_are_refused(finder, smear, um):
    with pytest.raises(SettingsError, match="um a pixel"):
        find_scale(finder, smear.image, um)


def test_a_given_size_is_taken(finder, smear):
    by_diameter = AnyScale(finder, diameter=74.0)
    assert by_diameter.scale(smear.image) == Scale(74.0, 0, True)
    by_factor = AnyScale(finder, factor=2.0).scale(smear.image)
    assert by_factor.diameter == 2 * finder.diameter / finder.zoom
    with pytest.raises(SettingsError, match="impossible"):
        AnyScale(finder, diameter=1e9).scale(smear.image)


def test_it_says_what_the_star_finder_says(finder):
    assert AnyScale(finder).network == "stardist" and AnyScale(finder).checksum == finder.checksum
    with pytest.raises(AttributeError):
        _ = AnyScale(finder).colour


def cells(*widths: float, at: float = 100.0) -> Stars:
    "Round red cells of some diameters, px, around one place."
    n = len(widths)
    reach = np.repeat(np.float32(widths)[:, None] / 2, 32, axis=1)
    return Stars(np.full((n, 2), at, np.float32), reach, np.ones(n, np.float32), np.zeros(n, int))


def test_specks_do_not_make_the_usual_size():
    red = cells(*[40] * 10, *[6] * 30)
    assert usual_diameter(red, (200, 200)) == pytest.approx(40, rel=0.01)
    assert np.isnan(usual_diameter(red[:0], (200, 200)))


def test_cells_cut_by_the_border_do_not_make_the_usual_size():
    whole, cut = cells(40, 41, 42, 43), cells(*[90] * 5, at=30.0)
    assert usual_diameter(joined([whole, cut]), (200, 200)) == pytest.approx(42, abs=1)
    few = joined([whole[:3], cut])  # Too few whole ones: all count
    assert usual_diameter(few, (200, 200)) == pytest.approx(90, rel=0.01)


def test_the_middle_is_the_middle():
    image = np.arange(100 * 300 * 3).reshape(100, 300, 3)
    assert middle(image, 0.5, side=40).shape == (80, 80, 3)
    assert (middle(image, 0.1, side=40) == image).all()

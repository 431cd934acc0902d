"""The counters: one contract, known numbers, and what turning, padding and odd inputs change."""

import dataclasses
import functools
import inspect

import cv2
import numpy as np
import pytest
from skimage.draw import disk
from skimage.segmentation import watershed as flood

from bloodcount.counting import (
    COUNTERS,
    Cells,
    basins,
    ccl,
    cells_from_discs,
    cells_from_labels,
    components,
    count,
    distance,
    edt,
    watershed,
)
from bloodcount.errors import SettingsError
from bloodcount.segmentation import Maps, truth_maps
from bloodcount.settings import CCL, CELLS, CHT, EDT, METHODS, Thresholds, Watershed, load_settings
from bloodcount.synthetic import synthetic_smear

PUBLISHED = load_settings("paper").published["do_unet"]
HALF = Thresholds(mask=0.5, edge=0.5)

# On a mask of red cells, without their edges.
ON_MASK = {
    "cht": CHT(
        source="mask", min_area=200, dp=1, min_distance=30, radius=(20, 50), canny=28, votes=8
    ),
    "ccl": CCL(source="mask", min_area=200),
    "watershed": Watershed(
        source="mask", min_area=200, min_distance=20, min_height=6, smooth=1, at_least_one=False
    ),
    "edt": EDT(source="mask", min_area=200, min_distance=20, min_height=6, exclude_border=False),
}
# Of anything, a pixel too.
SMALLEST = {
    "cht": CHT(source="mask", min_area=0, dp=1, min_distance=1, radius=(1, 9), canny=1, votes=1),
    "ccl": CCL(source="mask", min_area=0),
    "watershed": Watershed(
        source="mask", min_area=0, min_distance=1, min_height=0, smooth=0, at_least_one=False
    ),
    "edt": EDT(source="mask", min_area=0, min_distance=1, min_height=0, exclude_border=False),
}

# ccl_mask is ccl on red cells' mask: for the other types there is no such method.
each_method = pytest.mark.parametrize("method", [m for m in COUNTERS if m != "ccl_mask"])


@functools.cache
def smear_of(seed, overlap):
    return synthetic_smear(seed, shape=(400, 560), rbc=32, wbc=2, plt=6, overlap=overlap)


def found(method, mask, parameters=ON_MASK, **changes):
    settings = dataclasses.replace(parameters[method], **changes)
    return COUNTERS[method](Maps(np.asarray(mask, np.float32)), HALF, settings)


def discs(shape, *places):
    "A mask of discs, each row, column and radius; what lies outside is cut off."
    mask = np.zeros(shape, bool)
    for row, col, radius in places:
        mask[disk((row, col), radius, shape=shape)] = True
    return mask


def soft(maps):
    "Truth as a network sees it."
    edge = None if maps.edge is None else cv2.GaussianBlur(maps.edge, (0, 0), 2)
    return Maps(
        cv2.GaussianBlur(maps.mask, (0, 0), 1.5), edge if edge is None else np.clip(3 * edge, 0, 1)
    )


def changed(maps, change):
    planes = (
        None if plane is None else np.ascontiguousarray(change(plane))
        for plane in (maps.mask, maps.edge)
    )
    return Maps(*planes)


def assert_whole(cells, shape):
    "What everything that uses found cells relies on."
    n = len(cells)
    assert isinstance(cells, Cells) and cells.centre.shape == (n, 2)
    assert cells.radius.shape == cells.area.shape == (n,)
    assert cells.centre.dtype == cells.radius.dtype == cells.area.dtype == np.float32
    assert (cells.radius > 0).all() and np.allclose(cells.area, np.pi * cells.radius**2, rtol=1e-4)
    assert (cells.centre >= 0).all() and (cells.centre <= np.array(shape)).all()
    columns = ["label", "centroid-0", "centroid-1", "area", "equivalent_diameter_area"]
    assert list(cells.table.columns) == columns and list(cells.table["label"]) == [*range(1, n + 1)]
    assert cells.labels.shape == shape and cells.labels.dtype == np.int32
    assert cells.labels.max(initial=0) <= n
    if cells.regions is None:
        assert np.array_equal(np.lexsort(cells.centre.T[::-1]), np.arange(n))
    else:
        area = np.bincount(cells.labels.ravel(), minlength=n + 1)
        assert len(area) == n + 1 and np.array_equal(area[1:], cells.area)
        for i in range(min(n, 5)):
            inside = np.argwhere(cells.labels == i + 1)
            assert np.allclose(inside.mean(axis=0), cells.centre[i], atol=1e-3)


def test_counters_are_siblings():
    assert COUNTERS.keys() == METHODS.keys()
    for method, counter in COUNTERS.items():
        parameters = inspect.signature(counter).parameters.values()
        assert [p.annotation for p in parameters] == [Maps, Thresholds, METHODS[method]]
        assert inspect.signature(counter).return_annotation is Cells


@each_method
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_found_is_whole(cell, method):
    smear = smear_of(2, 0.3)
    for maps in (truth_maps(smear, cell), soft(truth_maps(smear, cell))):
        cells = count(maps, PUBLISHED[cell], method)
        assert_whole(cells, smear.image.shape[:2])
        assert (cells.regions is not None) == (method in ("ccl", "watershed"))
        again = count(maps, PUBLISHED[cell], method)
        assert np.array_equal(cells.centre, again.centre)


@each_method
def test_where_and_how_large(method):
    drawn = [(60, 60, 30), (60, 200, 34), (170, 120, 26)]
    cells = found(method, discs((240, 320), *drawn))
    off = 3 if method == "cht" else 1
    seen = sorted(zip(*cells.centre.T.round(), cells.radius), key=lambda place: place[0] + place[1])
    assert len(cells) == 3 and np.allclose(seen, [drawn[0], drawn[1], drawn[2]], atol=off)


@pytest.mark.parametrize("seed", range(4))
def test_cells_that_lie_apart_are_counted_exactly(seed):
    smear = smear_of(seed, 0)
    maps = truth_maps(smear, "rbc")
    for method in ("ccl", "watershed", "edt"):
        assert len(COUNTERS[method](maps, HALF, ON_MASK[method])) == 32, method
    for method in ("ccl", "watershed"):
        assert len(count(maps, PUBLISHED["rbc"], method)) == 32
    assert abs(len(count(soft(maps), PUBLISHED["rbc"], "cht")) - 32) <= 2
    for cell, n, methods in (("wbc", 2, ("ccl", "watershed", "edt")), ("plt", 6, ("ccl", "edt"))):
        for method in methods:
            assert len(count(truth_maps(smear, cell), PUBLISHED[cell], method)) == n, (cell, method)


def test_the_error_grows_with_the_overlap_and_stays_in_its_bound():
    missed = {"cells": [], "basins": [], "peaks": [], "circles": []}
    for overlap in (0, 0.15, 0.3, 0.6):
        maps = [truth_maps(smear_of(seed, overlap), "rbc") for seed in range(3)]
        counts = {
            "cells": [len(ccl(m, HALF, ON_MASK["ccl"])) for m in maps],
            "basins": [len(watershed(m, HALF, ON_MASK["watershed"])) for m in maps],
            "peaks": [len(edt(m, HALF, ON_MASK["edt"])) for m in maps],
            "circles": [len(count(soft(m), PUBLISHED["rbc"], "cht")) for m in maps],
        }
        for how, n in counts.items():
            missed[how].append(np.abs(np.array(n) - 32).mean())
        edged = [len(count(m, PUBLISHED["rbc"], "ccl")) for m in maps]
        assert edged == [32] * 3, "closed edges take all cells apart"
    assert missed["cells"] == sorted(missed["cells"]) and missed["cells"][0] == 0
    assert 4 <= missed["cells"][1] and missed["cells"][-1] > 14
    assert max(missed["basins"]) <= 3 and max(missed["peaks"]) <= 3 and max(missed["circles"]) <= 3


TURNS = {
    "a quarter turn": np.rot90,
    "half a turn": lambda plane: np.rot90(plane, 2),
    "three quarters": lambda plane: np.rot90(plane, 3),
    "left to right": np.fliplr,
    "upside down": np.flipud,
}
# How much a count may change: Hough's accumulator rounds towards one corner.
DRIFT = {"cht": 2, "ccl": 0, "watershed": 1, "edt": 1}


@each_method
@pytest.mark.parametrize(("seed", "overlap"), [(0, 0), (1, 0.3), (2, 0.6)])
def test_turning_and_padding_change_nothing(method, seed, overlap):
    smear = smear_of(seed, overlap)
    for cell in CELLS:
        maps = soft(truth_maps(smear, cell))
        n = len(count(maps, PUBLISHED[cell], method))
        for name, turn in TURNS.items():
            turned = len(count(changed(maps, turn), PUBLISHED[cell], method))
            assert abs(turned - n) <= DRIFT[method], (cell, name)
        # With background all round, for the border of the image matters to a cell that it cuts.
        near, far = (changed(maps, lambda plane, by=by: np.pad(plane, by)) for by in (64, 171))
        n, padded = (len(count(m, PUBLISHED[cell], method)) for m in (near, far))
        assert abs(padded - n) <= max(1, DRIFT[method]), cell


@pytest.mark.filterwarnings("error")
@each_method
@pytest.mark.parametrize("shape", [(64, 64), (1, 300), (300, 1), (1, 1), (0, 5), (5, 0), (0, 0)])
def test_nothing_to_count(method, shape):
    for cell in CELLS:
        blank = Maps(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        cells = count(blank, PUBLISHED[cell], method)
        assert len(cells) == 0
        assert_whole(cells, shape)
    assert len(found(method, np.zeros(shape), SMALLEST)) == 0


@pytest.mark.filterwarnings("error")
@each_method
@pytest.mark.parametrize("shape", [(200, 300), (64, 64), (1, 300), (1, 1)])
def test_a_field_that_is_all_cell(method, shape):
    "One region; no circle, for nothing has an edge; and peaks along the ridge, min_distance apart."
    cells = found(method, np.full(shape, 0.9), SMALLEST)
    assert_whole(cells, shape)
    assert np.isfinite(cells.radius).all()
    if method == "ccl":
        assert cells.area.tolist() == [shape[0] * shape[1]]
    elif method == "cht":
        assert len(cells) == 0
    else:
        cells = found(method, np.ones(shape))
        most = -(-(max(shape) - min(shape) + 1) // ON_MASK[method].min_distance)
        assert (1 if min(shape) > 40 else 0) <= len(cells) <= most
        assert np.abs(cells.centre[:, 0] - shape[0] / 2).max(initial=0) < shape[0] / 8


def test_the_smallest_area_is_the_smallest_that_counts():
    mask = np.zeros((40, 60), bool)
    for i, size in enumerate((1, 2, 3, 4)):
        mask[10 * i + 4, 4 : 4 + size] = True
    for area, n in ((0, 4), (1, 4), (2, 3), (3, 2), (4, 1), (5, 0)):
        assert len(found("ccl", mask, min_area=area)) == n
        for method in ("edt", "watershed"):
            assert len(found(method, mask, SMALLEST, min_area=area, min_distance=5)) == n, method


def test_one_pixel_is_a_cell_if_nothing_forbids_it():
    mask = np.zeros((40, 60), bool)
    mask[20, 30] = mask[0, 0] = mask[39, 59] = True
    for method in ("ccl", "edt", "watershed"):
        cells = found(method, mask, SMALLEST)
        assert cells.centre.tolist() == [[0, 0], [20, 30], [39, 59]], method
    assert found("ccl", mask, SMALLEST).area.tolist() == [1, 1, 1]
    assert found("edt", mask, SMALLEST).radius.tolist() == [1, 1, 1]
    for method in ("edt", "watershed"):
        assert len(found(method, mask, SMALLEST, min_height=1)) == 0, "a peak is higher than that"


def test_pixels_touch_at_their_corners():
    assert len(found("ccl", np.eye(9), SMALLEST)) == 1
    apart = np.eye(9, dtype=bool)
    apart[4, 4] = False
    assert len(found("ccl", apart, SMALLEST)) == 2


@each_method
def test_cells_that_the_border_cuts_count_like_others(method):
    shape = (240, 320)
    places = [(0, 60, 30), (120, 0, 30), (239, 200, 30), (100, 319, 30), (120, 150, 30)]
    cells = found(method, discs(shape, *places))
    assert len(cells) == len(places)
    near = np.linalg.norm(cells.centre[:, None] - np.array(places)[:, :2], axis=2).min(axis=0)
    assert near.max() < 15


def test_the_border_may_be_left_out():
    shape = (240, 320)
    for gap, n in ((15, 0), (25, 1)):
        mask = discs(shape, (gap, 160, 34))
        assert len(found("edt", mask)) == 1
        assert len(found("edt", mask, exclude_border=True)) == n
    assert len(found("edt", discs((40, 40), (20, 20, 15)), exclude_border=True)) == 0


def test_more_than_65535_cells():
    mask = np.zeros((1024, 1024), bool)
    mask[::2, ::2] = True
    cells = found("ccl", mask, SMALLEST)
    assert len(cells) == 512 * 512 == cells.labels.max() == len(np.unique(cells.labels)) - 1
    assert np.array_equal(cells.labels > 0, mask) and (cells.area == 1).all()
    assert np.array_equal(
        cells.labels[tuple(cells.centre.astype(int).T)], np.arange(1, 512 * 512 + 1)
    )
    peaks = found("edt", mask[:600, :600], SMALLEST)
    assert len(peaks) == 300 * 300 and (peaks.radius == 1).all()
    flooded = found("watershed", mask[:600, :600], SMALLEST)
    assert len(flooded) == 300 * 300 == flooded.labels.max()


@pytest.mark.parametrize("seed", range(3))
def test_flooding_only_what_is_shared_is_the_watershed(seed):
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.standard_normal((200, 300)), (0, 0), 4) > 0
    height = distance(mask)
    places = rng.integers(0, mask.shape, (60, 2))
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(places.T)] = np.arange(1, len(places) + 1)
    assert len(np.unique(places, axis=0)) == 60 and not mask[tuple(places.T)].all()
    ours, theirs = basins(height, places, mask), flood(-height, markers, mask=mask)
    assert np.array_equal(ours > 0, theirs > 0)
    assert (ours != theirs).mean() < 1e-3, "pixels as near to one marker as to another"


def test_two_that_touch():
    mask = discs((120, 170), (60, 58, 36), (60, 108, 36))
    assert len(found("ccl", mask)) == 1
    parted = found("watershed", mask)
    assert len(parted) == 2 == len(found("edt", mask)) == len(found("cht", mask))
    assert np.array_equal(parted.labels > 0, mask), "every pixel of the mask belongs to a cell"
    assert abs(parted.area[0] - parted.area[1]) < 0.02 * parted.area[0]


def test_an_edge_takes_cells_apart():
    rows, cols = np.mgrid[:120, :170]
    from_centres = [np.hypot(rows - 60, cols - col) for col in (58, 108)]
    mask = np.any([d < 36 for d in from_centres], axis=0)
    edge = np.any([np.abs(d - 36) < 1.5 for d in from_centres], axis=0)
    maps = Maps(mask.astype(np.float32), edge.astype(np.float32))
    inside = CCL(source="mask_minus_edge", min_area=1500)
    assert len(ccl(maps, HALF, inside)) == 2
    lens = dataclasses.replace(inside, min_area=0)
    assert len(ccl(maps, HALF, lens)) > 2, "what both cells cover is a piece of its own"
    markers = Watershed(
        source="mask_minus_edge",
        min_area=200,
        min_distance=20,
        min_height=10,
        smooth=1,
        at_least_one=False,
    )
    parted = watershed(maps, HALF, markers)
    assert len(parted) == 2 and np.array_equal(parted.labels > 0, mask)


def test_a_part_without_a_peak_is_a_cell_if_it_is_large_enough():
    thin = discs((120, 170), (60, 58, 36))
    thin[4:12, 10:160] = 1  # 4 px from the background at most; 1200 px in area
    thin[104:108, 100:104] = 1
    settings = dataclasses.replace(ON_MASK["watershed"], min_height=10)
    assert len(watershed(Maps(thin.astype(np.float32)), HALF, settings)) == 1
    settings = dataclasses.replace(settings, at_least_one=True)
    parted = watershed(Maps(thin.astype(np.float32)), HALF, settings)
    assert len(parted) == 2 and parted.area.min() == 1200 and len(np.unique(parted.labels)) == 3
    settings = dataclasses.replace(settings, source="mask_minus_edge")
    eaten = Maps(thin.astype(np.float32), np.ones(thin.shape, np.float32))
    assert len(watershed(eaten, HALF, settings)) == 2, "a cell that is all edge is one still"


def test_an_edge_is_needed_where_it_is_the_source():
    blank = Maps(np.zeros((8, 8), np.float32))
    for method in ("cht", "ccl", "watershed", "edt"):
        with pytest.raises(SettingsError, match="needs an edge map"):
            count(blank, PUBLISHED["rbc"], method)
        count(blank, PUBLISHED["wbc"], method)


def test_wrong_names():
    blank = Maps(np.zeros((8, 8), np.float32))
    with pytest.raises(SettingsError, match="'watershd'.*Did you mean 'watershed'"):
        count(blank, PUBLISHED["rbc"], "watershd")
    with pytest.raises(SettingsError, match="no method 'ccl_mask'.*Known: .*ccl"):
        count(blank, PUBLISHED["wbc"], "ccl_mask")


def test_discs_share_a_pixel_by_distance_in_radii():
    cells = cells_from_discs([(20, 20), (20, 50)], [20, 12], (40, 70))
    assert len(np.unique(cells.labels)) == 3
    rows, cols = np.nonzero(cells.labels)
    away = [np.hypot(rows - r, cols - c) / radius for (r, c), radius in zip(cells.centre, (20, 12))]
    assert np.array_equal(cells.labels[rows, cols], 1 + (away[1] < away[0]))


def test_scores_go_with_their_regions():
    labels = np.zeros((9, 9), np.int32)
    labels[:2, :2], labels[4:8, 4:8], labels[0, 8] = 1, 3, 2
    cells = cells_from_labels(labels, min_area=2, score=[0.1, 0.2, 0.3])
    assert cells.score.tolist() == pytest.approx([0.1, 0.3]) and cells.labels.max() == 2
    assert cells.table["score"].tolist() == pytest.approx([0.1, 0.3])


def test_distances_are_exact_and_finite():
    mask = np.random.default_rng(0).random((40, 50)) < 0.8
    background = np.argwhere(~mask)
    nearest = [
        np.sqrt(((background - place) ** 2).sum(axis=1).min()) for place in np.argwhere(mask)
    ]
    assert np.allclose(distance(mask)[mask], nearest, atol=1e-4) and not distance(mask)[~mask].any()
    assert distance(np.ones((40, 50), bool)).max() == 20
    one = np.ones((40, 50), bool)
    one[0, 0] = False
    assert np.isclose(distance(one)[39, 49], np.hypot(39, 49)), "the border is no background"


def test_labels_are_renumbered_without_gaps():
    labels = np.array([[0, 7, 7], [3, 0, 7], [3, 9, 0]], np.int32)
    cells = cells_from_labels(labels, min_area=2)
    assert cells.labels.tolist() == [[0, 2, 2], [1, 0, 2], [1, 0, 0]]
    assert cells.area.tolist() == [2, 3] and np.allclose(cells.centre, [(1.5, 0), (1 / 3, 5 / 3)])
    assert labels.max() == 9, "what is passed in stays as it is"


def test_discs_are_sorted_by_row_then_column():
    cells = cells_from_discs([(5, 1), (2, 9), (2, 3)], [4, 5, 6], (12, 20))
    assert cells.centre.tolist() == [[2, 3], [2, 9], [5, 1]] and cells.radius.tolist() == [6, 5, 4]
    assert len(cells_from_discs([], [], (4, 4))) == 0


def test_components_of_views_and_of_nothing():
    mask = np.random.default_rng(1).random((60, 80)) < 0.3
    assert (
        components(mask[::2, ::-1]).max() == components(np.ascontiguousarray(mask[::2, ::-1])).max()
    )
    assert components(np.zeros((0, 0), bool)).shape == (0, 0)

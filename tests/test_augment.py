"""The eight steps: paired, seeded, and each geometric one undone; pasted and drawn cells and their truth."""

from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from skimage.measure import label

from bloodcount.augment import (
    STEPS,
    Augment,
    Chip,
    chips,
    cut,
    draw_chip,
    field,
    lower_quality,
    place,
    recolour,
    resize,
    turned_back,
    zoomed,
)
from bloodcount.data import Smear
from bloodcount.errors import InputError
from bloodcount.paste import draw_white_cells, paste_cells
from bloodcount.synthetic import edge_mask, synthetic_smear

STILL = Augment(
    border="mirror",
    scale=(1, 1),
    quality=(1, 1),
    skip=0,
    object_area=6,
    luminosity=(1, 1),
    hue=(1, 1),
    saturation=(1, 1),
    value=(1, 1),
    gamma=(1, 1),
    cast=(1, 1),
    paste=0,
    through=(0, 0),
    drawn=0,
)
PAPER = replace(
    STILL,
    quality=(0.5, 1),
    skip=0.5,
    luminosity=(0.5, 1.5),
    hue=(0.8, 1.2),
    saturation=(0.5, 1.5),
    value=(0.5, 1.5),
)
STRONG = replace(PAPER, scale=(0.6, 1.5), gamma=(0.6, 1.6), cast=(0.85, 1.15))
COLOURED = replace(STRONG, scale=(1, 1), quality=(1, 1), skip=0)
SIZES = [(188, 100), (284, 196), (128, 128)]


@pytest.fixture(scope="module")
def smear():
    return synthetic_smear(3, shape=(320, 416), rbc=22, wbc=1, plt=4, overlap=0.3)


def test_the_papers_order():
    names = ["image", "place", "quality", "cut", "skip", "resize", "turn", "colour"]
    assert list(STEPS) == names


@pytest.mark.parametrize("border", ["mirror", "black"])
@pytest.mark.parametrize("size", SIZES)
def test_turn_flip_and_cut_are_undone(smear, size, border):
    source = field(smear, "rbc")
    margin = (size[0] - size[1]) // 2
    for number in range(40):
        chip = draw_chip([source], number, 0, replace(STILL, skip=0.5, border=border), size)
        middle = slice(margin, margin + size[1])
        for name in ("mask", "edge"):
            back = turned_back(getattr(chip, name), chip.turns, chip.mirrored)
            whole = place(getattr(source, name), chip.centre, size[0], border)
            assert np.array_equal(back, whole[middle, middle])
        image = turned_back(chip.image, chip.turns, chip.mirrored).astype(int)
        assert (
            np.abs(image - place(source.image, chip.centre, size[0], border)).max() <= 4
        )  # by HSV


@pytest.mark.parametrize("scale", [0.6, 0.8, 1.25, 1.5])
def test_scale_is_undone(smear, scale):
    source = field(smear, "rbc")
    for number in range(10):
        chip = draw_chip([source], number, 0, replace(STILL, scale=(scale, scale)), (188, 188))
        assert abs(188 / chip.side - scale) < 0.01
        back = turned_back(chip.mask, chip.turns, chip.mirrored)
        back = cv2.resize(back, (chip.side, chip.side), interpolation=cv2.INTER_NEAREST) > 0
        truth = place(source.mask, chip.centre, chip.side) > 0
        assert np.logical_xor(back, truth).mean() < 0.02


@pytest.mark.parametrize("zoom", [0.4, 0.5, 1.5])
def test_a_smear_at_another_size(smear, zoom):
    other = zoomed(smear, zoom)
    shape = tuple(round(side * zoom) for side in smear.image.shape[:2])
    assert other.image.shape == (*shape, 3) and other.image.dtype == np.uint8
    for cell, mask in smear.masks.items():
        found = other.masks[cell]
        assert found.shape == shape and found.dtype == bool
        back = cv2.resize(np.float32(found), mask.shape[::-1]) > 0.5
        assert 2 * (back & mask).sum() > 0.93 * (back.sum() + mask.sum()) > 0
    assert other.edges["rbc"].shape == shape and other.edges["rbc"].any()
    for ours, theirs in zip(other.polygons["rbc"], smear.polygons["rbc"], strict=True):
        middles = (each.min(axis=0) + each.max(axis=0) + 1 for each in (ours, theirs))
        np.testing.assert_allclose(next(middles), zoom * next(middles), rtol=1e-4)
    found = field(other, "rbc")
    assert found.mask.shape == shape and len(found.boxes) == len(smear.polygons["rbc"])
    assert zoomed(smear, 1) is smear


@pytest.mark.parametrize("centre", [(160, 208), (0, 0), (319, 200), (10, 415)])
@pytest.mark.parametrize("scale", [0.6, 0.75, 1.5])
@pytest.mark.parametrize("border", ["mirror", "black"])
def test_edges_keep_their_width_and_their_place(smear, scale, centre, border):
    source, still = field(smear, "rbc"), replace(STILL, border=border)

    def edge_of(source):
        chip = Chip([source], (284, 284), source, centre, 2 * round(142 / scale))
        rng = np.random.default_rng(0)
        chip = resize(cut(lower_quality(chip, rng, still), rng, still), rng, still)
        return chip.edge[4:-4, 4:-4]

    anew, scaled = edge_of(source), edge_of(replace(source, outlines=[]))
    near = cv2.dilate(scaled, np.ones((5, 5), np.uint8))
    assert (anew > near).sum() < 0.01 * anew.sum()
    near = cv2.dilate(anew, np.ones((5, 5), np.uint8))
    assert (scaled > near).sum() < 0.01 * scaled.sum()
    assert abs(scaled.sum() / anew.sum() / scale - 1) < 0.15


@pytest.mark.parametrize(("centre", "side"), [((1, 2), 6), ((0, 0), 4), ((2, 3), 20), ((1, 1), 2)])
def test_black_is_what_padding_gives(centre, side):
    plane = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    top, left = 30 + centre[0] - side // 2, 30 + centre[1] - side // 2
    truth = np.pad(plane, 30)[top : top + side, left : left + side]
    assert np.array_equal(place(plane, centre, side, "black"), truth)


def test_every_pixel_comes_to_every_place():
    image = np.arange(36, dtype=np.uint8).reshape(6, 6)
    mask = np.zeros((6, 6), bool)
    tiny = field(Smear("Tiny_0", np.dstack([image] * 3), {"rbc": mask}), "rbc")
    seen = np.zeros((36, 4, 4), bool)
    rows, cols = np.mgrid[:4, :4]
    for number in range(4000):
        chip = draw_chip([tiny], number, 0, STILL, (4, 4))
        seen[chip.image[..., 0], rows, cols] = True
    assert seen.all()


def test_equal_numbers_equal_chips(smear):
    fields = [field(smear, "rbc"), field(synthetic_smear(8, (320, 416), 20, 1, 4), "rbc")]
    one = list(islice(chips(fields, 4, 7, STRONG, (188, 100), workers=1), 5))
    three = list(islice(chips(fields, 4, 7, STRONG, (188, 100), workers=3), 5))
    late = list(islice(chips(fields, 4, 7, STRONG, (188, 100), start=3), 2))
    other = next(chips(fields, 4, 8, STRONG, (188, 100)))
    for a, b in [*zip(one, three), *zip(one[3:], late)]:
        for name in ("image", "mask", "edge"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
    assert not np.array_equal(one[0].image, other.image)
    alone = draw_chip(fields, 4 * 2 + 3, 7, STRONG, (188, 100))
    assert np.array_equal(one[2].image[3], alone.image)
    assert one[0].image.dtype == np.uint8 and one[0].mask.dtype == one[0].edge.dtype == bool


def test_skipping(smear):
    source = field(smear, "plt")

    def share(skip):
        drawn = [
            draw_chip([source], n, 0, replace(PAPER, skip=skip), (188, 100)) for n in range(300)
        ]
        return np.mean([chip.mask.sum() > 5 for chip in drawn])

    chance = share(0)
    assert chance < 0.5 and share(1) == 1
    assert abs(share(0.5) - (1 + chance) / 2) < 0.08
    empty = field(replace(smear, masks={"plt": np.zeros_like(smear.masks["plt"])}), "plt")
    assert draw_chip([empty], 0, 0, replace(PAPER, skip=1), (188, 100)).mask.sum() == 0


def test_quality_is_really_lost(smear):
    source = field(smear, "rbc")

    def detail(quality):
        drawn = draw_chip([source], 3, 0, replace(STILL, quality=(quality,) * 2), (188, 100))
        return cv2.Laplacian(drawn.image, cv2.CV_32F).var()

    assert detail(0.5) < 0.7 * detail(0.75) < 0.7 * 0.9 * detail(1)


def test_colours_change_the_image_alone(smear):
    source = field(smear, "rbc")
    still, strong = (draw_chip([source], 5, 0, s, (188, 100)) for s in (STILL, COLOURED))
    assert np.array_equal(still.mask, strong.mask) and np.array_equal(still.edge, strong.edge)
    assert np.abs(still.image.astype(int) - strong.image).mean() > 5


def test_recolour_by_hand():
    red = np.full((1, 1, 3), (200, 100, 100), np.uint8)
    assert np.abs(recolour(red, value=0.5).astype(int) - (100, 50, 50)).max() <= 1
    assert np.abs(recolour(red, saturation=0.5).astype(int) - (200, 150, 150)).max() <= 1
    assert np.abs(recolour(red, luminosity=1.5, value=0.5).astype(int) - (128, 64, 64)).max() <= 1
    green = np.full((1, 1, 3), (100, 200, 100), np.uint8)
    assert np.abs(recolour(green, hue=0.5).astype(int) - (200, 200, 100)).max() <= 2
    assert recolour(red, gamma=2).tolist() == [[[157, 39, 39]]]
    assert recolour(red, cast=(1, 2, 0.5)).tolist() == [[[200, 200, 50]]]


def test_without_edges(smear):
    with_edges, without = field(smear, "rbc"), field(replace(smear, edges={}), "rbc")
    batch = next(chips([without], 3, 0, STRONG, (188, 100)))
    assert batch.edge is None and batch.mask.any()
    mixed = next(chips([with_edges, without], 16, 0, PAPER, (188, 100)))
    assert mixed.edge is None
    with pytest.raises(InputError, match="no wbc mask"):
        field(replace(smear, masks={}), "wbc")


@pytest.mark.parametrize(
    ("key", "value"),
    [("scale", "1.5, 0.6"), ("quality", "0.5, 1.2"), ("skip", 2), ("hue", "0, 1"), ("cast", "1")],
)
def test_bad_values(key, value):
    with pytest.raises(ValidationError, match=key):
        replace(STILL, **{key: value})


@pytest.fixture(scope="module")
def apart():
    return synthetic_smear(5, overlap=0, rbc=36)


@pytest.fixture(scope="module")
def crowded(apart):
    return paste_cells(apart, 12, np.random.default_rng(0))


def test_pasted_cells_and_their_truth(apart, crowded):
    n = len(crowded.polygons["rbc"])
    assert n == crowded.counts["rbc"] == 48 and crowded.counts["wbc"] == apart.counts["wbc"]
    shape = crowded.masks["rbc"].shape
    assert np.array_equal(edge_mask(crowded.polygons["rbc"], shape), crowded.edges["rbc"])
    assert (crowded.masks["rbc"] >= apart.masks["rbc"]).all()
    parts = label(crowded.masks["rbc"] & ~crowded.edges["rbc"], connectivity=2)
    assert abs((np.bincount(parts.ravel())[1:] >= 200).sum() - n) <= 2
    for cell in ("wbc", "plt"):
        assert np.array_equal(crowded.masks[cell], apart.masks[cell])
        assert not (crowded.masks["rbc"] & apart.masks[cell]).any()


def test_pasting_changes_the_cells_alone(apart, crowded):
    changed = (crowded.image != apart.image).any(axis=2)
    reach = cv2.dilate(crowded.masks["rbc"].view(np.uint8), np.ones((15, 15), np.uint8)) > 0
    assert changed.any() and not changed[~reach].any()
    again = paste_cells(apart, 12, np.random.default_rng(0))
    assert np.array_equal(again.image, crowded.image)
    none = paste_cells(apart, 0, np.random.default_rng(0))
    assert np.array_equal(none.image, apart.image) and none.counts == apart.counts
    assert np.array_equal(none.edges["rbc"], apart.edges["rbc"])


@pytest.mark.parametrize(("through", "cells"), [(0.0, 1.0), (1.0, 2.0)])
def test_light_passes_both_cells_or_the_upper_one(through, cells):
    smear = synthetic_smear(5, overlap=0, rbc=36, wbc=0, plt=0, pallor=0, uneven=0, noise=0)
    after = paste_cells(smear, 8, np.random.default_rng(2), (through, through))
    pasted = [edge_mask([p], smear.masks["rbc"].shape) for p in after.polygons["rbc"][36:]]
    filled = sum(cv2.floodFill(e.astype(np.uint8), None, (0, 0), 9)[1] == 0 for e in pasted)
    inner = cv2.erode(smear.masks["rbc"].view(np.uint8), np.ones((9, 9), np.uint8)) > 0
    green = {name: -np.log(s.image[..., 1] / 255.0) for name, s in (("a", after), ("b", smear))}
    light = np.median(green["b"][~smear.masks["rbc"]])
    both = (green["a"] - light)[inner & (filled == 1)]
    one = np.median((green["b"] - light)[inner])
    assert abs(np.median(both) / one - cells) < 0.2


def test_no_lone_cell_no_paste():
    pair = synthetic_smear(2, (128, 160), rbc=2, wbc=0, plt=0, overlap=0.5)
    assert len(paste_cells(pair, 3, np.random.default_rng(0)).polygons["rbc"]) == 2
    blank = synthetic_smear(2, (128, 160), rbc=0, wbc=0, plt=0)
    assert not paste_cells(blank, 3, np.random.default_rng(0)).masks["rbc"].any()


@pytest.mark.parametrize("look", ["grey", "olive", "cream", "pale"])
def test_drawn_white_cells_and_their_truth(look):
    smear = synthetic_smear(7, (480, 640), rbc=20, wbc=1, plt=2, look=look)
    after = draw_white_cells(smear, 5, np.random.default_rng(1))
    new = after.masks["wbc"] & ~smear.masks["wbc"]
    assert after.masks["wbc"][smear.masks["wbc"]].all() and after.image.dtype == np.uint8
    assert after.counts == {**smear.counts, "wbc": smear.counts["wbc"] + 5}
    assert np.array_equal(after.masks["rbc"], smear.masks["rbc"])
    # Nothing else is touched, and each cell is darker in green than the empty field around it
    changed = (after.image != smear.image).any(axis=2)
    reach = cv2.dilate(new.view(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert changed[new].mean() > 0.95 and not changed[~reach].any()
    empty = np.median(smear.image[~np.any(list(smear.masks.values()), axis=0)][:, 1])
    cells = label(new)
    assert cells.max() >= 1
    for number in range(1, cells.max() + 1):
        green = after.image[cells == number][:, 1]
        if len(green) > 2000:  # Nuclei and cytoplasm
            assert np.percentile(green, 5) < 0.5 * empty and np.median(green) < 0.95 * empty
    again = draw_white_cells(smear, 5, np.random.default_rng(1))
    assert np.array_equal(again.image, after.image)
    none = draw_white_cells(smear, 0, np.random.default_rng(1))
    assert np.array_equal(none.image, smear.image) and none.counts == smear.counts


def test_no_room_no_drawn_cell():
    smear = synthetic_smear(2, (128, 160), rbc=0, wbc=0, plt=0)
    full = replace(smear, masks={**smear.masks, "wbc": np.ones((128, 160), bool)})
    after = draw_white_cells(full, 3, np.random.default_rng(0))
    assert np.array_equal(after.image, full.image) and after.counts == full.counts

"""What the star network learns from: truth, chips, targets, and a short training."""

import dataclasses
import json

import cv2
import h5py
import numpy as np
import pytest
from skimage.measure import label

from bloodcount.errors import InputError
from bloodcount.files import sha256, write_text
from bloodcount.settings import CELLS
from bloodcount.star_chips import (
    CHANGES,
    StarChip,
    changed,
    cut_chip,
    draw_chip,
    margin,
    overlap,
    places,
    targets,
)
from bloodcount.star_shapes import DIAMETER, parts_of
from bloodcount.star_training import (
    StarSchedule,
    best_threshold,
    in_units,
    star_network,
    train_stars,
)
from bloodcount.star_truth import (
    PLATELET,
    RED,
    WHITE,
    StarTruth,
    own_truth,
    parted,
    red_diameter,
    star_truth,
)
from bloodcount.stars import Stars, filled
from bloodcount.synthetic import synthetic_smear

SMALL = StarSchedule(epochs=1, steps=2, batch=2, side=64, warm=1)


@pytest.fixture(scope="module")
def smear():
    return synthetic_smear(seed=6, shape=(700, 900), rbc=80, wbc=4, plt=8)


@pytest.fixture(scope="module")
def truth(smear):
    return star_truth(smear)


def test_truth_holds_every_cell_at_the_known_size(smear, truth):
    assert [len(truth.numbers(kind)) for kind in (RED, WHITE)] == [80, 4]
    area = np.bincount(truth.labels[truth.labels > 0])[truth.numbers(RED)]
    assert 2 * np.sqrt(np.median(area) / np.pi) == pytest.approx(DIAMETER, rel=0.03)
    assert truth.zoom == pytest.approx(DIAMETER / red_diameter(smear))


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_held_out_is_neither_cell_nor_background(smear, truth, cell):
    kept = star_truth(smear, set(CELLS) - {cell})
    kind = CELLS.index(cell) + 1
    was = truth.kinds[truth.labels.clip(0)] == kind
    assert len(kept.numbers(kind)) == 0 and (kept.labels[was] == -1).all()
    assert cell not in kept.whole


def test_a_type_without_a_mask_is_not_taught_as_background(smear):
    masks = {cell: mask for cell, mask in smear.masks.items() if cell != "wbc"}
    kept = star_truth(dataclasses.replace(smear, masks=masks))
    white = cv2.resize(smear.masks["wbc"].astype(np.uint8), kept.labels.shape[::-1]) > 0
    assert (kept.labels[white] == 0).mean() < 0.05


def test_without_outlines_only_lone_cells_are_learnt(smear, truth):
    kept = star_truth(dataclasses.replace(smear, polygons={}, edges={}))
    red = kept.kinds[kept.labels.clip(0)] == RED
    assert 0 < len(kept.numbers(RED)) < 80 and "rbc" not in kept.whole
    all_red = (truth.kinds[truth.labels.clip(0)] == RED).astype(np.uint8)
    all_red = cv2.resize(all_red, red.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    assert (all_red & (kept.labels == 0)).sum() < 0.05 * all_red.sum() and red.any()


def test_found_cells_that_fit_the_mask_fill_its_clumps(smear, truth):
    masked = dataclasses.replace(smear, polygons={}, edges={})
    red = np.where(truth.kinds[truth.labels.clip(0)] == RED, truth.labels, 0)
    seen = {
        int(n): parts_of(red == n)[0][2][:, ::-1] + [s.start for s in parts_of(red == n)[0][0]]
        for n in truth.numbers(RED)
    }

    def found(picture, by=0):
        scale = np.divide(picture.shape[:2], red.shape)
        return [outline * scale + (0, by) for outline in seen.values()]

    lone, filled = star_truth(masked), star_truth(masked, CELLS, found)
    off = star_truth(masked, CELLS, lambda picture: found(picture, 15))
    counts = [len(each.numbers(RED)) for each in (lone, off, filled)]
    assert counts[0] < 60 and counts[2] > 72 and counts[1] < counts[2] - 10
    assert "rbc" in filled.whole
    assert (filled.labels < 0).sum() < 0.3 * (lone.labels < 0).sum()


def test_lobes_are_joined_and_touching_cells_parted():
    mask = np.zeros((200, 300), np.uint8)
    for at in ((60, 60), (84, 66), (110, 60)):
        cv2.circle(mask, at[::-1], 11, 1, -1)
    for at in ((100, 180), (100, 225)):
        cv2.circle(mask, at[::-1], 24, 1, -1)
    assert len(parted(mask > 0, 3, 18.5)) == 3


def test_a_smear_without_red_cells_is_refused(smear):
    with pytest.raises(InputError, match="magnification"):
        star_truth(dataclasses.replace(smear, polygons={}, masks={"plt": smear.masks["plt"]}))


def test_own_labels(smear):
    labels = label(smear.masks["wbc"])
    own = own_truth("mine", smear.image, {"wbc": labels}, diameter=68)
    assert len(own.numbers(WHITE)) == labels.max() and own.whole == {"wbc"}
    with pytest.raises(InputError, match="diameter"):
        own_truth("mine", smear.image, {"wbc": labels})
    with pytest.raises(InputError, match="cell types"):
        own_truth("mine", smear.image, {"neutrophil": labels}, diameter=68)


@pytest.mark.parametrize("seed", range(8))
def test_chips_keep_their_books(truth, seed):
    rng = np.random.default_rng(seed)
    chip = changed(cut_chip(truth, (200, 300), rng), rng)
    assert chip.image.shape == (256, 256, 3) and np.isfinite(chip.image).all()
    assert 0 <= chip.image.min() and chip.image.max() <= 1 and chip.image.dtype == np.float32
    assert chip.labels.max() < len(chip.kinds) and chip.labels.min() >= -1


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_changes(truth, change):
    for seed in range(5):
        chip = cut_chip(truth, (200, 300), np.random.default_rng(1), shift=0)
        before = chip.image.copy()
        change(chip, np.random.default_rng(seed))
        if np.abs(chip.image - before).max() > 0.003:
            return
    pytest.fail(f"{change.__name__} left all chips as they were")


def test_a_covered_cell_stays_in_one_piece(truth):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        chip = cut_chip(truth, (200, 300), rng, shift=0)
        before = {i: label(chip.labels == i).max() for i in np.unique(chip.labels) if i > 0}
        overlap(chip, rng)
        for number in np.unique(
            chip.labels[chip.labels > 0]
        ):  # Copies may be covered by later ones
            parts = label(chip.labels == number, connectivity=1).max()
            assert parts <= max(before.get(number, 1), 1)


def test_an_upper_cell_is_whole():
    labels = np.zeros((120, 120), np.int32)
    labels[np.hypot(*np.mgrid[-60:60, -60:60]) < 15] = 1
    chip = StarChip(np.full((120, 120, 3), 0.8, np.float32), labels, np.array([0, RED]), 1.0)
    chip.image[labels > 0] = 0.5
    area = (labels == 1).sum()
    overlap(chip, np.random.default_rng(3))
    last = len(chip.kinds) - 1
    assert last > 1 and (chip.labels == last).sum() == area


def test_margins_hold_no_cells(truth):
    chip = cut_chip(truth, (200, 300), np.random.default_rng(0), shift=0)
    margin(chip, np.random.default_rng(4))
    dark = (chip.image == 0).all(axis=2)
    assert dark.any() and (chip.labels[dark] == 0).all()


def test_targets_of_a_disc():
    labels = np.zeros((64, 64), np.int32)
    labels[(np.hypot(*np.mgrid[-32:32, -32:32]) < 12)] = 1
    labels[:4] = -1
    depth, reach, kinds = targets(StarChip(np.zeros((64, 64, 3)), labels, np.array([0, WHITE]), 1))
    assert np.abs(reach[16, 16, :32] - 12).max() < 1 and depth[16, 16] == 1
    assert kinds[16, 16].tolist() == [0, 0, 1, 0] and kinds[20, 2].tolist() == [1, 0, 0, 0]
    assert (depth[:2] == -1).all() and (kinds[:2] == -1).all() and depth[2:].min() == 0


def test_rare_cells_are_drawn_often(truth):
    rng, at = np.random.default_rng(0), [places(truth)]
    kinds = [set(draw_chip([truth], at, rng, 64).kinds[1:].tolist()) for _ in range(60)]
    assert sum(WHITE in k for k in kinds) > 10 and sum(PLATELET in k for k in kinds) > 8


def test_units_change_nothing_but_the_unit():
    model = star_network()
    picture = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    before = model.keras_model.predict_on_batch(picture)[1]
    in_units(model, 8)
    after = model.keras_model.predict_on_batch(picture)[1]
    assert np.abs(before - 8 * after).max() < 1e-4


@pytest.mark.slow
def test_a_training_starts_from_the_weights_of_another(truth, tmp_path):
    few = dataclasses.replace(SMALL, epochs=2)
    folder = train_stars([truth], tmp_path / "first", few)
    assert len((folder / "history.csv").read_text().splitlines()) == 3
    still = dataclasses.replace(SMALL, steps=1, rate=0.0)
    card = dict.fromkeys(("cell", "recipe", "key", "data"), "") | {
        "network": "stardist", "weights_sha256": sha256(folder / "weights_best.h5"),
        "thresholds": {}, "overlap": 0.4, "diameter": 37, "zoom": 0.5,
    }  # fmt: skip
    write_text(folder / "card.json", json.dumps(card))
    second = train_stars([truth], tmp_path / "second", still, start=folder)

    def kernel(path):
        with h5py.File(path / "weights_best.h5") as file:
            return file["prob"]["prob"]["kernel"][()]

    assert np.abs(kernel(folder) - kernel(second)).max() < 1e-6


@pytest.mark.parametrize(("false", "chosen"), [(2, 0.6), (8, 0.6), (0, 0.4)])
def test_of_thresholds_that_are_nearly_as_good_the_counts_decide(false, chosen):
    "20 cells: at 0.4 all and some false ones, at 0.6 as many as there are, of which one is false."
    centre = np.float32([(row, col) for row in range(15, 180, 30) for col in range(15, 180, 30)])
    score = np.full(len(centre), 0.1, np.float32)
    score[:20], score[19], score[20 : 20 + false] = 0.9, 0.5, 0.5
    score[20] = 0.9 if false else 0.1
    kind = np.zeros(len(centre), int)
    stars = Stars(centre, np.full((len(centre), 32), 9, np.float32), score, kind)
    labels = filled(stars[:20], (180, 180))
    image = np.zeros((180, 180, 3), np.uint8)
    truth = StarTruth("drawn", image, labels, np.array([0] + 20 * [RED]), 1.0, frozenset({"rbc"}))
    threshold, f1 = best_threshold([(truth, stars)], "rbc", (0.4, 0.6))
    assert threshold == chosen
    assert f1 == pytest.approx(1 if not false else 38 / 40)


def test_nothing_to_learn_is_refused(truth, tmp_path):
    blank = dataclasses.replace(truth, labels=np.zeros_like(truth.labels))
    with pytest.raises(InputError, match="no labelled cell"):
        train_stars([blank], tmp_path / "none", SMALL)

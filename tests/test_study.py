"What the paper leaves out: estimates, drifts, contacts and errata, against what is known."

import dataclasses
import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bloodcount.counting import COUNTERS, count
from bloodcount.data import DataSet, names, read_smear
from bloodcount.errors import InputError, SettingsError
from bloodcount.evaluation import count_accuracy, instances_from_polygons, matching, pixel_scores
from bloodcount.segmentation import Maps, load_segmenter, truth_maps
from bloodcount.settings import PROJECT, Thresholds, load_settings
from bloodcount.studies import (
    baselines,
    colour,
    combining,
    errata,
    held_out,
    magnification,
    overlap,
    protocol,
    results,
)
from bloodcount.synthetic import synthetic_smear

HALF = Thresholds(mask=0.5, edge=0.5)


@pytest.fixture
def run(tmp_path) -> protocol.Run:
    "A run on three synthetic smears, the last for testing."
    settings = load_settings("smoke")
    sample = dataclasses.replace(settings.sample, smears=3, height=200, width=240)
    paths = dataclasses.replace(settings.paths, runs=tmp_path / "runs")
    settings = dataclasses.replace(settings, sample=sample, paths=paths)
    return protocol.Run(settings, protocol.sample_data(settings), "bloodcount", 0, tmp_path)


@pytest.fixture
def index_run(tmp_path) -> protocol.Run:
    "A run of the paper's profile on the data set's index alone."
    shutil.copy(PROJECT / "data" / "all-idb1-index.csv", tmp_path / "index.csv")
    return protocol.Run(load_settings("paper"), DataSet(tmp_path), "bloodcount", 0, tmp_path)


@pytest.fixture
def real_run(data_folder, tmp_path) -> protocol.Run:
    settings = load_settings("paper")
    return protocol.Run(settings, DataSet(data_folder), "bloodcount", 0, tmp_path)


def magnified(maps: Maps, factor: float) -> Maps:
    planes = (cv2.resize(plane, None, fx=factor, fy=factor) for plane in (maps.mask, maps.edge))
    return Maps(*planes)


def test_rows_are_made_once_and_anew_for_what_has_changed(run):
    made = []

    def rows(about: tuple) -> list[dict]:
        return protocol.kept_rows(
            run, "test", about, lambda: made.append(about) or [{"n": len(made)}]
        )

    assert rows((1, "a")) == rows((1, "a")) == [{"n": 1}]
    assert rows((2, "a")) == [{"n": 2}] and made == [(1, "a"), (2, "a")]


def test_the_authors_segnet_loses_on_held_out_images(index_run):
    "notes of the authors' result files: 95.19 and 90.16 by CHT, 82.7 and 56.0, 88.1 and 73.2."
    counts = results.segnet_counts("rbc_count")[0]
    counts = counts.assign(truth="rbc_count", model="segnet", weights="authors")
    lost = held_out.held_out(index_run, counts).set_index(["method", "quantity", "images"])
    accuracy = lost["value"].xs("count_accuracy", level="quantity").unstack()
    assert accuracy.loc["cht"].to_dict() == pytest.approx(
        {"test": 90.16, "train": 95.19}, abs=0.006
    )
    assert accuracy.loc["ccl"].to_dict() == pytest.approx({"test": 56.0, "train": 82.7}, abs=0.06)
    assert accuracy.loc["edt"].to_dict() == pytest.approx({"test": 73.2, "train": 88.1}, abs=0.06)
    lost = lost.sort_index()
    difference = lost.loc["cht", "value"].xs("test-train", level="images")
    low, high = (
        difference["count_accuracy_difference_low"],
        difference["count_accuracy_difference_high"],
    )
    assert low < difference["count_accuracy_difference"] < high
    assert np.isclose(difference["count_accuracy_difference"], 90.16 - 95.19, atol=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_no_constant_is_better_on_the_training_images(seed):
    real = np.random.default_rng(seed).integers(0, 60, 12)
    best = baselines.best_constant(real)
    scores = [count_accuracy(np.full(12, value), real).mean() for value in range(200)]
    assert scores[best] == max(scores)


def test_the_area_of_a_true_mask_counts_cells_that_do_not_overlap(run):
    areas = baselines.true_areas(run, "plt")
    one = baselines.cell_area(run, "plt_count")
    assert one > 0 and list(areas["image"]) == list(run.data.index.index)
    results = baselines.counted_by_area(run, areas, "plt_count", "truth", "none")
    assert results["value"].notna().any()
    assert set(results["quantity"]) == {"count_accuracy_area", "bias_area"}
    assert baselines.counted_by_area(run, areas.iloc[:0], "plt_count", "truth", "none").empty


@pytest.mark.parametrize("radius", [15, 22, 34, 50, 72])
@pytest.mark.parametrize("overlap, soft", [(0, 0), (0.3, 0), (0.3, 1.5)])
def test_the_radius_of_cells_is_estimated_from_maps(radius, overlap, soft):
    shape = (11 * radius, 15 * radius)
    field = synthetic_smear(4, shape, rbc=24, wbc=1, plt=3, radius=radius, overlap=overlap)
    maps = truth_maps(field, "rbc")
    if soft:
        maps = Maps(*(cv2.GaussianBlur(plane, (0, 0), soft) for plane in (maps.mask, maps.edge)))
    assert abs(magnification.cell_radius(maps, HALF) / radius - 1) < 0.1


def test_specks_do_not_change_the_estimate():
    maps = truth_maps(synthetic_smear(5, (400, 500), rbc=25, overlap=0.1), "rbc")
    mask = maps.mask.copy()
    mask[5::40, 5::40] = 1
    clean, dusty = (magnification.cell_radius(Maps(m, maps.edge), HALF) for m in (maps.mask, mask))
    assert abs(dusty / clean - 1) < 0.02
    assert np.isnan(magnification.cell_radius(Maps(0 * mask, maps.edge), HALF))


@pytest.mark.parametrize("factor", [0.7, 1.4, 2])
def test_scaled_parameters_count_magnified_cells(factor):
    settings = load_settings("paper")
    maps = truth_maps(synthetic_smear(3, rbc=30, overlap=0.2), "rbc")
    scaled = magnification.scaled(settings, "rbc", factor)
    for method in ("ccl", "watershed", "edt"):
        found = [len(count(maps, "rbc", method, settings))]
        found.append(len(count(magnified(maps, factor), "rbc", method, scaled)))
        assert abs(found[1] - found[0]) <= 1, method


def test_scaled_settings_leave_the_rest_alone():
    settings = load_settings("paper")
    twice = magnification.scaled(settings, "rbc", 2)
    before, after = settings.count["rbc"], twice.count["rbc"]
    assert after["cht"].radius == tuple(2 * r for r in before["cht"].radius)
    assert after["cht"].votes == before["cht"].votes and after["cht"].dp == before["cht"].dp
    assert after["watershed"].smooth == 2 * before["watershed"].smooth
    assert twice.count["rbc_mask"]["ccl"].min_area == 4 * settings.count["rbc_mask"]["ccl"].min_area
    assert {k: twice.count[k] for k in ("wbc", "plt")} == {
        k: settings.count[k] for k in ("wbc", "plt")
    }
    tiny = magnification.scaled(settings, "plt", 0.01).count["plt"]
    assert tiny["edt"].min_distance == 1 and tiny["edt"].min_area == 0


def test_colours_change_as_they_are_told():
    image = synthetic_smear(1, (128, 160), rbc=4, wbc=1, plt=1).image
    for kind, neutral in (("brightness", 1), ("white balance", 1), ("gamma", 1)):
        assert np.array_equal(colour.shifted(image, kind, neutral), image)
    for kind, neutral in (("hue", 0), ("saturation", 1)):
        assert (
            np.abs(colour.shifted(image, kind, neutral).astype(int) - image).max() <= 5
        )  # HSV in 8 bits
    for kind, levels in colour.SHIFTS.items():
        for level in levels:
            changed = colour.shifted(image, kind, level)
            assert changed.dtype == np.uint8 and not np.array_equal(changed, image)
    red, green, blue = (colour.shifted(image, "white balance", 1.1) / np.maximum(image, 1.0)).mean(
        (0, 1)
    )
    assert red > green > blue
    with pytest.raises(SettingsError, match="no change of colour 'hues'. Did you mean 'hue'"):
        colour.shifted(image, "hues", 1)


def test_small_changes_of_colour_move_the_count_little(authors_folder):
    "The middle levels of each kind but hue, which the conclusion of the paper is about."
    settings = load_settings("smoke")
    segmenter = load_segmenter("rbc", settings, "authors")
    image = synthetic_smear(3, (320, 416), rbc=24, wbc=0, plt=2, overlap=0.2, look="cream").image
    found = len(count(segmenter(image), "rbc", "watershed", settings))
    assert abs(found - 24) <= 3
    for kind in ("brightness", "white balance", "gamma", "saturation"):
        for level in colour.SHIFTS[kind][1:3]:
            maps = segmenter(colour.shifted(image, kind, level))
            assert abs(len(count(maps, "rbc", "watershed", settings)) - found) <= 5, (kind, level)


def test_contacts_of_discs():
    "Two that overlap, one that touches neither, and one that encloses nothing."
    row, col = np.indices((80, 160))
    discs = [np.hypot(row - 40, col - c) <= 18 for c in (30, 60, 130)] + [row < 0]
    cells = sparse.csr_array(np.reshape(discs, (4, -1)).astype(np.int32))
    share, neighbours = overlap.contacts(cells, (80, 160))
    assert neighbours.tolist() == [1, 1, 0, 0] and share[2] == share[3] == 0
    assert np.isclose(share[0], share[1]) and 0.15 < share[0] < 0.35
    assert overlap.contact_class(np.array([0, 0.05, 0.1, 0.2, 1])).tolist() == [0, 1, 1, 2, 3]


def test_contacts_of_all_outlined_cells(real_run):
    "63 % of the 5,341 cells touch another."
    touching = []
    for name in names(real_run.data, "rbc", having=["polygons"]):
        smear = read_smear(real_run.data, name, ("rbc",))
        shape = smear.image.shape[:2]
        share, neighbours = overlap.contacts(
            instances_from_polygons(smear.polygons["rbc"], shape), shape
        )
        assert ((share > 0) == (neighbours > 0)).all()
        touching.append(share > 0)
    touching = np.concatenate(touching)
    assert (len(touching), touching.sum()) == (5341, 3363)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_is_what_is_matched(seed):
    rng = np.random.default_rng(seed)
    truth, other = (
        sparse.csr_array((rng.random((12, 60)) < 0.3).astype(np.int32)) for _ in range(2)
    )
    for threshold in (0.1, 0.2, 0.5):
        found = overlap.which_found(truth, other, threshold)
        assert found.sum() == matching(truth, other, (threshold,))["tp"].iloc[0]
    nothing = sparse.csr_array((0, 60), dtype=np.int32)
    assert (
        not overlap.which_found(truth, nothing).any()
        and overlap.which_found(nothing, truth).size == 0
    )


def test_the_paper_against_the_data(real_run):
    results = errata.errata_results(real_run).set_index(["quantity", "cell", "images"])
    pairs = results[["paper", "value"]]
    known = {
        ("images", "plt", "test"): (31, 30),
        ("images", "plt", "all"): (102, 101),
        ("masks", "rbc", "all"): (108, 107),
        ("masks", "wbc", "all"): (108, 106),
        ("images_in_the_text", "wbc", "train"): (74, 73),
        ("images_of_native_size", "wbc", "all"): (108, 74),
        ("different_images", "wbc", "all"): (108, 107),
        ("counts_that_are_components", "plt", "all"): (11, 5),
    }
    assert {key: tuple(pairs.loc[key]) for key in known} == known
    nothing = results["value"].xs("all_background_accuracy").droplevel("images").round(4)
    assert nothing.tolist() == [0.4659, 0.9133, 0.9881, 0.9988]
    dice = results["value"].xs("dice_of_two_annotations").round(3)
    assert dice.droplevel("images").to_dict() == {"rbc_mask": 0.992, "wbc": 0.977, "plt": 0.718}
    assert errata.same_pictures(real_run.data) == [["Im093_0", "Im108_0"]]
    table = errata.errata_table(real_run, results.reset_index())
    assert len(table) == 13 and (table != "nan").all().all()
    assert set(errata.silence_table(real_run, results.reset_index())["map"]) >= {"platelets"}


def test_platelet_truths_are_those_of_the_index(real_run):
    both = errata.component_counts(real_run.data, 50).set_index("image")
    index = real_run.data.index.loc[both.index]
    assert len(both) == 11
    assert (both["components"] == index["plt_mask_components"]).all()
    assert (both["published"] == index["plt_count"]).all()
    assert (both["at_least"] <= both["components"]).all()


def test_combinations_of_equal_networks_change_nothing():
    maps = truth_maps(synthetic_smear(3, rbc=30, overlap=0.2), "rbc")
    for name in ("average", "own_mask", "own_edge"):
        both = combining.COMBINATIONS[name](maps, maps)
        assert np.array_equal(both.mask, maps.mask) and np.array_equal(both.edge, maps.edge)
    wider = combining.COMBINATIONS["wider_edge"](maps, None)
    assert (wider.edge >= maps.edge).all() and wider.edge.sum() > maps.edge.sum()
    product = combining.COMBINATIONS["mask_times_rest"](maps, None)
    assert np.array_equal(product.mask, maps.mask * (1 - maps.edge)) and not product.edge.any()
    one = combining.average(Maps(maps.mask), Maps(maps.mask))
    assert one.edge is None and np.array_equal(one.mask, maps.mask)


def test_a_data_set_without_annotations_makes_empty_tables(tmp_path):
    "The one real smear of the authors' package has counts and no annotation."
    settings = load_settings("paper")
    paths = dataclasses.replace(settings.paths, runs=tmp_path)
    rows = (PROJECT / "data" / "all-idb1-index.csv").read_text().splitlines()
    bare = next(row for row in rows if row.startswith("Im037_0")).split(",")
    bare[4:9] = "0" * 5
    (tmp_path / "index.csv").write_text("\n".join([rows[0], ",".join(bare)]) + "\n")
    image = tmp_path / "images" / "Im037_0.png"
    image.parent.mkdir()
    cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
    settings = dataclasses.replace(settings, paths=paths)
    run = protocol.Run(settings, DataSet(tmp_path), "bloodcount", 0, tmp_path)
    counts = pd.DataFrame(
        [("Im037_0", "rbc", "cht", 100)], columns=["image", "cell", "method", "predicted"]
    )
    counts = counts.assign(truth="rbc_count", model="do_unet", weights="bloodcount")
    results = held_out.held_out(run, counts)
    own = held_out.best_counts(run, counts, results)
    none = results.long_form(run, [])
    tables = [
        held_out.held_out_table(results),
        held_out.agreement_by_cell(none),
        baselines.pixel_baseline_table(baselines.all_background(run)),
        baselines.count_baseline_table(run, baselines.by_constant(run, "rbc_count")),
        overlap.overlap_table(overlap.overlap_results(run, pd.DataFrame())),
        overlap.contact_counts(none),
        colour.colour_table(none),
        magnification.magnification_table(none),
        errata.platelet_table(run),
        errata.twice_table(run),
        combining.combining_table(run, none, "rbc_count"),
        errata.errata_table(run, errata.errata_results(run)),
    ]
    assert all(table.empty for table in tables)
    related = held_out.related_table(run, results)
    quoted = {"the paper", *held_out.RELATED.values()}
    assert len(related) == 22 and set(related["work"]) == quoted, "nothing of ours was counted"
    assert (
        np.isnan(magnification.known_radius(run)) and magnification.other_magnifications(run) == []
    )
    figures = [
        overlap.overlap_figure(run, none, ""),
        colour.colour_figure(none, "rbc"),
        magnification.magnification_figure(none, "cht", ""),
        held_out.bland_altman_figure(own.iloc[:0], ""),
    ]
    assert all("No image here" in figure.texts[0].get_text() for figure in figures)


def test_the_pooled_dice_is_that_of_all_pixels_together():
    rng = np.random.default_rng(5)
    shapes = {"large": (60, 80), "small": (20, 30), "missed": (30, 30), "empty": (10, 12)}
    truths = {name: rng.random(shape) < 0.2 for name, shape in shapes.items()}
    truths["empty"][:] = False
    found = {name: truth ^ (rng.random(truth.shape) < 0.1) for name, truth in truths.items()}
    found["missed"][:] = False
    scores = pd.DataFrame({n: pixel_scores(found[n], truths[n]) for n in shapes}).T
    sizes = pd.Series({name: truth.size for name, truth in truths.items()})
    f, t = (np.concatenate([part[n].ravel() for n in shapes]) for part in (found, truths))
    expected = 2 * (f & t).sum() / (f.sum() + t.sum())
    assert results.pooled_dice(scores, sizes) == pytest.approx(expected)
    nothing = pd.DataFrame([pixel_scores(np.zeros((4, 4)), np.zeros((4, 4)))])
    assert results.pooled_dice(nothing, pd.Series([16])) == 1


def test_the_table_of_combinations_has_a_title_for_each():
    assert set(combining.COMBINATION_TITLES) == set(combining.COMBINATIONS) >= set(combining.ALONE)
    assert set(COUNTERS) >= {"cht"} and Path(PROJECT / "data" / "paper" / "claims.csv").exists()


def test_images_are_taken_two_at_a_time_in_order_until_one_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOODCOUNT_PROGRESS", str(tmp_path / "bar"))
    both, seen = threading.Barrier(2, timeout=20), []

    def make(number):
        seen.append(number)
        both.wait()  # Passed only where two are under way
        time.sleep(0.2 * (number % 2 == 0))
        return 10 * number

    assert protocol.two_at_a_time(make, range(6), "numbers") == [0, 10, 20, 30, 40, 50]
    assert sorted(seen) == list(range(6)) and "6/6" in (tmp_path / "bar").read_text()

    def fail(number):
        seen.append(number)
        time.sleep(0.1)
        if number == 1:
            raise InputError("Im002_1.jpg is torn.")

    seen.clear()
    with pytest.raises(InputError, match="torn"):
        protocol.two_at_a_time(fail, range(50), "numbers")
    assert len(seen) < 10, "the others are not begun"

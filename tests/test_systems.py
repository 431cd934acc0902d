"The systems that the paper compares itself with: known masks give known counts."

import dataclasses
import json

import cv2
import numpy as np
import pytest

from bloodcount.counting import COUNTERS, discs
from bloodcount.drawing import METHOD_TITLES
from bloodcount.errors import InputError, IntegrityError
from bloodcount.segmentation import Maps, truth_maps
from bloodcount.settings import Thresholds, load_settings
from bloodcount.studies import protocol, systems
from bloodcount.studies.results import RESULTS, network_title
from bloodcount.studies.tables import counting_table
from bloodcount.synthetic import synthetic_smear

HALF = Thresholds(0.5, 0.5)


@pytest.fixture
def run(tmp_path, monkeypatch) -> protocol.Run:
    "A run on three synthetic smears, the last for testing; what is tuned stays in the test's folder."
    monkeypatch.setenv("BLOODCOUNT_PROGRESS", str(tmp_path / "bar"))
    monkeypatch.setattr(systems, "SYSTEMS_FOLDER", tmp_path / "systems")
    settings = load_settings("smoke")
    sample = dataclasses.replace(settings.sample, smears=3, height=240, width=320)
    paths = dataclasses.replace(settings.paths, runs=tmp_path / "runs")
    few = dataclasses.replace(settings.evaluate, bootstrap=10)
    settings = dataclasses.replace(settings, sample=sample, paths=paths, evaluate=few)
    return protocol.Run(settings, protocol.sample_data(settings), "authors", 0, tmp_path)


def picture(*cells: tuple[int, int, int, int]) -> np.ndarray:
    "Dark discs on a bright field: row, col, radius, and what they take of green."
    image = np.full((240, 320, 3), 230, np.uint8)
    for row, col, radius, dark in cells:
        colour = (230 - dark // 2, 230 - dark, 230 - dark // 4)
        cv2.circle(image, (col, row), radius, colour, -1)
    return image


def title(name: str) -> str:
    who = systems.system_who(name)
    return network_title(who["model"], who["weights"])


# Two red cells, a white one, and a speck
DRAWN = picture((60, 60, 30, 60), (60, 200, 30, 60), (170, 120, 45, 180), (200, 280, 3, 60))


def round_mask(*cells: tuple[int, int, int]) -> np.ndarray:
    return discs(
        np.array([c[:2] for c in cells]), np.array([c[2] for c in cells]), (240, 320)
    ) > 0  # fmt: skip


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("channel", systems.CHANNELS)
def test_otsu_parts_background_red_and_white_cells(channel):
    white = systems.Otsu(channel, 3, -1, 5)
    red = systems.Otsu(channel, 3, 0, 5, white)
    assert iou(systems.otsu_mask(DRAWN, white), round_mask((170, 120, 45))) > 0.95
    assert iou(systems.otsu_mask(DRAWN, red), round_mask((60, 60, 30), (60, 200, 30))) > 0.95
    every = systems.otsu_mask(DRAWN, dataclasses.replace(red, opening=0, without=None))
    assert every[200, 280] and every[170, 120] and not every[120, 250]


def test_a_pale_middle_is_filled_and_the_outside_is_not():
    ring = round_mask((120, 120, 60)) & ~round_mask((120, 120, 40))
    assert np.array_equal(systems.filled(ring), round_mask((120, 120, 60)))
    corner = np.zeros((20, 20), bool)
    corner[10, :11] = corner[:11, 10] = True
    assert np.array_equal(systems.filled(corner), corner), "open to the border: no hole"
    assert not systems.filled(~corner)[10, 5]
    assert systems.filled(np.ones((4, 5), bool)).all()
    assert not systems.filled(np.zeros((4, 5), bool)).any()


def test_an_image_of_one_colour_has_no_cells():
    blank = np.full((40, 60, 3), 200, np.uint8)
    assert not systems.otsu_mask(blank, systems.Otsu("green", 3, 0, 5)).any()
    assert not systems.grabcut_mask(blank, systems.GrabCut(12.0, 3)).any()


def test_grabcut_takes_what_strong_edges_enclose():
    mask = systems.grabcut_mask(DRAWN, systems.GrabCut(25.0, 3))
    assert mask.shape == (240, 320)
    assert iou(mask, round_mask((170, 120, 45))) > 0.85, "the white cell, and no red one"
    assert np.array_equal(mask, systems.grabcut_mask(DRAWN, systems.GrabCut(25.0, 3)))
    weaker = systems.seeds(cv2.resize(DRAWN, (80, 60)), systems.GrabCut(4.0, 3))
    assert weaker[15, 15] and weaker[15, 50], "weak edges enclose red cells too"


def test_edge_strength_is_in_grey_levels_per_px():
    ramp = np.repeat(np.arange(0, 240, 3, dtype=np.uint8)[None, :, None], 60, axis=0)
    strength = systems.edge_strength(np.repeat(ramp, 3, axis=2))
    assert strength[30, 10:-10] == pytest.approx(3, abs=0.05)


def test_quasi_euclidean_is_the_shortest_way_to_any_background():
    mask = np.ones((30, 40), bool)
    spots = [(3, 5), (20, 11), (25, 38)]
    mask[tuple(np.transpose(spots))] = False
    rows, cols = np.mgrid[:30, :40]
    ways = []
    for row, col in spots:
        down, across = abs(rows - row), abs(cols - col)
        ways.append(np.maximum(down, across) + (np.sqrt(2) - 1) * np.minimum(down, across))
    assert systems.quasi_euclidean(mask) == pytest.approx(np.min(ways, axis=0), abs=1e-4)


def test_metrics_are_ordered_as_their_unit_balls():
    mask = round_mask((120, 120, 50), (120, 200, 50))
    height = {metric: of(mask) for metric, of in systems.METRICS.items()}
    assert (height["chessboard"] <= height["euclidean"] + 1e-3).all()
    assert (height["euclidean"] <= height["quasi-euclidean"] + 1e-3).all()
    assert (height["quasi-euclidean"] <= height["city block"] + 1e-3).all()


@pytest.mark.parametrize("metric", systems.METRICS)
def test_touching_cells_are_parted_by_their_distances(metric):
    truth = ((120, 90, 30), (120, 142, 30), (40, 250, 25))
    maps = Maps(round_mask(*truth).astype(np.float32))
    found = systems.distance_ccl(maps, HALF, systems.DistanceCCL("mask", 0, metric, 12, 6))
    order = found.centre[np.argsort(found.centre[:, 1])]
    assert order == pytest.approx(np.array([c[:2] for c in truth]), abs=4)
    one = systems.distance_ccl(maps, HALF, systems.DistanceCCL("mask", 0, metric, 12, 40))
    assert len(one) == 2, "a wide dilation joins maxima that are near"
    high = systems.distance_ccl(maps, HALF, systems.DistanceCCL("mask", 0, metric, 200, 6))
    assert len(high) == 0
    small = systems.distance_ccl(maps, HALF, systems.DistanceCCL("mask", 3000, metric, 12, 6))
    assert len(small) == 2, "the small component is dropped"


@pytest.mark.parametrize("value", (0, 1))
def test_masks_of_one_value_are_counted(value):
    maps = Maps(np.full((30, 40), value, np.float32))
    for metric in systems.METRICS:
        found = systems.distance_ccl(maps, HALF, systems.DistanceCCL("mask", 0, metric, 1, 3))
        assert len(found) == value


def test_every_method_of_a_system_has_parameters_a_title_and_a_counter():
    for name, system in systems.SYSTEMS.items():
        assert title(name)
        for methods in system.methods.values():
            assert set(methods) <= systems.SYSTEM_COUNTERS.keys() & METHOD_TITLES.keys()
            assert set(methods) <= systems.PARAMETERS.keys()
    assert COUNTERS.items() <= systems.SYSTEM_COUNTERS.items()
    assert all(sentence.endswith(".") for sentence in systems.QUOTED_ONLY.values())


def test_what_was_not_tuned_says_so(run):
    with pytest.raises(InputError, match="otsu-rbc.json: not there. Run .*tune_systems"):
        systems.system_scores(run, "rbc", "otsu")
    path = systems.tuned_file("otsu", "rbc")
    path.parent.mkdir()
    path.write_text('{"counting": {}}')
    with pytest.raises(IntegrityError, match="otsu-rbc.json: damaged"):
        systems.read_tuned("otsu", "rbc")


def test_shipped_parameters_are_read_back_as_they_were_written():
    for name, system in systems.SYSTEMS.items():
        for cell, methods in system.methods.items():
            tuned = systems.read_tuned(name, cell)
            assert set(tuned.counting.count) == set(methods)
            assert tuned.counting.method in methods
            kept = json.loads(systems.tuned_file(name, cell).read_text(encoding="utf-8"))
            assert json.loads(json.dumps(dataclasses.asdict(tuned))) == kept


def test_tuned_on_training_images_and_scored_on_all(run, monkeypatch):
    few = {"channel": ("green", "saturation"), "grabcut": (9.0,)}
    monkeypatch.setattr(
        systems, "segmentations",
        lambda name, cell: [systems.GrabCut(s, 3) for s in few["grabcut"]]
        if name == "grabcut"
        else [systems.Otsu(c, 3, 0 if cell == "rbc" else -1, 3) for c in few["channel"]],
    )  # fmt: skip
    candidates = {"min_area": (50, 400), "radius": ((24, 56),), "votes": (8, 10)}
    monkeypatch.setattr(systems, "CANDIDATES", {"rbc": candidates, "wbc": candidates})
    systems.tune_systems(run)
    train = [n for n in run.data.index.index if run.data.index["rbc_split"][n] == "train"]
    assert systems.read_tuned("otsu", "rbc").images == train
    assert not systems.tuned_file("tran", "rbc").exists(), "no masks of SegNet are kept of these"

    counts = systems.system_scores(run, "rbc", "otsu").counts
    assert sorted(counts["image"].unique()) == sorted(run.data.index.index)
    assert set(counts["method"]) == {"cht", "watershed"}
    assert systems.system_scores(run, "rbc", "otsu").counts.equals(counts)

    results = systems.system_results(run, "rbc_count")
    assert list(results) == RESULTS and set(results["table"]) == {"counting_rbc_count"}
    f1 = results[results["quantity"] == "f1_50"].set_index(["method", "images"])["value"]
    assert f1["watershed", "all3"] > 0.3
    assert results["paper"].isna().all()
    table = counting_table(systems.system_results(run, "wbc_count"))
    assert set(table["segmented by"]) == {title(name) for name in ("otsu", "grabcut")}
    assert systems.system_results(run, "plt_count").empty


def test_the_best_metric_is_kept_and_all_are_told(run, monkeypatch):
    images = list(run.data.index.index[:2])

    def truth(folder, name):
        return truth_maps(protocol.read_smear(run.data, name), folder.name)

    monkeypatch.setattr(systems, "read_masks", truth)
    monkeypatch.setattr(systems, "tuning_images", lambda run, cell, most: images)
    monkeypatch.setattr(
        systems, "_DISTANCES", {"rbc": {"min_height": (12, 18), "dilation": (4, 8)}}
    )
    tuned = systems.tune_system(run, "tran", "rbc")
    assert tuned.segmentation is None and tuned.images == images
    assert set(tuned.scores) == {f"distance_ccl, {metric}" for metric in systems.METRICS}
    kept = tuned.counting.count["distance_ccl"]
    assert tuned.scores[f"distance_ccl, {kept.metric}"] == max(tuned.scores.values()) > 60
    assert tuned.counting.method == "distance_ccl"
    monkeypatch.setattr(systems, "tuning_images", lambda run, cell, most: [])
    with pytest.raises(InputError, match="no training images with rbc counts"):
        systems.tune_system(run, "tran", "rbc")


def test_other_parameters_are_counted_anew(run):
    smear = synthetic_smear(seed=1, shape=(240, 320), rbc=8, wbc=1, plt=2)
    settings = systems.Otsu("green", 3, 0, 3)
    maps = systems.SYSTEMS["otsu"].segment(smear, "rbc", settings)
    assert maps.mask.dtype == np.float32 and set(np.unique(maps.mask)) <= {0, 1}
    cht, watershed = (
        run.settings.published["do_unet"]["rbc"].count[m] for m in ("cht", "watershed")
    )
    count = {
        m: dataclasses.replace(p, source="mask")
        for m, p in (("cht", cht), ("watershed", watershed))
    }
    image = run.data.index.index[0]
    seen = []
    for least in (0, 10**6):
        count["watershed"] = dataclasses.replace(count["watershed"], min_area=least)
        tuned = systems.Tuned(settings, systems.Counting(HALF, "cht", count), {}, [])
        path = systems.tuned_file("otsu", "rbc")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(tuned)))
        rows = systems.score_by_system(run, "rbc", "otsu", image)["counts"]
        seen.append({row["method"]: row["predicted"] for row in rows}["watershed"])
    assert seen[0] > 0 and seen[1] == 0

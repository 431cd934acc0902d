"The size of cells, parameters that grow with it, and scores at every scale."

import cv2
import numpy as np
import pandas as pd
import pytest

from bloodcount.counting import count
from bloodcount.data import names
from bloodcount.segmentation import Maps, truth_maps
from bloodcount.settings import Thresholds, load_settings
from bloodcount.studies import magnification, protocol
from bloodcount.studies.figures import magnification_figure
from bloodcount.studies.results import long_form
from bloodcount.synthetic import synthetic_smear

HALF = Thresholds(mask=0.5, edge=0.5)
PUBLISHED = load_settings("paper").published["do_unet"]


@pytest.fixture
def run(sample_run) -> protocol.Run:
    return sample_run(6)


@pytest.mark.parametrize("radius", [15, 22, 34, 50, 72])
@pytest.mark.parametrize("overlap, soft", [(0, 0), (0.3, 0), (0.3, 1.5)])
def test_the_radius_of_cells_is_estimated_from_maps(radius, overlap, soft):
    shape = (11 * radius, 15 * radius)
    smear = synthetic_smear(4, shape, rbc=24, wbc=1, plt=3, radius=radius, overlap=overlap)
    maps = truth_maps(smear, "rbc")
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
    maps = truth_maps(synthetic_smear(3, rbc=30, overlap=0.2), "rbc")
    larger = Maps(*(cv2.resize(p, None, fx=factor, fy=factor) for p in (maps.mask, maps.edge)))
    scaled = magnification.scaled(PUBLISHED["rbc"], factor)
    for method in ("ccl", "watershed", "edt"):
        found = len(count(maps, PUBLISHED["rbc"], method)), len(count(larger, scaled, method))
        assert abs(found[1] - found[0]) <= 1, method


def test_lengths_grow_with_the_cells_and_areas_with_their_square():
    before, after = PUBLISHED["rbc"].count, magnification.scaled(PUBLISHED["rbc"], 2).count
    assert after["cht"].radius == tuple(2 * r for r in before["cht"].radius)
    assert after["cht"].votes == before["cht"].votes and after["cht"].dp == before["cht"].dp
    assert after["watershed"].smooth == 2 * before["watershed"].smooth
    assert after["ccl_mask"].min_area == 4 * before["ccl_mask"].min_area
    assert magnification.scaled(PUBLISHED["rbc"], 2).threshold == PUBLISHED["rbc"].threshold
    tiny = magnification.scaled(PUBLISHED["plt"], 0.01).count
    assert tiny["edt"].min_distance == 1 and tiny["edt"].min_area == 0
    assert tiny["cht"].radius == (1, 1)


def made_up(run: protocol.Run) -> pd.DataFrame:
    "Half of the cells counted in the first test image and twice as many in the second, at half the size."
    test = names(run.data, "rbc", "test", ["count"])
    real, rows = run.data.index["rbc_count"], []
    for name, times in zip(test, (0.5, 2)):
        for scale, share in ((0.5, times), (1.0, 1)):
            for way, found in zip(magnification.WAYS, (share, 1, 1)):
                row = {"image": name, "scale": scale, "method": "cht", "way": way}
                rows.append(row | {"predicted": real[name] * found, "radius": 40 * scale})
    return pd.DataFrame(rows)


def test_scores_have_the_way_as_condition_and_the_scale_as_level(run):
    counts = made_up(run)
    frame = magnification.scale_results(run, counts)
    assert set(frame["table"]) == {"magnification"}
    frame, single = frame[frame["quantity"] != "count"], frame[frame["quantity"] == "count"]
    assert set(frame["images"]) == {"test"} and len(single) == len(counts)
    value = frame.set_index(["quantity", "condition", "level"])["value"]
    assert value["count_accuracy", "as it is", 0.5] == pytest.approx(25)  # Of 50 and 0
    assert value["count_accuracy", "brought back", 0.5] == 100
    as_it_is = counts[(counts["way"] == "as it is") & (counts["scale"] == 0.5)]
    real = as_it_is["image"].map(run.data.index["rbc_count"]).sum()
    pooled = 100 * (as_it_is["predicted"].sum() / real - 1)
    assert value["bias", "as it is", 0.5] == pytest.approx(pooled)
    assert value["radius", "", 0.5] == 20 and value["radius", "", 1.0] == 40
    table = magnification.magnification_table(frame).set_index("scale")
    assert table.loc["0.5", list(magnification.WAYS)].tolist() == ["25.00", "100.00", "100.00"]
    assert table["estimated radius, px"].tolist() == ["20.0", "40.0"]
    points = magnification.magnification_points(frame)
    assert points.groupby("way")["accuracy"].min()["as it is"] == pytest.approx(25)


def test_an_image_of_another_magnification_is_scored_alone(run):
    trained = names(run.data, "rbc", "train", ["count"])[0]
    counts = made_up(run)
    rest = counts[counts["image"] == counts["image"].iloc[0]].assign(image=trained, predicted=0)
    frame = magnification.scale_results(run, pd.concat([counts, rest]))
    alone = frame[(frame["images"] == trained) & (frame["quantity"] == "count_accuracy")]
    assert (alone["value"] == 0).all() and set(alone["n"]) == {1}


def test_nothing_to_show_without_outlines(run):
    none = long_form(run, [])
    assert magnification.magnification_table(none).empty
    figure = magnification_figure(magnification.magnification_points(none), "")
    assert "No image here" in figure.texts[0].get_text()
    for name in names(run.data, "rbc", having=["polygons"]):
        run.data.index.loc[name, "rbc_polygons"] = 0
    assert np.isnan(magnification.known_radius(run))
    assert magnification.other_magnifications(run) == []
    assert magnification.magnification_counts(run).empty

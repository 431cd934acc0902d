"The star network's scores, with cells that are known: no network is loaded."

import numpy as np
import pandas as pd
import pytest

from bloodcount.counting import Cells, cells_from_labels, components
from bloodcount.data import names, polygon_mask
from bloodcount.studies import protocol, star_network
from bloodcount.studies.overlap import CONTACTS, NEIGHBOURS, OVERLAP, contact_rows, overlap_table
from bloodcount.studies.results import OF_IMAGES, RESULTS, joined, value_of
from bloodcount.studies.star_network import STAR
from bloodcount.studies.tables import cells_table, counting_table
from bloodcount.synthetic import synthetic_smear

SMEAR = synthetic_smear(5, (240, 320), rbc=14, wbc=1, plt=5, overlap=0.4, radius=30)
IOU = (0.5, 0.75)


@pytest.fixture
def run(sample_run) -> protocol.Run:
    return sample_run(bootstrap=50)


def true_cells(smear) -> dict[str, Cells]:
    "Every cell, as it is annotated."
    labels = np.zeros(smear.image.shape[:2], np.int32)
    for i, outline in enumerate(smear.polygons["rbc"], 1):
        labels[polygon_mask(outline, labels.shape)] = i
    found = {cell: cells_from_labels(components(smear.masks[cell])) for cell in ("wbc", "plt")}
    return {"rbc": cells_from_labels(labels)} | found


def test_the_truth_itself_is_found_and_one_cell_more_is_not():
    cells = true_cells(SMEAR)
    rows = star_network.star_rows(SMEAR, cells, IOU)
    predicted = {row["cell"]: row["predicted"] for row in rows["counts"]}
    assert predicted == {"rbc": 14, "wbc": 1, "plt": 5}
    assert [(row["thresh"], row["tp"], row["fp"], row["fn"]) for row in rows["matches"]] == [
        (0.5, 14, 0, 0), (0.75, 14, 0, 0),
    ]  # fmt: skip
    [platelets] = rows["platelets"]
    assert (platelets["tp"], platelets["fp"], platelets["fn"]) == (5, 0, 0)
    wrong = star_network.star_rows(SMEAR, cells | {"plt": cells["wbc"]}, IOU)["platelets"][0]
    assert (wrong["tp"], wrong["fp"], wrong["fn"]) == (0, 1, 5)


def test_platelets_match_at_a_smaller_overlap_than_red_cells():
    "Discs of 9 px moved by a third of a diameter: an IoU of about 0.4."
    row, col = np.indices((60, 60))
    mask = np.hypot(row - 30, col - 30) <= 9
    smear = synthetic_smear(1, (60, 60), rbc=1, wbc=0, plt=0, radius=12)
    smear.masks["plt"] = mask
    moved = cells_from_labels(np.roll(mask, 7, axis=1).astype(np.int32))
    assert star_network.platelet_matches(smear, moved) == {"tp": 1, "fp": 0, "fn": 0}
    away = cells_from_labels(np.roll(mask, 11, axis=1).astype(np.int32))
    assert star_network.platelet_matches(smear, away) == {"tp": 0, "fp": 1, "fn": 1}


def test_contact_counts_each_outlined_cell_once():
    rows = pd.DataFrame(contact_rows(SMEAR, {"stars": true_cells(SMEAR)["rbc"]}))
    assert rows["cells"].sum() == rows["found"].sum() == 14
    assert rows["contact"].between(0, len(CONTACTS) - 1).all()
    assert rows["neighbours"].between(0, len(NEIGHBOURS) - 1).all()
    assert set(rows.loc[rows["contact"] == 0, "neighbours"]) <= {0}


def test_each_image_is_looked_at_once(run):
    looked = []

    def find(image: np.ndarray) -> dict[str, Cells]:
        looked.append(image.shape)
        dark = cells_from_labels(components(image[..., 1] < 125), 60)
        return dict.fromkeys(("rbc", "wbc", "plt"), dark)

    first = star_network.star_scores(run, find)
    assert len(looked) == len(run.data.index)
    again = star_network.star_scores(run, find)
    assert len(looked) == len(run.data.index)
    assert all(first[name].equals(again[name]) for name in first)
    other = star_network.star_scores(run, lambda image: find(image[:, ::-1]))
    assert len(looked) == 2 * len(run.data.index), "another finder's cells are its own"
    assert len(other["counts"]) == len(first["counts"])


def perfect(run) -> dict[str, pd.DataFrame]:
    "Scores of a network that finds all that is annotated."
    cells = {}
    for name in run.data.index.index:
        smear = protocol.read_smear(run.data, name)
        cells[smear.image.tobytes()] = true_cells(smear)
    return star_network.star_scores(run, lambda image: cells[image.tobytes()])


def test_results_of_a_network_that_is_always_right(run):
    results = star_network.star_results(run, perfect(run))
    assert not results.duplicated(RESULTS[: RESULTS.index("n")]).any()
    assert set(results["model"]) == {"stardist"} and set(results["method"]) == {"stars"}
    red = star_network.of_truth(results, "rbc_count")
    for side in ("train", "test"):
        assert value_of(red, "count_accuracy", side) == 100
        assert value_of(red, "f1_50", side) == value_of(red, "recall_50", side) == 1
    overlap = results[(results["table"] == OVERLAP) & ~results["quantity"].isin(OF_IMAGES)]
    recall = overlap[overlap["quantity"] == "recall_50"]
    assert len(recall) and (recall["value"] == 1).all()
    [row] = counting_table(red).to_dict("records")
    assert row["segmented by"] == "our star network" and row["counted by"] == "Star polygons"
    assert row["bias, test, %"] == "0.00"
    assert cells_table(red)["F1, test"].tolist() == ["1.000"]
    assert overlap_table(overlap)["all cells"].tolist() == ["1.000", "1.000"]


def test_platelets_are_pooled_over_images_and_a_repeat_counts_once(run, monkeypatch):
    train = names(run.data, "plt", "train")
    numbers = {train[0]: (6, 2, 0), train[1]: (1, 1, 3)}
    found = [dict(zip(("image", "tp", "fp", "fn"), (k, *v))) for k, v in numbers.items()]
    frame = pd.DataFrame(found).assign(**STAR, cell="plt", method="stars")
    results = star_network.platelet_results(run, frame)
    values = [value_of(results, q, "train") for q in ("precision_30", "recall_30", "f1_30")]
    assert values == pytest.approx([7 / 10, 7 / 10, 14 / 20])
    assert np.isnan(value_of(results, "f1_30", "test"))
    assert star_network.platelet_table(results)["F1, train"].tolist() == ["0.700 (2)"]
    monkeypatch.setattr(star_network, "repeats", lambda data: {train[1]})
    once = star_network.platelet_results(run, frame)
    assert value_of(once, "f1_30", "train") == pytest.approx(12 / 14)


def test_the_figure_has_a_line_for_each_networks_own_method(run):
    theirs = run.counted("rbc") | {"cell": "rbc"}
    own, other = run.how("rbc").method, "cht"
    assert own != other
    ours = star_network.star_results(run, perfect(run))
    frames = [ours] + [ours.assign(**theirs, method=method) for method in (own, other)]
    both = joined(run, frames)
    both = both[~both["quantity"].isin(OF_IMAGES)]
    part = star_network.own_methods(run, both)
    assert set(part["method"]) == {"stars", own}
    points = star_network.contact_points(part)
    assert points["network"].nunique() == 2 and (points["recall"] == 1).all()
    figure = star_network.contact_figure(part, "lesson")
    assert [len(ax.lines) for ax in figure.axes] == [2, 2]


def test_without_images_there_is_nothing_to_show(run):
    none = joined(run, [])
    assert star_network.platelet_results(run, pd.DataFrame()).empty
    assert star_network.platelet_table(none).empty
    figure = star_network.contact_figure(none, "")
    assert "No image here" in figure.texts[0].get_text()


def test_what_a_faster_way_changes_is_counted(run):
    exact = perfect(run)
    fast = {name: frame.copy() for name, frame in exact.items()}
    red = fast["counts"]["cell"] == "rbc"
    fast["counts"].loc[fast["counts"].index[red][0], "predicted"] += 3
    one = (fast["matches"]["cell"] == "rbc") & (fast["matches"]["thresh"] == 0.5)
    fast["matches"].loc[fast["matches"].index[one][0], "fp"] += 3
    results = star_network.fast_results(run, {star_network.EXACT: exact, "another": fast})
    assert not results.duplicated(RESULTS[: RESULTS.index("n")]).any()
    table = star_network.fast_table(results)
    assert table["images with another count"].tolist() == ["0", "1", "0", "0", "0", "0"]
    assert table["largest change"].tolist() == ["0", "3", "0", "0", "0", "0"]
    first, second = table.to_dict("records")[:2]
    assert int(second["found"]) == int(first["found"]) + 3
    assert float(second["count accuracy, %"]) < float(first["count accuracy, %"]) == 100
    assert float(second["F1"]) < float(first["F1"]) == 1
    assert table["F1"].iloc[2] == "", "white cells have no outlines to be matched"


def test_each_way_keeps_rows_of_its_own():
    known = [star_network.finder_name(find) for find in star_network.WAYS.values()]
    assert known[0] == star_network.star_name() and len(set(known)) == len(known)


def test_a_way_that_is_not_installed_has_no_row(run, monkeypatch):
    monkeypatch.setattr(star_network, "has_openvino", lambda: False)
    monkeypatch.setattr(star_network, "star_scores", lambda run, find: {})
    assert "OpenVINO" not in star_network.fast_scores(run)

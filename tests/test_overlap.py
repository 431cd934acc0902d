"Contacts of cells, and which of them are found."

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bloodcount.counting import count
from bloodcount.data import DataSet, names, read_smear
from bloodcount.evaluation import instances_from_polygons, matching
from bloodcount.segmentation import truth_maps
from bloodcount.studies import overlap, protocol
from bloodcount.studies.results import OF_IMAGES, long_form, value_of
from bloodcount.synthetic import synthetic_smear


@pytest.fixture
def run(index_run) -> protocol.Run:
    return index_run.by("authors")


def test_contacts_of_discs():
    "Two that overlap, one that touches neither, and one that encloses nothing."
    row, col = np.indices((80, 160))
    discs = [np.hypot(row - 40, col - c) <= 18 for c in (30, 60, 130)] + [row < 0]
    cells = sparse.csr_array(np.reshape(discs, (4, -1)).astype(np.int32))
    share, neighbours = overlap.contacts(cells, (80, 160))
    assert neighbours.tolist() == [1, 1, 0, 0] and share[2] == share[3] == 0
    assert np.isclose(share[0], share[1]) and 0.15 < share[0] < 0.35
    assert overlap.contact_class(np.array([0, 0.05, 0.1, 0.2, 1])).tolist() == [0, 1, 1, 2, 3]


def test_contacts_of_all_outlined_cells(data_folder):
    "63 % of the 5,341 cells touch another."
    data, touching = DataSet(data_folder), []
    for name in names(data, "rbc", having=["polygons"]):
        smear = read_smear(data, name, ("rbc",))
        shape = smear.image.shape[:2]
        cells = instances_from_polygons(smear.polygons["rbc"], shape)
        share, neighbours = overlap.contacts(cells, shape)
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
    assert not overlap.which_found(truth, nothing).any()
    assert overlap.which_found(nothing, truth).size == 0


def test_classes_of_cells_add_up_to_all_of_them(run):
    smear = synthetic_smear(seed=5, overlap=0.4, whole=False)
    maps, counting = truth_maps(smear, "rbc"), run.how("rbc")
    every = {method: count(maps, counting, method) for method in counting.count}
    rows = overlap.contact_rows(smear, every)
    found = pd.DataFrame(rows).assign(**run.counted("rbc"), side="test")
    results = overlap.overlap_results(run, found)
    single = results["quantity"].isin(OF_IMAGES)
    assert results.loc[results["quantity"] == "outlined", "value"].sum() == 2 * 5 * len(
        smear.polygons["rbc"]
    )
    results = results[~single]
    assert set(results["method"]) == set(run.how("rbc").count)
    for method, part in results.groupby("method"):
        recall, number = (part[part["quantity"] == q] for q in ("recall_50", "cells"))
        for kind, classes in overlap.KINDS.items():
            conditions = [f"{kind}: {label}" for label in classes]
            n = number[number["condition"].isin(conditions)].set_index("condition")["value"]
            of_class = recall[recall["condition"].isin(conditions)].set_index("condition")["value"]
            assert n.sum() == len(smear.polygons["rbc"])
            of_all = value_of(recall[recall["condition"] == ""], "recall_50", "test")
            assert (n * of_class).sum() / n.sum() == pytest.approx(of_all), method
    [counts] = overlap.contact_counts(results).to_dict("records")
    assert counts["contact: alone"] == counts["neighbours: 0"]
    table = overlap.overlap_table(results, "neighbours").set_index("counted by")
    assert len(table) == 5 and list(table)[3:-2] == list(overlap.NEIGHBOURS)


def test_without_outlines_the_tables_are_empty(run):
    none = overlap.overlap_results(run, pd.DataFrame())
    assert overlap.overlap_table(none).empty and overlap.contact_counts(long_form(run, [])).empty
    figure = overlap.overlap_figure(run, none, "")
    assert "No image here" in figure.texts[0].get_text()

"What is scored without a network, and what counting the annotations gives."

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from bloodcount.data import DataSet
from bloodcount.evaluation import count_accuracy
from bloodcount.settings import PROJECT, load_settings
from bloodcount.studies import baselines, protocol
from bloodcount.studies.figures import agreement_figure
from bloodcount.studies.results import TRUTH, counts_with_truth, value_of
from bloodcount.studies.tables import ceiling_table


@pytest.fixture
def run(sample_run) -> protocol.Run:
    return sample_run()


@pytest.mark.parametrize("seed", range(3))
def test_no_constant_is_better_on_the_training_images(seed):
    real = np.random.default_rng(seed).integers(0, 60, 12)
    best = baselines.best_constant(real)
    scores = [count_accuracy(np.full(12, value), real).mean() for value in range(200)]
    assert scores[best] == max(scores)


def test_the_constant_is_the_level_of_its_rows(index_run):
    results = baselines.by_constant(index_run, "wbc_count")
    [constant] = set(results["level"])
    real = index_run.data.index["wbc_count"]
    test = protocol.groups(index_run.data, "wbc_count")["test"]
    expected = count_accuracy(np.full(len(test), constant), real[test]).mean()
    assert value_of(results, "count_accuracy", "test") == pytest.approx(expected)
    [row] = baselines.count_baseline_table(index_run, results).to_dict("records")
    assert row["counted by"] == f"a constant, {constant:.0f}" and row["test"] == f"{expected:.2f}"


def test_the_area_of_a_true_mask_counts_cells_that_do_not_overlap(run):
    areas = baselines.true_areas(run, "plt")
    one = baselines.cell_area(run, "plt_count")
    assert one > 0 and list(areas["image"]) == list(run.data.index.index)
    results = baselines.counted_by_area(run, areas, "plt_count", TRUTH)
    assert results["value"].notna().any() and set(results["condition"]) == {baselines.AREA}
    assert set(results["quantity"]) == {"count_accuracy", "bias", "count"}
    assert baselines.counted_by_area(run, areas.iloc[:0], "plt_count", TRUTH).empty


def test_the_papers_numbers_stand_in_its_own_column(index_run):
    printed = baselines.printed_accuracy(index_run)
    by_map = printed.set_index(["model", "cell", "map"])["paper"].to_dict()
    assert by_map == {
        ("do_unet", "rbc", "mask"): 0.9716,
        ("do_unet", "rbc", "edge"): 0.9385,
        ("segnet", "rbc", "mask"): 0.9586,
        ("segnet", "rbc", "edge"): 0.9399,
        ("segnet", "wbc", "mask"): 0.9972,
        ("segnet", "plt", "mask"): 0.9989,
    }
    assert printed["value"].isna().all()
    best = baselines.best_of_paper(index_run, "wbc_count").set_index("images")["paper"]
    assert best.to_dict() == {"all13": 97.94, "all108": 95.64}
    assert baselines.best_of_paper(index_run, "plt_mask_components").empty


def test_ceilings_count_each_image_once(run):
    results = baselines.ceilings(run)
    assert set(results["table"]) == set(baselines.CEILINGS)
    table = ceiling_table(results, baselines.CEILING_TITLES)
    assert not table.duplicated(["truth", "counted by"]).any()
    counts = protocol.score_truth(run, "rbc", outlines=True).counts
    counts = counts_with_truth(run, counts, "rbc_count")
    for panel in agreement_figure(counts, "").axes:
        marks = sum(
            len(c.get_offsets()) for c in panel.collections if isinstance(c, PathCollection)
        )
        assert marks == len(run.data.index), panel.get_title()


def test_a_data_set_without_annotations_makes_empty_tables(tmp_path):
    "The one real smear of the authors' package has counts and no annotation."
    head, *rows = (PROJECT / "data" / "all-idb1-index.csv").read_text().splitlines()
    bare = next(row for row in rows if row.startswith("Im037_0")).split(",")
    bare[4:9] = "0" * 5
    (tmp_path / "index.csv").write_text(f"{head}\n{','.join(bare)}\n")
    run = protocol.Run(load_settings("paper"), DataSet(tmp_path), "bloodcount", 0, tmp_path)
    assert baselines.pixel_baseline_table(baselines.all_background(run)).empty
    constant = baselines.by_constant(run, "rbc_count")
    assert constant.empty and baselines.count_baseline_table(run, constant).empty
    assert baselines.true_areas(run, "rbc").empty
    assert np.isnan(baselines.cell_area(run, "rbc_count"))
    assert baselines.printed_accuracy(run).empty

"What the paper says against what the data say."

import dataclasses

import cv2
import numpy as np
import pandas as pd
import pytest

from bloodcount.data import DataSet, write_dataset
from bloodcount.settings import PROJECT, load_settings
from bloodcount.studies import errata, protocol
from bloodcount.synthetic import synthetic_smear


@pytest.fixture(scope="module")
def real_run(data_folder, tmp_path_factory) -> protocol.Run:
    folder = tmp_path_factory.mktemp("run")
    return protocol.Run(load_settings("paper"), DataSet(data_folder), "bloodcount", 0, folder)


@pytest.fixture(scope="module")
def real_results(real_run) -> pd.DataFrame:
    return errata.errata_results(real_run)


def test_the_paper_against_the_data(real_run, real_results):
    results = real_results.set_index(["quantity", "cell", "images"])
    known = {
        ("images", "plt", "test"): (31, 30),
        ("tiles", "plt", "test"): (14410, 14410),
        ("images", "plt", "all"): (102, 101),
        ("masks", "rbc", "all"): (108, 107),
        ("masks", "wbc", "all"): (108, 106),
        ("images_in_the_text", "wbc", "train"): (74, 73),
        ("images_of_native_size", "wbc", "all"): (108, 74),
        ("different_images", "wbc", "all"): (108, 107),
        ("counts_that_are_components", "plt", "all"): (11, 5),
    }
    pairs = results[["paper", "value"]]
    assert {key: tuple(pairs.loc[key]) for key in known} == known
    assert results["value"].isna().sum() == 3, "epochs, and the images of phase 2"
    dice = results["value"].xs("dice_of_two_annotations").round(3)
    assert dice.droplevel("images").to_dict() == {"rbc": 0.992, "wbc": 0.977, "plt": 0.718}
    assert real_run.data.same_pictures == [["Im093_0", "Im108_0"]]


def test_the_table_says_all_of_it(real_run, real_results):
    table = errata.errata_table(real_run, real_results)
    assert len(table) == 13 and not table.map(lambda text: "nan" in text or "{" in text).any().any()
    said = table.set_index("what")[["the paper", "the data"]]
    known = {
        "Table I, platelets, test tiles": ["14410", "14410"],
        "platelets, images that have a mask, training and test": ["74 + 34", "71 + 30"],
        "platelet counts that are the components of the masks": ["all 11", "5"],
        "images that phase 2 learns from": ["13 (V.A.1), 10 (Table I)", "10"],
        "Table II, model A's loss on the mask, with its accuracy of 0.8754": [
            "0.3613", "at most 0.3435 for an MSE",
        ],
        "epochs of phase 1": ["60 (V.A.1), 120 (Table II)", ""],
    }  # fmt: skip
    assert {what: said.loc[what].tolist() for what in known} == known
    twins = table.loc[table["what"].str.startswith("different"), "what follows"].item()
    assert twins.startswith("Im093_0 and Im108_0 are one file")


def test_platelet_truths_are_those_of_the_index(real_run):
    both = errata.component_counts(real_run, 50).set_index("image")
    index = real_run.data.index.loc[both.index]
    assert len(both) == 11
    assert (both["components"] == index["plt_mask_components"]).all()
    assert (both["published"] == index["plt_count"]).all()
    assert (both["at_least"] <= both["components"]).all()
    table = errata.platelet_table(real_run).set_index("image")
    assert table.loc[["Im069_0", "Im099_0", "Im004_1"], "difference"].tolist() == ["-2", "+22", "0"]


def test_two_annotations_of_one_picture_are_compared(tmp_path):
    smear, other = (
        dataclasses.replace(synthetic_smear(seed, (240, 320), rbc=6, wbc=1, plt=3), name=name)
        for seed, name in ((1, "Syn001_0"), (2, "Syn003_0"))
    )
    fewer = smear.masks | {"plt": np.zeros_like(smear.masks["plt"])}
    again = dataclasses.replace(smear, name="Syn002_0", masks=fewer)
    data = write_dataset(tmp_path / "data", [smear, other, again])
    assert data.same_pictures == [["Syn001_0", "Syn002_0"]]
    run = protocol.Run(load_settings("smoke"), data, "bloodcount", 0, tmp_path)
    twice = errata.annotated_twice(run).set_index("cell")
    assert twice["dice"].to_dict() == {"rbc": 1, "wbc": 1, "plt": 0}
    table = errata.annotated_twice_table(run).set_index("mask of")
    assert table.loc["platelets", "Dice of the two masks"] == "0.000"
    components = data.index["plt_mask_components"]
    assert table.loc["platelets", "counts"] == f"{components['Syn001_0']:.0f}, 0"
    assert errata.facts(run)["different_images", "wbc", "all"] == 2


def test_data_without_annotations_make_empty_tables(tmp_path):
    "The one real smear of the authors' package has counts and no annotation."
    rows = (PROJECT / "data" / "all-idb1-index.csv").read_text().splitlines()
    bare = next(row for row in rows if row.startswith("Im037_0")).split(",")
    bare[4:9] = "0" * 5
    (tmp_path / "index.csv").write_text("\n".join([rows[0], ",".join(bare)]) + "\n")
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "Im037_0.png"), np.zeros((8, 8, 3), np.uint8))
    run = protocol.Run(load_settings("paper"), DataSet(tmp_path), "bloodcount", 0, tmp_path)
    results = errata.errata_results(run)
    assert results["paper"].isna().all(), "the paper is about other images"
    tables = [errata.errata_table(run, results), errata.platelet_table(run)]
    assert all(table.empty for table in [*tables, errata.annotated_twice_table(run)])

"Maps of two networks put together, and what is said of them."

import dataclasses

import numpy as np
import pytest

from bloodcount.counting import COUNTERS
from bloodcount.segmentation import Maps, truth_maps
from bloodcount.studies import combining, protocol
from bloodcount.studies.results import long_form
from bloodcount.synthetic import synthetic_smear


@pytest.fixture
def run(sample_run, tmp_path, monkeypatch) -> protocol.Run:
    monkeypatch.setenv("BLOODCOUNT_PROGRESS", str(tmp_path / "bar"))
    return sample_run(bootstrap=10)


def test_combinations_of_equal_networks_change_nothing():
    maps = truth_maps(synthetic_smear(3, rbc=30, overlap=0.2), "rbc")
    for name in ("average", "own mask", "own edge"):
        both = combining.COMBINATIONS[name].combine(maps, maps)
        assert np.array_equal(both.mask, maps.mask) and np.array_equal(both.edge, maps.edge)
    wider = combining.wider_edge(maps)
    assert (wider.edge >= maps.edge).all() and wider.edge.sum() > maps.edge.sum()
    product = combining.mask_and_no_edge(maps)
    assert np.array_equal(product.mask, maps.mask * (1 - maps.edge)) and not product.edge.any()
    one = combining.average(Maps(maps.mask), Maps(maps.mask))
    assert one.edge is None and np.array_equal(one.mask, maps.mask)


def test_each_network_gives_its_own_map():
    own, other = (Maps(np.full((2, 2), a), np.full((2, 2), b)) for a, b in ((0.2, 0.4), (0.6, 1.0)))
    seen = {
        name: tuple(float(plane[0, 0]) for plane in dataclasses.astuple(c.combine(own, other)))
        for name, c in combining.COMBINATIONS.items()
        if c.two_networks
    }
    assert seen["own mask"] == (0.2, 1.0) and seen["own edge"] == (0.6, 0.4)
    assert seen["average"] == pytest.approx((0.4, 0.7))


def test_only_methods_that_there_are_can_be_left_out():
    for combination in combining.COMBINATIONS.values():
        assert set(combination.left_out) <= set(COUNTERS)


def stand_in(run: protocol.Run, cell: str):
    "Networks that are right (the authors'), and blind (ours)."

    def maps(smear) -> Maps:
        truth = truth_maps(smear, cell)
        planes = (truth.mask, truth.edge)
        blind = 0 if run.weights == "bloodcount" else 1
        return Maps(*(None if plane is None else plane * blind for plane in planes))

    return maps, lambda smear: f"{run.weights} {smear.name}"


def test_combinations_stand_beside_the_networks_alone(run, monkeypatch):
    for module in (combining, protocol):
        monkeypatch.setattr(module, "maps_of", stand_in)
    results = combining.combining_results(run)
    tables = ["combining_rbc_count", "combining_wbc_count"]
    tables += ["combining_plt_count", "combining_plt_mask_components"]
    assert results["table"].unique().tolist() == tables
    red = results[(results["table"] == "combining_rbc_count") & (results["images"] == "test")]
    red = red[red["counting"] == "tuned"]
    value = red[red["quantity"] == "count_accuracy"].set_index(["weights", "condition", "method"])
    value = value["value"]
    assert value["authors", "", "ccl"] > 80 and value["bloodcount", "", "ccl"] == 0
    assert value["authors", "own edge", "ccl"] == 0, "the mask is that of the blind network"
    methods = red.groupby("condition")["method"].agg(set).to_dict()
    assert set(methods) == {"", *combining.COMBINATIONS}
    assert methods["average"] == methods[""] == set(COUNTERS)
    assert methods["wider edge"] == set(COUNTERS) - {"ccl_mask"}
    assert methods["own mask"] == {"ccl", "watershed", "edt"}
    white = results[results["table"] == "combining_wbc_count"]
    assert set(white["condition"]) == {"", "average"}, "white cells have no edge"
    table = combining.combining_table(run, results)
    table = table[table["cells"] == "red cells"]
    ccl = table[table["counted by"] == "CCL"]["maps"].tolist()
    assert ccl.count("our DO-U-Net alone") == 2, "counted both ways"
    titles = [combination.title for combination in combining.COMBINATIONS.values()]
    assert set(ccl) == {"authors' DO-U-Net alone", *titles, "our DO-U-Net alone"}
    assert "F1, test" in table.columns


def test_nothing_to_show(run):
    none = long_form(run, [])
    assert combining.combining_table(run, none).empty

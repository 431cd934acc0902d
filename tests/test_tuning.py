"What thresholds and parameters are chosen on."

import dataclasses

import numpy as np
import pytest

from bloodcount.counting import COUNTERS
from bloodcount.data import names
from bloodcount.models import read_counting, write_counting
from bloodcount.segmentation import Maps, truth_maps
from bloodcount.settings import load_settings
from bloodcount.studies import tuning
from bloodcount.studies.protocol import Run, sample_data
from bloodcount.synthetic import synthetic_smear

SETTINGS = load_settings("smoke")
PUBLISHED = SETTINGS.published["do_unet"]


@pytest.mark.parametrize("cell", ["wbc", "plt"])
def test_a_trimmed_mask_counts_as_the_whole(cell):
    smear = synthetic_smear(seed=6, shape=(400, 500), rbc=20, wbc=3, plt=12)
    haze = np.random.default_rng(0).uniform(0, 0.09, (1400, 1500)).astype(np.float32)
    haze[500:900, 700:1200] += 0.9 * smear.masks[cell]
    whole = Maps(haze)
    part = tuning.trimmed(whole)
    assert part.mask.size < whole.mask.size / 2
    for method in PUBLISHED[cell].count:
        counter = COUNTERS[method]
        counts = [
            len(counter(maps, PUBLISHED[cell].threshold, PUBLISHED[cell].count[method]))
            for maps in (whole, part)
        ]
        coarse = method == "cht" and PUBLISHED[cell].count["cht"].dp > 1
        assert abs(counts[0] - counts[1]) <= coarse and min(counts) > 0, method


def test_an_empty_mask_is_trimmed_to_nothing_to_count():
    part = tuning.trimmed(Maps(np.zeros((300, 200), np.float32)))
    assert all(
        len(COUNTERS[method](part, PUBLISHED["wbc"].threshold, parameters)) == 0
        for method, parameters in PUBLISHED["wbc"].count.items()
    )


def test_only_training_images_are_tuned_on(tmp_path):
    data = sample_data(SETTINGS)
    run = Run(SETTINGS, data, "authors", 0, tmp_path)
    every = tuning.tuning_images(run, "wbc")
    assert every == names(data, "wbc", "train")
    assert tuning.tuning_images(run, "wbc", 1) == every[:1]


def test_a_cut_is_found_behind_worse_ones_and_a_rule_is_tried(monkeypatch):
    by_cut = {0.1: 80.0, 0.2: 60.0, 0.3: 65.0}

    def score(made, method, thresholds, parameters, counters):
        return by_cut[thresholds.mask] + 2 * parameters.at_least_one

    monkeypatch.setattr(tuning, "objective", score)
    threshold = dataclasses.replace(PUBLISHED["wbc"].threshold, mask=0.3)
    parameters = PUBLISHED["wbc"].count["watershed"]
    candidates = {"mask": tuple(by_cut)}
    candidates["at_least_one"] = tuning.CANDIDATES["wbc"]["at_least_one"]
    best, cut, chosen = tuning.search([], "watershed", threshold, parameters, candidates)
    assert (best, cut.mask, chosen.at_least_one) == (82, 0.1, True)


def test_a_real_search_finds_the_known_best():
    "Cells that lie apart can all be found and counted: 100. Parameters that miss most of them are put right."
    made = []
    for seed in range(2):
        smear = synthetic_smear(seed, shape=(320, 416), rbc=16, overlap=0)
        counts = {"rbc_count": smear.counts["rbc"]}
        made.append(tuning.example(smear, "rbc", counts, truth_maps(smear, "rbc")))
    counting = PUBLISHED["rbc"]
    bad = dataclasses.replace(counting.count["watershed"], min_distance=90, min_height=30)
    assert tuning.objective(made, "watershed", counting.threshold, bad) < 60
    few = {name: tuning.CANDIDATES["rbc"][name] for name in ("min_distance", "min_height")}
    score, cuts, found = tuning.search(made, "watershed", counting.threshold, bad, few)
    assert score == tuning.objective(made, "watershed", cuts, found) > 99


def test_a_model_is_tuned_on_its_training_images(tmp_path, monkeypatch):
    "The real command's way, with the truth in the network's place: the best method and cut are known."
    data = sample_data(SETTINGS)
    run = Run(SETTINGS, data, "authors", 0, tmp_path)
    by_truth = (lambda smear: truth_maps(smear, "wbc"), lambda smear: "truth")
    monkeypatch.setattr(tuning, "maps_of", lambda run, cell: by_truth)
    counting, scores = tuning.tune(run, "wbc")
    assert set(scores) == {"cht", "ccl", "watershed", "edt"}
    assert scores[counting.method] == max(scores.values()) == 100
    write_counting(tmp_path, counting)
    assert read_counting(tmp_path) == counting


def test_a_rule_is_searched_from_both_its_values():
    watershed = PUBLISHED["wbc"].count["watershed"]
    begun = tuning.starts(watershed, tuning.CANDIDATES["wbc"])
    assert [each.at_least_one for each in begun] == [False, True]
    assert dataclasses.replace(begun[1], at_least_one=watershed.at_least_one) == watershed
    assert tuning.starts(watershed, tuning.CANDIDATES["plt"]) == [watershed]
    assert len(tuning.starts(PUBLISHED["wbc"].count["cht"], tuning.CANDIDATES["wbc"])) == 1

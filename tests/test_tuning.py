"What thresholds and parameters are chosen on."

import dataclasses

import numpy as np
import pytest

from bloodcount.counting import COUNTERS
from bloodcount.data import names
from bloodcount.segmentation import Maps
from bloodcount.settings import load_settings
from bloodcount.studies import tuning
from bloodcount.studies.protocol import Run, sample_data
from bloodcount.synthetic import synthetic_smear

SETTINGS = load_settings("smoke", "authors")


@pytest.mark.parametrize("cell", ["wbc", "plt"])
def test_a_trimmed_mask_counts_as_the_whole(cell):
    smear = synthetic_smear(seed=6, shape=(400, 500), rbc=20, wbc=3, plt=12)
    haze = np.random.default_rng(0).uniform(0, 0.09, (1400, 1500)).astype(np.float32)
    haze[500:900, 700:1200] += 0.9 * smear.masks[cell]
    whole = Maps(haze)
    part = tuning.trimmed(whole)
    assert part.mask.size < whole.mask.size / 2
    for method, counter in COUNTERS.items():
        counts = [
            len(counter(maps, SETTINGS.threshold[cell], SETTINGS.count[cell][method]))
            for maps in (whole, part)
        ]
        coarse = method == "cht" and SETTINGS.count[cell]["cht"].dp > 1
        assert abs(counts[0] - counts[1]) <= coarse and min(counts) > 0, method


def test_an_empty_mask_is_trimmed_to_nothing_to_count():
    part = tuning.trimmed(Maps(np.zeros((300, 200), np.float32)))
    assert all(
        len(counter(part, SETTINGS.threshold["wbc"], SETTINGS.count["wbc"][method])) == 0
        for method, counter in COUNTERS.items()
    )


def test_only_training_images_are_tuned_on(tmp_path):
    data = sample_data(SETTINGS)
    run = Run(SETTINGS, data, "authors", 0, tmp_path)
    every = tuning.tuning_images(run, "wbc")
    assert every == names(data, "wbc", "train")
    assert tuning.tuning_images(run, "wbc", 1) == every[:1]


def test_a_cut_is_found_behind_worse_ones_and_a_rule_is_tried(monkeypatch):
    by_cut = {0.1: 80.0, 0.2: 60.0, 0.3: 65.0}

    def score(made, method, thresholds, parameters):
        return by_cut[thresholds.mask] + 2 * parameters.at_least_one

    monkeypatch.setattr(tuning, "objective", score)
    threshold = dataclasses.replace(SETTINGS.threshold["wbc"], mask=0.3)
    parameters = SETTINGS.count["wbc"]["watershed"]
    candidates = {"mask": tuple(by_cut)}
    candidates["at_least_one"] = tuning.CANDIDATES["wbc"]["at_least_one"]
    best, cut, chosen = tuning.search([], "watershed", threshold, parameters, candidates)
    assert (best, cut.mask, chosen.at_least_one) == (82, 0.1, True)

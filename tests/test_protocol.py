"A run: its groups of images, what is kept of it, and how its images are taken in turn."

import dataclasses
import shutil
import threading
import time

import pandas as pd
import pytest

from bloodcount.data import DataSet
from bloodcount.errors import InputError
from bloodcount.studies import protocol, results


@pytest.fixture
def real_index(index_run) -> protocol.Run:
    return index_run.by("authors")


@pytest.mark.parametrize(
    "truth, sizes",
    [
        ("rbc_count", {"all13": 13, "train": 10, "test": 3}),
        ("wbc_count", {"all13": 13, "all106": 106, "all108": 108, "train": 73, "test": 33}),
        ("plt_count", {"all13": 13, "all11": 11, "train": 5, "test": 6}),
        ("plt_mask_components", {"all11": 11, "all101": 101, "train": 71, "test": 30}),
    ],
)
def test_groups_of_the_real_index(real_index, truth, sizes):
    groups = protocol.groups(real_index.data, truth)
    assert {name: len(images) for name, images in groups.items()} == sizes
    assert all(len(set(images)) == len(images) for images in groups.values())


def test_table_1_to_the_digit(real_index):
    tiled = results.tile_results(real_index).set_index(["cell", "quantity", "images"])
    values = tiled["value"].to_dict()
    tiles = {(c, s): values[c, "tiles", s] for c in protocol.TRUTHS for s in ("train", "test")}
    assert list(tiles.values()) == [3916, 1072, 28126, 15892, 27650, 14410]
    printed = tiled["paper"].dropna()
    differs = printed[printed != tiled.loc[printed.index, "value"]]
    assert len(printed) == 12
    assert differs.to_dict() == {("plt", "images", "test"): 31}


def test_the_authors_segnet_counts_give_their_accuracies(real_index):
    scored = results.segnet_results(real_index, "rbc_count")
    scored = scored[(scored["quantity"] == "count_accuracy") & (scored["images"] == "all13")]
    values = scored.set_index("method")["value"].round(2).to_dict()
    assert values == {"cht": 94.03, "ccl": 76.49, "edt": 84.64}
    assert (scored["paper"] - scored["value"]).abs().max() < 0.011


@pytest.fixture
def small_run(sample_run) -> protocol.Run:
    return sample_run(2)


def scored(run: protocol.Run, monkeypatch) -> list[str]:
    "The images that are scored, and not taken from what was kept, in the order of the index."
    fresh, score = [], protocol.score_smear
    with monkeypatch.context() as patch:
        watched = lambda smear, *rest: fresh.append(smear.name) or score(smear, *rest)  # noqa: E731
        patch.setattr(protocol, "score_smear", watched)
        kept = protocol.score_truth(run, "rbc")
    assert list(kept.counts["image"].unique()) == list(run.data.index.index)
    assert len(fresh) == len(set(fresh))
    return [name for name in run.data.index.index if name in fresh]  # Two are scored at a time


def test_scores_are_kept_until_what_they_depend_on_changes(small_run, monkeypatch):
    everything = list(small_run.data.index.index)
    assert scored(small_run, monkeypatch) == everything
    assert scored(small_run, monkeypatch) == []
    published = small_run.settings.published
    how = published["do_unet"]["rbc"]
    ccl = dataclasses.replace(how.count["ccl"], min_area=300)
    other = dataclasses.replace(how, count={**how.count, "ccl": ccl})
    changed = {**published, "do_unet": {**published["do_unet"], "rbc": other}}
    settings = dataclasses.replace(small_run.settings, published=changed)
    run = dataclasses.replace(small_run, settings=settings, counting="published")
    assert scored(run, monkeypatch) == everything
    assert scored(small_run, monkeypatch) == []


def test_scores_without_annotations_are_not_taken_for_those_with(small_run, authors_folder):
    "Im037_0 comes without them in the authors' package, and with them in the data set."
    bare = small_run.folder / "bare"
    shutil.copytree(small_run.data.root / "images", bare / "images")
    index = pd.read_csv(small_run.data.root / "index.csv")
    index[["rbc_mask", "rbc_edge", "rbc_polygons", "wbc_mask", "plt_mask"]] = 0
    index.to_csv(bare / "index.csv", index=False)
    without = protocol.score_network(dataclasses.replace(small_run, data=DataSet(bare)), "plt")
    assert len(without.pixels) == 0
    scores = protocol.score_network(small_run, "plt")
    assert scores.counts.equals(without.counts)
    assert list(scores.pixels["image"].unique()) == list(small_run.data.index.index)


@pytest.fixture
def run(sample_run) -> protocol.Run:
    return sample_run(weights="bloodcount")


def test_rows_are_made_once_and_anew_for_what_has_changed(run):
    made = []

    def rows(about: tuple) -> list[dict]:
        return protocol.kept_rows(
            run, "test", about, lambda: made.append(about) or [{"n": len(made)}]
        )

    assert rows((1, "a")) == rows((1, "a")) == [{"n": 1}]
    assert rows((2, "a")) == [{"n": 2}] and made == [(1, "a"), (2, "a")]


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

"What becomes of a trained model: how it is counted, its record, its place in the package, the masks that are kept of it."

import dataclasses

import pandas as pd
import pytest
from small import small_network

from bloodcount import segmentation
from bloodcount.drawing import METHOD_TITLES
from bloodcount.errors import InputError
from bloodcount.files import write_text
from bloodcount.models import read_counting, write_counting
from bloodcount.settings import load_settings
from bloodcount.studies import protocol, training


@pytest.fixture(autouse=True)
def small_networks():
    with small_network("do_unet"), small_network("segnet"):
        yield


@pytest.fixture
def settings(tmp_path):
    "Of a smoke run on four small smears, with tiles that hold a whole one."
    smoke = load_settings("smoke")
    sample = dataclasses.replace(smoke.sample, height=200, width=240)
    paths = dataclasses.replace(smoke.paths, runs=tmp_path / "runs")
    return dataclasses.replace(smoke, sample=sample, paths=paths)


def test_a_model_is_recorded_or_shipped(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "RECORDS", tmp_path / "records")
    for module in (training, segmentation):
        monkeypatch.setattr(module, "SHIPPED", tmp_path / "shipped")
    folder = training.train_model(settings, protocol.sample_data(settings), "plt")
    record = training.ship(folder)
    assert record == tmp_path / "records" / "plt-do_unet-best-0"
    told = {"README.md", "card.json", "counting.json", "history.csv", "scores.csv"}
    assert {path.name for path in record.iterdir()} == told
    monkeypatch.setitem(training.CHOSEN, ("do_unet", "plt"), "best")
    shipped = training.ship(folder)
    assert shipped == tmp_path / "shipped" / "plt"
    assert {path.name for path in shipped.iterdir()} == told | {"weights.npz"}
    by_folder, by_name = (
        segmentation.load_segmenter("plt", settings, weights)
        for weights in (str(folder), "bloodcount")
    )
    assert by_name.checksum == by_folder.checksum
    page = (shipped / "README.md").read_text()
    method = METHOD_TITLES[read_counting(shipped).method]
    assert "recipe best" in page and f"Unless another method is asked for, it is {method}." in page


def interrupted(folder, name, maps):
    segmentation.write_masks(folder, name, maps)
    if name == "Syn002_0":
        raise KeyboardInterrupt


def test_kept_masks_stand_for_a_segnet(settings, tmp_path, monkeypatch):
    for module in (training, protocol):
        monkeypatch.setattr(module, "SEGNET_MASKS", tmp_path / "segnet")
    data = protocol.sample_data(settings)
    folder = training.train_model(settings, data, "wbc", "segnet")
    run = protocol.Run(settings, data, "authors", 0, tmp_path)
    assert not protocol.has_masks(run, "wbc")
    with pytest.raises(InputError, match="Call `keep_masks`"):
        training.ship(folder)
    with monkeypatch.context() as patch:
        patch.setattr(training, "write_masks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.keep_masks(folder, settings, data)
    assert not protocol.has_masks(run, "wbc"), "a card means that the masks are complete"
    assert training.keep_masks(folder, settings, data) == 4
    assert protocol.has_masks(run, "wbc")
    kept, fresh = (
        protocol.score_network(run.by(weights), "wbc") for weights in ("segnet", str(folder))
    )
    pd.testing.assert_frame_equal(kept.counts, fresh.counts)
    assert "segnet" in [each.weights for each in protocol.compared(run, "wbc")]
    segmentation.mask_file(tmp_path / "segnet" / "wbc", "mask", "Syn001_1").unlink()
    assert not protocol.has_masks(run, "wbc")
    monkeypatch.setitem(training.CHOSEN, ("segnet", "wbc"), "as_paper")
    with pytest.raises(InputError, match="recipe as_paper"):
        training.keep_masks(folder, settings, data)
    monkeypatch.setattr(training, "RECORDS", tmp_path / "records")
    assert training.ship(folder) == tmp_path / "records" / "wbc-segnet-best-0"


def test_scores_are_counted_as_the_model_was_tuned(settings, tmp_path, monkeypatch):
    data, tuned = protocol.sample_data(settings), []
    monkeypatch.setattr(training, "tune_model", lambda folder, *_: tuned.append(folder))
    monkeypatch.setattr(training, "score_model", lambda folder, *_: tuned.append("scored"))
    folder = training.train_model(settings, data, "plt")
    assert tuned == [folder, "scored"], "scored with what was tuned"
    write_counting(folder, settings.published["do_unet"]["plt"])
    training.train_model(settings, data, "plt")
    assert tuned == [folder, "scored", "scored"], "tuned once"
    data.index[["plt_count", "plt_mask_components"]] = float("nan")
    (folder / "counting.json").unlink()
    training._tune_once(folder, settings, data)
    assert tuned[3:] == [], "there is nothing to tune on"


def test_records_are_read_as_they_were_written():
    for folder in training.records():
        scores = training.read_scores(folder)
        assert list(scores) == training.RESULTS
        assert scores["method"].isin(["", *METHOD_TITLES]).all()
        assert (scores["recipe"] == training.read_card(folder)["recipe"]).all()
        assert (folder / "README.md").read_text() == training.model_card(folder)


def test_a_runner_sees_the_steps(monkeypatch, tmp_path):
    monkeypatch.delenv("BLOODCOUNT_PROGRESS", raising=False)
    assert training.step_bar(tmp_path, 4, 10) is None, "a training draws its own bar"
    monkeypatch.setenv("BLOODCOUNT_PROGRESS", str(tmp_path / "bars"))
    write_text(tmp_path / "history.csv", "epoch,loss\n1,0.5\n2,0.4\n")
    with training.step_bar(tmp_path, 4, 10) as bar:
        assert (bar.n, bar.total, bar.unit) == (20, 40, "step")
        bar.update(20)
    assert "40/40" in (tmp_path / "bars").read_text() and "step" in (tmp_path / "bars").read_text()


def test_what_transfer_learning_adds_is_b_less_a_over_the_seeds(settings, tmp_path):
    run = protocol.Run(settings, protocol.sample_data(settings), "bloodcount", 0, tmp_path)
    same = {"model": "do_unet", "weights": "bloodcount", "cell": "rbc", "map": "edge", "n": 3.0}
    same |= {"table": "tile_pixels", "quantity": "dice", "images": "test"}
    rows = [
        same | {"recipe": recipe, "value": value, "paper": paper}
        for recipe, value, paper in (
            ("model_a", 0.3, 0.36), ("model_a", 0.4, 0.36), ("model_b", 0.5, 0.41), ("best", 0.9, 0.41)
        )
    ]  # fmt: skip
    told = training.transfer_results(run, pd.DataFrame(rows)).iloc[0]
    assert told["value"] == pytest.approx(0.15) and told["paper"] == pytest.approx(0.05)
    assert (told["table"], told["map"], told["recipe"]) == ("transfer", "edge", "")
    assert training.transfer_results(run, pd.DataFrame(rows[:2])).empty


def test_what_faster_arithmetic_changes_is_counted_in_images_and_cells(tmp_path, monkeypatch):
    head = "cell,image,way,engine,seconds,largest,mean,cht,ccl_mask\n"
    rows = [
        "rbc,a,Keras,keras,4,0,0,100,90", "rbc,a,Fast,keras,1,0.02,0.002,97,90",
        "rbc,b,Keras,keras,4,0,0,50,50", "rbc,b,Fast,keras,3,0.01,0.001,51,50",
        "plt,a,Keras,keras,2,0,0,7,", "plt,a,Fast,keras,1,0.5,0.1,7,",
    ]  # fmt: skip
    monkeypatch.setattr(training, "ARITHMETIC", tmp_path / "arithmetic.csv")
    write_text(training.ARITHMETIC, head + "\n".join(rows) + "\n")
    red, platelets = training.arithmetic_table().to_dict("records")
    assert (red["CHT"], red["CCL on the mask"], red["time"]) == ("2, up to 3", "0", "0.50")
    assert (red["largest difference"], red["mean difference"]) == ("0.020", "1.5e-03")
    assert (platelets["CHT"], platelets["CCL on the mask"]) == ("0", "")

"What becomes of a trained model: its record, its place in the package, the masks that are kept of it."

import dataclasses

import pandas as pd
import pytest

from bloodcount import experiment, segment, trained
from bloodcount.errors import InputError
from bloodcount.settings import load_settings


@pytest.fixture
def settings(tmp_path):
    "Of a smoke run on four small smears, with tiles that hold a whole one."
    smoke = load_settings("smoke")
    sample = dataclasses.replace(smoke.sample, height=200, width=240)
    paths = dataclasses.replace(smoke.paths, runs=tmp_path / "runs")
    return dataclasses.replace(smoke, sample=sample, paths=paths)


def test_a_model_is_recorded_or_shipped(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "RECORDS", tmp_path / "records")
    for module in (trained, segment):
        monkeypatch.setattr(module, "SHIPPED", tmp_path / "shipped")
    folder = trained.train_model(settings, experiment.sample_data(settings), "plt")
    record = trained.ship(folder)
    assert record == tmp_path / "records" / "plt-do_unet-best-0"
    told = {"README.md", "card.json", "history.csv", "scores.csv"}
    assert {path.name for path in record.iterdir()} == told
    monkeypatch.setattr(trained, "CHOSEN", "best")
    shipped = trained.ship(folder)
    assert shipped == tmp_path / "shipped" / "plt"
    assert {path.name for path in shipped.iterdir()} == told | {"weights.npz"}
    by_folder, by_name = (
        segment.load_segmenter("plt", settings, weights) for weights in (str(folder), "bloodcount")
    )
    assert by_name.checksum == by_folder.checksum
    assert "recipe best" in (shipped / "README.md").read_text()


def interrupted(folder, name, maps):
    segment.write_masks(folder, name, maps)
    if name == "Syn002_0":
        raise KeyboardInterrupt


def test_kept_masks_stand_for_a_segnet(settings, tmp_path, monkeypatch):
    for module in (trained, experiment):
        monkeypatch.setattr(module, "SEGNET_MASKS", tmp_path / "segnet")
    data = experiment.sample_data(settings)
    folder = trained.train_model(settings, data, "wbc", "segnet")
    run = experiment.Run(settings, data, "authors", 0, tmp_path)
    assert not experiment.has_masks(run, "wbc")
    with pytest.raises(InputError, match="Call `keep_masks`"):
        trained.ship(folder)
    with monkeypatch.context() as patch:
        patch.setattr(trained, "write_masks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained.keep_masks(folder, settings, data)
    assert not experiment.has_masks(run, "wbc"), "a card means that the masks are complete"
    assert trained.keep_masks(folder, settings, data) == 4
    assert experiment.has_masks(run, "wbc")
    kept, fresh = (
        experiment.score_network(run.by(weights), "wbc") for weights in ("segnet", str(folder))
    )
    pd.testing.assert_frame_equal(kept.counts, fresh.counts)
    assert "segnet" in [each.weights for each in experiment.contenders(run, "wbc")]
    segment.mask_file(tmp_path / "segnet" / "wbc", "mask", "Syn001_1").unlink()
    assert not experiment.has_masks(run, "wbc")
    monkeypatch.setitem(trained.SEGNETS, "wbc", "as_paper")
    with pytest.raises(InputError, match="recipe as_paper"):
        trained.keep_masks(folder, settings, data)
    monkeypatch.setattr(trained, "RECORDS", tmp_path / "records")
    assert trained.ship(folder) == tmp_path / "records" / "wbc-segnet-best-0"

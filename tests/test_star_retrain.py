"The star network trained as those that ship: from which images, resumed, kept, and by which command."

import dataclasses
import json

import pytest

from bloodcount.data import DataSet
from bloodcount.errors import InputError, RunError, SettingsError
from bloodcount.files import read_card, write_text
from bloodcount.settings import CELLS, load_settings
from bloodcount.star_training import StarSchedule
from bloodcount.stars import STAR_WEIGHTS, STARS, load_stars, star_card
from bloodcount.studies import retrain, star_retrain
from bloodcount.studies.protocol import sample_data
from bloodcount.studies.star_retrain import (
    StarTraining,
    images_told,
    learnt_cells,
    score_star,
    ship_star,
    star_sides,
    train_star,
    truths_of,
)


@pytest.fixture(scope="module")
def real_data(data_folder):
    return DataSet(data_folder)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    "Of the smoke profile, its runs in a folder of the tests."
    smoke = load_settings("smoke")
    runs = tmp_path_factory.mktemp("runs")
    return dataclasses.replace(smoke, paths=dataclasses.replace(smoke.paths, runs=runs))


@pytest.fixture(scope="module")
def training(settings):
    return StarTraining(settings, sample_data(settings))


def test_the_shipped_weights_learnt_from_these_images(real_data):
    learnt, judged = star_sides(StarTraining(load_settings("paper"), real_data))
    card = star_card(STARS)
    assert images_told(real_data, learnt) == card["data"]["images"]
    assert judged == card["validation"]["images"]


def test_no_test_image_teaches_its_type(real_data):
    learnt, judged = star_sides(StarTraining(load_settings("paper"), real_data))
    index = real_data.index
    assert not set(learnt) & set(judged)
    for name in learnt:
        taught = learnt_cells(real_data, name)
        assert taught and all(index.loc[name, f"{cell}_split"] != "test" for cell in taught)
    held_out = next(n for n in learnt if index.loc[n, "wbc_split"] == "test")
    (truth,) = truths_of(real_data, [held_out])
    assert "wbc" not in truth.whole and not len(truth.numbers(CELLS.index("wbc") + 1))


def test_the_second_weights_go_on_with_the_first(training):
    second = dataclasses.replace(training, recipe="elsewhere")
    assert training.start is None and second.start == training
    assert training.folder != second.folder and training.key != second.key
    with pytest.raises(SettingsError, match="no star weights 'elsewere'. Did you mean 'elsewhere'"):
        dataclasses.replace(training, recipe="elsewere")


def test_the_schedule_is_that_of_the_settings(training):
    assert training.schedule == StarSchedule(
        epochs=1, steps=2, batch=2, side=64, warm=1, precision="mixed_bfloat16"
    )
    assert StarTraining(load_settings("paper"), training.data).schedule.epochs == 150


@pytest.mark.parametrize("cell", CELLS)
def test_one_network_for_all_cell_types(training, cell):
    at = training.settings, training.data
    assert retrain.training_of(*at, "all", "stardist", "bloodcount", 0) == training
    with pytest.raises(SettingsError, match=f"--cell {cell}: stardist learns all cell types"):
        retrain.training_of(*at, cell, "stardist", "bloodcount", 0)


def test_without_other_smears_the_second_weights_are_refused(training, monkeypatch):
    monkeypatch.setattr(star_retrain, "fields_of", lambda run: [])
    with pytest.raises(InputError, match="BLOODCOUNT_OTHER_SMEARS"):
        star_retrain._other_truths(training, load_stars())


@pytest.mark.slow
def test_trained_resumed_scored_and_kept(training, monkeypatch, tmp_path):
    second = dataclasses.replace(training, recipe="elsewhere")
    folder = train_star(second)  # The first weights too
    card = star_card(folder)
    assert load_stars(folder).checksum == card["weights_sha256"]
    assert card["weights"] == "elsewhere" and card["epochs"] == 1 and card["seconds"] > 0
    assert (
        card["data"]["images"]["other"]
        and "other" not in read_card(training.folder)["data"]["images"]
    )
    assert card["widths"] == read_card(training.folder)["widths"] != {}
    # Done at once
    monkeypatch.setattr(star_retrain, "train_stars", None)
    assert train_star(second) == folder
    # Killed between the weights and the card: the weights are kept
    checksum = read_card(training.folder)["weights_sha256"]
    write_text(training.folder / "card.json", json.dumps(read_card(training.folder) | {"key": ""}))
    assert read_card(train_star(training))["weights_sha256"] == checksum
    # With other settings nothing is lost
    more = dataclasses.replace(training.settings.star["bloodcount"], rate=0.5)
    star = training.settings.star | {"bloodcount": more}
    other = dataclasses.replace(
        training, settings=dataclasses.replace(training.settings, star=star)
    )
    with pytest.raises(SettingsError, match="other settings or data. Move that folder away"):
        train_star(other)
    (training.folder / "key.txt").rename(tmp_path / "key.txt")  # As where a model was copied to
    with pytest.raises(SettingsError, match="Move that folder away"):
        train_star(other)
    (tmp_path / "key.txt").rename(training.folder / "key.txt")
    assert load_stars(training.folder).checksum == checksum
    # Its scores and its page
    scores = score_star(second)
    assert set(scores["images"]) == {"test"} and set(scores["cell"]) == set(CELLS)
    monkeypatch.setitem(STAR_WEIGHTS, "elsewhere", tmp_path / "stars_elsewhere")
    assert star_card(ship_star(second)) == card
    page = (tmp_path / "stars_elsewhere" / "README.md").read_text()
    assert "bloodcount train --cell all --network stardist --recipe elsewhere" in page
    assert "count_accuracy" in page


def test_by_hand_no_star_network_is_kept(training, monkeypatch, tmp_path):
    monkeypatch.delenv("BLOODCOUNT_MODELS", raising=False)
    assert "stays in its folder" in retrain.keep_stars(training)
    monkeypatch.setenv("BLOODCOUNT_MODELS", str(tmp_path))
    with pytest.raises(RunError, match="own networks would be replaced"):
        retrain.keep_stars(training)

"From images to tables: which networks, what is done, how long, and what is never replaced."

import dataclasses
import json
import os
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from bloodcount.errors import InputError, RunError, SettingsError
from bloodcount.files import sha256, write_text
from bloodcount.settings import CELLS, PROJECT, load_settings
from bloodcount.studies import retrain as module
from bloodcount.studies.protocol import sample_data
from bloodcount.studies.reproduce import Reproduction
from bloodcount.studies.retrain import Part, models_folder, open_steps, retrain, trainings
from bloodcount.studies.runner import Outcome, declared_outputs


@pytest.fixture
def settings(tmp_path, monkeypatch):
    "Of the smoke profile, its runs in a folder of the test."
    smoke = load_settings("smoke")
    smoke = dataclasses.replace(smoke, paths=dataclasses.replace(smoke.paths, runs=tmp_path))
    monkeypatch.setattr(module, "load_settings", lambda profile: smoke)
    monkeypatch.setattr(module, "authors", lambda folder: [])
    return smoke


@pytest.fixture
def ran(monkeypatch) -> list[tuple]:
    "In the place of the runner: what each job is, and its files made up."
    jobs = []

    def run(job, show):
        p = job.parameters
        jobs.append((job.notebook, p.get("cell"), p.get("model"), p["recipe"], p["seed"]))
        if len(jobs) == getattr(ran, "fails_at", 0):
            return Outcome("ValueError: boom", 1.0)
        names = declared_outputs(nbformat.reads(job.source, as_version=4))
        for name in names:
            write_text(job.outputs / name, name)
        write_text(job.executed, "{}")
        outputs = {name: sha256(job.outputs / name) for name in names}
        known = {
            "key": job.key,
            "outputs": outputs,
            "executed": sha256(job.executed),
            "seconds": 60.0,
        }
        write_text(job.provenance, json.dumps(known))
        return Outcome("", 60.0)

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(ran_tables, "made", [], raising=False)
    monkeypatch.setattr(module, "run_notebooks", ran_tables)
    return jobs


def ran_tables(reproduction: Reproduction, names: list[str]) -> list[str]:
    ran_tables.made.append((reproduction, names))
    return []


# The plan


def test_every_network_of_the_tables(settings):
    data = sample_data(settings)
    names = [(t.cell, t.network, t.recipe, t.seed) for t in trainings(settings, data, Part())]
    assert len(names) == len(set(names)) and {cell for cell, *_ in names} == {*CELLS, "all"}
    assert {n[2] for n in names if n[:2] == ("rbc", "do_unet")} == {
        "model_a", "model_b", "as_paper", "best", "refined",
    }  # fmt: skip
    for number, training in enumerate(trainings(settings, data, Part())):
        if training.start:  # What it goes on with is trained before it
            start = training.start
            assert (start.cell, start.network, start.recipe, start.seed) in names[:number]
    real = trainings(load_settings("laptop"), data, Part(recipe="model_b"))
    assert [t.seed for t in real] == [0, 1, 2]


def test_a_part(settings):
    data = sample_data(settings)
    of = {
        Part(cell="wbc"): {("wbc", "do_unet"), ("wbc", "segnet")},
        Part(network="segnet"): {(cell, "segnet") for cell in CELLS},
        Part(cell="rbc", recipe="best", seed=0): {("rbc", "do_unet")},
    }
    for part, pairs in of.items():
        assert {(t.cell, t.network) for t in trainings(settings, data, part)} == pairs
    for part in (Part(cell="rcb"), Part(cell="wbc", recipe="model_a"), Part(seed=7)):
        with pytest.raises(SettingsError, match="no such network. Known: rbc do_unet: model_a"):
            trainings(settings, data, part)


def test_the_time_is_measured(settings):
    data = sample_data(settings)
    (training,) = trainings(settings, data, Part(cell="rbc", recipe="model_b"))
    left = sum(training.chosen[0].epochs) * training.chosen[0].steps
    assert module.seconds_per_step(training) is None and module.steps_left(training) == left
    assert "?" in module.plan_text([training])
    rows = pd.DataFrame({"seconds": [90.0, 60.0, 60.0], "epoch": [1, 2, 1]})
    training.folder.mkdir(parents=True)
    rows.to_csv(training.folder / "history.csv", index=False)
    steps = training.chosen[0].steps
    assert module.seconds_per_step(training) == 60 / steps
    assert module.steps_left(training) == left - 3 * steps
    assert "Trainings: about 1 minutes;" in module.plan_text([training])
    # Another recipe with the same network and chips learns from it, once it is done
    (other,) = trainings(settings, data, Part(cell="plt", recipe="refined"))
    assert module.seconds_per_step(other) is None
    card = {
        "cell": "rbc", "network": "do_unet", "recipe": "model_b", "key": "", "weights_sha256": "",
        "data": {}, "seconds": 30.0, "epochs": 4,
        "settings": {"recipe": {"steps": 5}, "train": dataclasses.asdict(other.chosen[2])},
    }  # fmt: skip
    write_text(training.folder / "card.json", json.dumps(card))
    assert module.seconds_per_step(other) == 1.5 and module.steps_left(training) == 0


# The run


def test_a_part_is_trained_then_tuned_and_the_tables_wait(settings, ran, capsys):
    assert retrain("smoke", Part(cell="plt", network="do_unet")) == 0
    assert [(step, recipe) for step, _, _, recipe, _ in ran] == [
        ("train", "best"), ("tune", "best"), ("train", "refined"), ("tune", "refined"),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "train, tune" in said and "The tables wait for 12 networks: rbc-do_unet" in said
    assert not ran_tables.made
    assert retrain("smoke", Part(cell="plt", network="do_unet")) == 0
    assert len(ran) == 4, "something was done again"
    assert retrain("smoke", Part(cell="plt", network="do_unet"), ["04_plt"]) == 0
    ((reproduction, names),) = ran_tables.made
    assert names == ["04_plt"] and len(ran) == 4


def test_what_failed_is_gone_on_with(settings, ran, monkeypatch, capsys):
    monkeypatch.setattr(globals()["ran"], "fails_at", 3, raising=False)
    part = Part(cell="plt", network="do_unet")
    assert retrain("smoke", part) == 1
    assert "plt-do_unet-refined-0, train FAILED: ValueError: boom" in capsys.readouterr().err
    assert len(ran) == 3, "a network that is not trained was tuned"
    assert retrain("smoke", part) == 0
    assert [step for step, *_ in ran] == ["train", "tune", "train", "train", "tune"]


def test_all_networks_then_the_tables_of_them(settings, ran):
    assert retrain("smoke") == 0
    ((reproduction, names),) = ran_tables.made
    models = models_folder(settings, sample_data(settings))
    assert reproduction.models == models and not reproduction.official and len(names) > 10
    assert reproduction.figures == models / "figures"
    assert all(home.is_relative_to(models) for home in reproduction.homes.values())
    made = trainings(settings, reproduction.data, Part())
    assert len(ran) == sum(len(module.steps_of(training)) for training in made)
    assert (models / "weights" / "authors" / "rbc" / "counting.json").exists() == (
        module.SHIPPED / "authors" / "rbc" / "counting.json"
    ).exists()


def test_new_weights_are_tuned_anew(settings, ran):
    part = Part(cell="plt", recipe="best", network="do_unet")
    retrain("smoke", part)
    (training,) = trainings(settings, sample_data(settings), part)
    assert open_steps(training) == []
    write_text(training.folder / "weights.npz", "others")
    assert open_steps(training) == ["tune"]


# What is never replaced


def test_by_hand_nothing_is_kept(settings, monkeypatch, tmp_path):
    monkeypatch.delenv("BLOODCOUNT_MODELS", raising=False)
    assert "stays in its folder" in module.keep_model(tmp_path, settings, sample_data(settings))
    monkeypatch.setenv("BLOODCOUNT_MODELS", str(tmp_path / "models"))
    with pytest.raises(RunError, match="own networks would be replaced"):
        module.keep_model(tmp_path, settings, sample_data(settings))


def test_homes_are_where_the_variable_says(tmp_path):
    code = (
        "from bloodcount.segmentation import SHIPPED; from bloodcount.studies.protocol import SEGNET_MASKS;"
        "from bloodcount.studies.training import RECORDS; print(SHIPPED, SEGNET_MASKS, RECORDS)"
    )
    env = os.environ | {"BLOODCOUNT_MODELS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    homes = Reproduction(None, None, tmp_path).homes
    assert done.stdout.split() == [str(homes[name]) for name in ("weights", "segnet", "trained")]


def test_only_the_real_images_are_published(settings, ran):
    with pytest.raises(InputError, match="Only networks trained on all of ALL-IDB1"):
        retrain("smoke", publish=True)
    assert not ran


def test_publishing_replaces_what_was_trained_and_nothing_else(tmp_path, monkeypatch):
    homes = {"weights": "own", "segnet": "masks", "trained": "records"}
    for name, place in homes.items():
        monkeypatch.setitem(module.HOMES, name, tmp_path / place)
    for path in (
        "own/rbc/weights.npz",
        "own/rbc/stale.txt",
        "own/wbc/weights.npz",
        "masks/wbc/card.json",
    ):
        write_text(tmp_path / path, "old")
    for path in ("weights/rbc/card.json", "weights/rbc/weights.npz", "trained/a-0/card.json"):
        write_text(tmp_path / "models" / path, "new")
    module.publish_networks(tmp_path / "models")
    there = {
        path.relative_to(tmp_path).as_posix(): path.read_text()
        for folder in homes.values()
        for path in (tmp_path / folder).rglob("*.*")
        if path.is_file()
    }
    assert there == {
        "own/rbc/card.json": "new", "own/rbc/weights.npz": "new", "own/wbc/weights.npz": "old",
        "masks/wbc/card.json": "old", "records/a-0/card.json": "new",
    }  # fmt: skip


# For real


@pytest.mark.slow
def test_the_smoke_profile_from_images_to_a_table(tmp_path, authors_folder):
    "One network, trained, tuned, kept, and a notebook of the paper made from it; the project stays as it is."
    from test_reproduce import finish, make_home

    home = make_home(tmp_path / "home", authors_folder)
    shipped = sha256(home / "bloodcount" / "weights" / "wbc" / "weights.npz")
    part = ("--cell", "wbc", "--network", "do_unet", "--recipe", "refined", "--only", "03_wbc")
    log = finish(home, "--train", *part)
    models = home / "runs" / "smoke-synthetic" / "retrained"
    card = json.loads((models / "weights" / "wbc" / "card.json").read_text())
    assert card["recipe"] == "refined" and card["start"]["recipe"] == "best"
    assert (models / "weights" / "wbc" / "counting.json").exists()
    known = json.loads((models / "figures" / "provenance" / "03_wbc.json").read_text())
    assert known["weights"]["bloodcount"] == {"wbc": card["weights_sha256"]}
    assert (models / "figures" / "table_wbc.md").exists()
    assert sha256(home / "bloodcount" / "weights" / "wbc" / "weights.npz") == shipped
    assert not (home / "figures").exists() and "done in" in log
    for path in PROJECT.glob("nbs/paper/*.ipynb"):
        assert (home / "nbs" / "paper" / path.name).read_bytes() == path.read_bytes()
    assert "03_wbc" not in finish(home, "--train", *part).partition("done already")[0]

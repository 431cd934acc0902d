"The command as people use it: exit codes, sentences, tables and overlays."

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fake_finder import Darkness
from PIL import Image

import bloodcount
from bloodcount import batch, cli, fetch, picture
from bloodcount.models import counting_text
from bloodcount.results import COUNTS
from bloodcount.settings import PROJECT, load_settings
from bloodcount.synthetic import synthetic_smear

COMMAND = Path(sys.executable).with_name("bloodcount")
# Nine red cells, dark all over and apart from each other: any threshold finds them.
SMEAR = synthetic_smear(seed=7, shape=(200, 260), rbc=9, wbc=0, plt=0, overlap=0, pallor=0)


@pytest.fixture
def run(monkeypatch, capsys):
    "Runs the command in this process with that segmenter: exit code, stdout, lines of stderr."
    monkeypatch.setattr(batch, "finder_of", lambda plan: Darkness())
    return lambda *arguments: in_process(capsys, *arguments)


def in_process(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return stop.value.code, said.out, said.err.splitlines()


def rows(out: Path) -> list[dict]:
    with open(out / "counts.csv", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COUNTS
        return list(reader)


def save(path: Path, pixels=SMEAR.image, **options) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def jpeg(pixels=SMEAR.image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


# The command itself


def test_help_and_version_load_nothing_heavy():
    for option, said in (("--help", "Usage: bloodcount"), ("--version", bloodcount.__version__)):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", COMMAND, option],
            check=True,
            capture_output=True,
            text=True,
        )
        assert said in done.stdout
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "bloodcount.cli" in loaded
        assert not loaded & {"tensorflow", "keras", "pandas", "skimage", "cv2", "numpy"}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--method", "watershd"], "--method watershd: no such name. Did you mean 'watershed'?"),
        (["--cell", "rcb"], "--cell rcb: no such name. Did you mean 'rbc'?"),
        (["--profile", "smok"], "There is no profile 'smok'. Did you mean 'smoke'?"),
    ],
)
def test_wrong_names_are_one_sentence(run, tmp_path, arguments, sentence):
    code, _, errors = run("count", save(tmp_path / "a.png"), "-o", tmp_path / "out", *arguments)
    assert (code, errors) == (2, [sentence])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["count", "a.png"], ["count", "-o", "out"], ["count", "a.png", "--metod", "x"], ["cuont"]],
)
def test_bad_usage(run, arguments):
    code, _, errors = run(*arguments)
    assert code == 2 and errors[-1].startswith("Error: ")


def test_a_mistake_in_the_code_is_one_line_too(run, monkeypatch, tmp_path):
    def broken(*_):
        raise TypeError("of no use\nto anybody")

    monkeypatch.setattr(batch, "count_files", broken)
    code, _, errors = run("count", "a.png", "-o", tmp_path)
    assert code == 1 and len(errors) == 1 and "TypeError: of no use to anybody" in errors[0]


# Presses Ctrl-C when the module that the first argument names is about to be imported.
PRESSED = """
import os, signal, sys
moment = sys.argv.pop(1)
class Press:
    def find_spec(self, name, *_):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
from bloodcount.start import main
sys.meta_path.insert(0, Press())
main()
"""


@pytest.mark.parametrize("moment", ["bloodcount.cli", "typer", "pandas", "bloodcount.picture"])
def test_ctrl_c_while_loading_leaves_no_traceback(tmp_path, moment):
    command = [sys.executable, "-c", PRESSED, moment, "count", save(tmp_path / "a.png")]
    done = subprocess.run([*command, "-o", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&-", "0<&- 1>&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    "Nothing that was meant for them gets into a result."
    save(tmp_path / "a.png")
    fake = Path(__file__).with_name("fake_finder.py")
    command = f"'{sys.executable}' '{fake}' count a.png none.png -o out {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [row["status"] for row in rows(tmp_path / "out")] == ["ok"] * 3 + ["error"] * 3


def test_doctor_says_that_all_is_well():
    done = subprocess.run([COMMAND, "doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for said in ("bloodcount 0", "tensorflow 2", "bloodcount, for plt", "of 12 red cells"):
        assert said in done.stdout
    for weights in ("bloodcount", "elsewhere"):
        assert f"weights {weights}, for all three: stardist" in done.stdout
    assert "cuInit" not in done.stderr


def test_doctor_finds_damaged_weights(tmp_path, monkeypatch):
    from bloodcount import doctor, segmentation

    shutil.copytree(segmentation.SHIPPED, tmp_path / "weights")
    body = bytearray((tmp_path / "weights" / "plt" / "weights.npz").read_bytes())
    body[len(body) // 2] ^= 1
    (tmp_path / "weights" / "plt" / "weights.npz").write_bytes(body)
    monkeypatch.setattr(segmentation, "SHIPPED", tmp_path / "weights")
    picture._about.cache_clear()
    found = list(doctor._weights())
    assert [good for _, good in found] == [True, True, False, True, True]
    assert "SHA-256" in found[2][0]


# The authors' weights


@pytest.fixture
def settings_of(monkeypatch):
    "Makes the command look for the authors' folder, for data and for runs, somewhere else."

    def set_paths(**paths):
        def moved(*names):
            settings = load_settings(*names)
            return dataclasses.replace(settings, paths=dataclasses.replace(settings.paths, **paths))

        picture._about.cache_clear()
        for module in (cli, picture):
            monkeypatch.setattr(module, "load_settings", moved)

    return set_paths


def test_missing_weights(capsys, settings_of, tmp_path):
    settings_of(authors=tmp_path / "authors")
    image = save(tmp_path / "a.png")
    code, _, errors = in_process(
        capsys, "count", image, "-o", tmp_path / "out", "--weights", "authors"
    )
    assert code == 3 and len(errors) == 1
    assert str(tmp_path / "authors" / "weights" / "rbc.h5") in errors[0]
    assert "Run `bloodcount data authors`" in errors[0]


def test_damaged_weights(capsys, settings_of, tmp_path, authors_folder):
    weights = bytearray((authors_folder / "weights" / "plt.h5").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "plt.h5").write_bytes(weights)
    settings_of(authors=tmp_path)
    command = ("count", save(tmp_path / "a.png"), "-o", tmp_path / "out", "--weights", "authors")
    code, _, errors = in_process(capsys, *command, "--cell", "plt")
    assert code == 3 and len(errors) == 1
    assert (
        fetch.MEMBERS["weights/plt.h5"][1] in errors[0] and str(tmp_path / "weights") in errors[0]
    )


@pytest.mark.parametrize("known", picture.OURS)
def test_unknown_weights(capsys, tmp_path, known):
    image = save(tmp_path / "a.png")
    code, _, errors = in_process(capsys, "count", image, "-o", tmp_path, "--weights", known[:-1])
    assert code == 2 and errors[0].endswith(f"Did you mean {known!r}?") and len(errors) == 1


def test_a_folder_without_a_model(capsys, tmp_path):
    image = save(tmp_path / "a.png")
    command = ("count", image, "-o", tmp_path / "out", "--weights", tmp_path)
    assert in_process(capsys, *command)[0] == 3
    (tmp_path / "card.json").write_text("{}")
    code, _, errors = in_process(capsys, *command)
    assert code == 3 and len(errors) == 1 and str(tmp_path / "card.json") in errors[0]
    assert not (tmp_path / "out").exists()


def test_the_real_thing(tmp_path, authors_folder):
    "The installed command with the authors' networks, in its own process."
    smear = synthetic_smear(seed=2, shape=(320, 416), rbc=16, wbc=1, plt=3, overlap=0)
    whole = save(tmp_path / "a.png", smear.image)
    (tmp_path / "cut.jpg").write_bytes(jpeg(smear.image)[:9000])
    done = subprocess.run(
        [COMMAND, "count", whole, tmp_path / "cut.jpg", "-o", "out", "--weights", "authors"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    first, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert (
        "cut.jpg: damaged or truncated" in first and last == "1 of 2 images could not be counted."
    )
    table = rows(tmp_path / "out")
    assert [row["status"] for row in table] == ["ok"] * 3 + ["error"] * 3
    counted = {row["cell"]: int(row["count"]) for row in table[:3]}
    assert abs(counted["rbc"] - 16) <= 2 and counted["wbc"] == 1 and abs(counted["plt"] - 3) <= 1
    for row in table:
        assert row["weights"] == "authors"
        assert row["weights_sha256"] == fetch.MEMBERS[f"weights/{row['cell']}.h5"][1]


@pytest.mark.parametrize("whose", ["one's own", "elsewhere"])
def test_star_weights_count_every_type(capsys, tmp_path, whose):
    from bloodcount.stars import STARS

    shutil.copytree(STARS, tmp_path / "mine")
    image = save(tmp_path / "a.png")
    weights = "elsewhere" if whose == "elsewhere" else tmp_path / "mine"
    command = ("count", image, "-o", tmp_path / "out", "--weights", weights)
    assert in_process(capsys, *command)[0] == 0
    table = rows(tmp_path / "out")
    assert [row["cell"] for row in table] == ["rbc", "wbc", "plt"]
    assert {row["network"] for row in table} == {"stardist"}
    assert abs(int(table[0]["count"]) - 9) <= 2


def test_the_paper_s_networks_have_no_weights_for_elsewhere(capsys, tmp_path):
    command = ("count", save(tmp_path / "a.png"), "--weights", "elsewhere", "--network", "do_unet")
    code, _, errors = in_process(capsys, *command, "-o", tmp_path / "out")
    said = "--network do_unet: the weights elsewhere are of stardist; leave it out."
    assert (code, errors) == (2, [said])


# The other commands


def counted_in(folder: Path, environment: dict[str, str]) -> dict[str, int]:
    "The red cells of one smear by every method, counted by a process of its own."
    image = synthetic_smear(seed=5, shape=(420, 520), rbc=22, overlap=0.2).image
    folder.mkdir()
    save(folder / "a.png", image)
    command = [COMMAND, "count", "a.png", "-o", "out", "--cell", "rbc", "--method", "all"]
    done = subprocess.run(
        [*command, "--weights", "bloodcount"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {row["method"]: int(row["count"]) for row in rows(folder / "out")}


@pytest.mark.slow
def test_threads_and_onednn_move_a_count_by_one_at_most(tmp_path):
    here = counted_in(tmp_path / "here", {})
    assert len(here) == 4 and max(here.values()) > 10
    other = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_ENABLE_ONEDNN_OPTS": "0"}
    elsewhere = counted_in(tmp_path / "elsewhere", other)
    assert elsewhere.keys() == here.keys()
    assert all(abs(here[m] - n) <= 1 for m, n in elsewhere.items()), elsewhere


def test_sample(run, tmp_path):
    code, said, _ = run("data", "sample", tmp_path / "sample", "--profile", "smoke")
    assert (code, said) == (0, f"synthetic sample (4 smears): {tmp_path / 'sample'}\n")
    code, _, errors = run("data", "sample", tmp_path / "sample", "--profile", "smoke")
    assert code == 2 and errors == [
        f"{tmp_path / 'sample'} exists; name a folder that is not there yet."
    ]
    images = sorted((tmp_path / "sample" / "images").iterdir())
    code, *_ = run("count", *images, "-o", tmp_path / "out", "--cell", "rbc")
    assert code == 0 and len(rows(tmp_path / "out")) == 4


def test_check(run, tmp_path, monkeypatch):
    assert run("data", "check", tmp_path / "none")[0] == 2
    code, said, errors = run("data", "check", tmp_path)
    assert code == 1 and "missing images/Im001_1.jpg" in said and len(said.splitlines()) == 21
    assert errors == [
        f"{tmp_path}: {len(fetch.registered())} files are missing; run `bloodcount data fetch --accept-terms`."
    ]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "Im001_1.jpg").write_text("damaged")
    monkeypatch.setenv("BLOODCOUNT_DATA", str(tmp_path))
    code, _, errors = run("data", "check")
    assert code == 3 and len(errors) == 1 and "images/Im001_1.jpg has the checksum" in errors[0]
    monkeypatch.setattr(
        fetch, "registered", lambda: {"images/x": fetch.sha256(PROJECT / "LICENSE")}
    )
    (tmp_path / "images" / "x").write_bytes((PROJECT / "LICENSE").read_bytes())
    code, said, _ = run("data", "check")
    assert (code, said) == (0, f"extra images/Im001_1.jpg\n{tmp_path} is complete.\n")


def test_fetch_asks_for_the_terms(run, tmp_path):
    code, said, errors = run("data", "fetch", "--to", tmp_path / "data")
    assert code == 2 and "research and teaching" in said
    assert errors == ["Nothing is downloaded before you accept these terms: add --accept-terms."]
    assert not (tmp_path / "data").exists()


def test_authors_from_a_wheel(run, settings_of, tmp_path):
    settings_of(authors=tmp_path / "authors")
    (tmp_path / fetch.WHEEL).write_text("another package")
    code, said, errors = run("data", "authors", "--wheel", tmp_path / fetch.WHEEL)
    assert code == 3 and len(errors) == 1 and fetch.WHEEL_SHA256 in errors[0]
    assert len(said.splitlines()) == 1 and not (tmp_path / "authors").exists()


def test_reproduce_hands_on_what_it_is_told(run, monkeypatch):
    told = []
    ask = "bloodcount.studies.reproduce.reproduce"
    monkeypatch.setattr(ask, lambda *arguments: told.append(arguments) or 1)
    monkeypatch.setattr("bloodcount.studies.page.list_notebooks", lambda: "01_data")
    assert run("reproduce", "--list")[:2] == (0, "01_data\n")
    assert run("reproduce")[0] == 1
    assert (
        run("reproduce", "--profile", "smoke", "--only", "01_data", "--only", "02", "--publish")[0]
        == 1
    )
    assert told == [("paper", None, False), ("smoke", ["01_data", "02"], True)]
    assert run("reproduce", "--profile", "papr")[::2] == (
        2,
        ["There is no profile 'papr'. Did you mean 'paper'?"],
    )


# Training, tuning, the page


@pytest.mark.slow
def test_train_then_count(capsys, settings_of, tmp_path):
    "A smoke training; its folder is then the weights, for its own cell type."
    settings_of(runs=tmp_path / "runs")
    code, said, _ = in_process(capsys, "train", "--cell", "plt", "--profile", "smoke")
    assert code == 0
    first, stage, *_ = said.splitlines()
    assert first.startswith("do_unet for plt by recipe best, profile smoke, seed 0, on synthetic")
    assert "train: 2 images, 2 epochs of 2 steps of 2 chips" in stage
    (card,) = (tmp_path / "runs").rglob("card.json")
    scores = pd.read_csv(card.parent / "scores.csv")
    assert str(card.parent) in said and "On the test images:" in said
    test = scores[(scores["images"] == "test") & (scores["quantity"] == "count_accuracy")]
    assert len(test) and all(method in said for method in test["method"])
    image = save(tmp_path / "a.png")
    code, *_ = in_process(
        capsys, "count", image, "-o", tmp_path, "--weights", card.parent, "--profile", "smoke"
    )
    (row,) = rows(tmp_path)
    assert (code, row["cell"], row["weights"]) == (0, "plt", str(card.parent))
    assert row["weights_sha256"] == json.loads(card.read_text())["weights_sha256"]


def test_an_interrupted_training_says_what_is_kept(capsys, settings_of, tmp_path, monkeypatch):
    settings_of(runs=tmp_path)
    monkeypatch.setattr("bloodcount.studies.retrain.train_model", stopping_at_once)
    code, _, errors = in_process(capsys, "train", "--cell", "wbc", "--profile", "smoke")
    assert code == 130 and errors[-1].startswith("Interrupted: the epochs so far are kept in ")
    assert errors[-1].endswith("trained; the same command goes on.")


def stopping_at_once(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["train", "--cell", "all"], "--cell all: no such name. Known: plt, rbc, wbc."),
        (["train", "--cell", "rbc", "--network", "unet"], "Did you mean 'do_unet'?"),
        (["train", "--cell", "wbc", "--recipe", "model_a"], "Known: as_paper, best, refined."),
        (["train", "--cell", "rbc", "--profile", "latop"], "Did you mean 'laptop'?"),
        (["tune", "--cell", "rcb"], "Did you mean 'rbc'?"),
        (["tune", "--cell", "rbc", "--weights", "segnte"], "Did you mean 'segnet'?"),
        (["report", "--html", "page.html", "--profile", "papre"], "Did you mean 'paper'?"),
    ],
)
def test_wrong_names_of_other_commands(run, arguments, sentence):
    code, _, errors = run(*arguments)
    assert code == 2 and len(errors) == 1 and errors[0].endswith(sentence)


@pytest.mark.parametrize(
    "arguments", [["train"], ["train", "--cell", "rbc", "--seed", "-1"], ["tune"], ["report"]]
)
def test_bad_usage_of_other_commands(run, arguments):
    code, _, errors = run(*arguments)
    assert code == 2 and errors[-1].startswith("Error: ")


def test_tune_prints_what_it_chose_and_keeps_it_if_asked(run, monkeypatch, tmp_path):
    told, counting = [], load_settings("smoke").published["do_unet"]["wbc"]
    answer = counting, {"ccl": 91.5}
    monkeypatch.setattr(
        "bloodcount.studies.tuning.tune", lambda *asked: told.append(asked) or answer
    )
    monkeypatch.setattr("bloodcount.studies.protocol.network_folder", lambda *_: tmp_path)
    code, printed, errors = run("tune", "--cell", "WBC", "--images", "12", "--profile", "smoke")
    assert code == 0 and printed.endswith(counting_text(counting))
    assert not list(tmp_path.iterdir())
    assert "ccl: 91.50 on training images" in errors
    assert [told[0][0].weights, *told[0][1:]] == ["bloodcount", "wbc", 12]
    run("tune", "--cell", "wbc", "--weights", "authors", "--keep", "--profile", "smoke")
    assert (tmp_path / "counting.json").read_text() == counting_text(counting)


def test_report_hands_on_what_it_is_told(run, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr("bloodcount.studies.reproduce.report", lambda *asked: told.append(asked))
    path = tmp_path / "page.html"
    assert run("report", "--html", path, "--profile", "smoke")[:2] == (0, f"{path} is written.\n")
    assert told == [("smoke", path)]

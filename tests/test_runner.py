"The runner of the paper's notebooks, its faults injected for real, and what the notebooks call."

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from bloodcount.data import DataSet
from bloodcount.errors import InputError, RunError, SettingsError
from bloodcount.fetch import index_of, packaged
from bloodcount.files import sha256
from bloodcount.settings import PROJECT, Paths, Reproduce, load_settings
from bloodcount.studies import protocol, results, runner
from bloodcount.studies.results import RESULTS

NOTEBOOKS = runner.notebooks()
PARAMETERS = {"profile": "smoke"}
COMMAND = [sys.executable, "-c", "from bloodcount.cli import main; main()", "reproduce"]

KERNEL = {"name": "python3", "display_name": "python3", "language": "python"}
# Cells of small notebooks.
BEGIN = "import os, signal, sys, time; from pathlib import Path; out = Path(os.environ['BLOODCOUNT_OUT'])"
ANSWER = "(out / 'answer.txt').write_text('new')"
FAULTS = {
    "an error": ("raise ValueError('boom')", "ValueError: boom"),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", "Kernel died"),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", "Kernel died"),
    "SIGINT": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", "KeyboardInterrupt"),
    "sys.exit(0)": ("sys.exit(0)", "SystemExit: 0"),
    "os._exit(0)": ("os._exit(0)", "Kernel died"),
    "a time-out": ("time.sleep(60)", "timed out"),
}


def write_notebook(name: str, *cells: str, writes=("answer.txt",), tag: str = "parameters"):
    "A notebook with a title that says what it writes, parameters, and cells."
    title = "\n".join(["# A title", *(f"- `{file}`" for file in writes)])
    parameters = nbformat.v4.new_code_cell('profile = "paper"\nseed = 0', metadata={"tags": [tag]})
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL})
    notebook.cells = [nbformat.v4.new_markdown_cell(title), parameters]
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in (BEGIN, *cells)]
    nbformat.write(notebook, runner.PAPER_NOTEBOOKS / f"{name}.ipynb")


def series_in(folder: Path, profile: str, images: list[str]) -> runner.Series:
    "A series whose paths lie in a folder, on an index of images that are not there."
    paths = Paths(**{field.name: folder / field.name for field in dataclasses.fields(Paths)})
    settings = dataclasses.replace(load_settings(profile), paths=paths)
    index = pd.read_csv(index_of()).set_index("image")
    index = index.loc[images] if images else index.iloc[:1].rename({"Im001_1": "Syn001_1"})
    (folder / "data").mkdir()
    index.to_csv(folder / "data" / "index.csv")
    return runner.Series(settings, DataSet(folder / "data"))


@pytest.fixture
def series(tmp_path, monkeypatch) -> runner.Series:
    "The smoke series, and no notebooks yet."
    return only_series(series_in(tmp_path, "smoke", []), tmp_path, monkeypatch)


@pytest.fixture
def official(tmp_path, monkeypatch) -> runner.Series:
    "The paper's series, and no notebooks yet."
    chosen = series_in(tmp_path, "paper", ["Im001_1", "Im004_1"])
    assert not chosen.official and chosen.figures == chosen.folder / "figures"
    shutil.copy(index_of(), tmp_path / "data" / "index.csv")
    return only_series(
        runner.Series(chosen.settings, DataSet(chosen.data.root)), tmp_path, monkeypatch
    )


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    "Where temporary folders are made."
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def only_series(chosen: runner.Series, folder: Path, monkeypatch) -> runner.Series:
    (folder / "notebooks").mkdir()
    monkeypatch.setattr(runner, "PAPER_NOTEBOOKS", folder / "notebooks")
    monkeypatch.setattr(runner, "authors", lambda folder: [])
    monkeypatch.setattr(runner, "all_series", lambda profile: [chosen])
    return chosen


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    "Every file under a folder, with its bytes and the time of its last change."
    there = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in there
    }


def wait_for(condition, seconds: float = 120):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return value


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "in the last cell"])
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_of_a_failed_notebook_counts(series, scratch, capsys, fault, last):
    cell, reason = FAULTS[fault]
    write_notebook("01_broken", *((ANSWER, cell) if last else (cell, ANSWER)))
    old = {
        "figures/answer.txt": "old",
        "01_broken.ipynb": "{}",
        "figures/provenance/01_broken.json": '{"key": "old"}',
    }
    for name, text in old.items():
        (series.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (series.folder / name).write_text(text)
    before = files(series.folder)
    settings = dataclasses.replace(
        series.settings, reproduce=Reproduce(timeout=2 if fault == "a time-out" else 60)
    )
    series = dataclasses.replace(series, settings=settings)
    assert runner.run_series(series, ["01_broken"]) == ["01_broken"]
    after = files(series.folder)
    assert {name: after.get(name) for name in before} == before
    # The copy that shows where it failed is called so, and nothing else is new.
    new = {"figures/README.md", "figures/results.csv", "01_broken.failed.ipynb"}
    assert set(after) - set(before) == new
    assert not list(scratch.iterdir())
    said = capsys.readouterr().err
    assert re.search(f"01_broken FAILED: .*{re.escape(reason)}", said), said


def test_a_file_that_was_promised_and_not_written(series):
    write_notebook("01_short", ANSWER, writes=("answer.txt", "table.csv"))
    with pytest.raises(RunError, match=r"^01_short: it did not write table\.csv\."):
        runner.run_notebook(series, "01_short", PARAMETERS)
    assert set(files(series.folder)) == {"01_short.failed.ipynb"}


def test_a_failed_notebook_does_not_stop_the_others(series, capsys):
    write_notebook("01_broken", "raise ValueError('boom')")
    write_notebook("02_whole", ANSWER)
    assert runner.reproduce("smoke") == 1
    assert "1 failed: 01_broken" in capsys.readouterr().out
    assert (series.figures / "answer.txt").read_text() == "new"
    assert runner.is_done(series, "02_whole", PARAMETERS)
    assert not runner.is_done(series, "01_broken", PARAMETERS)
    write_notebook("01_broken", "pass", writes=())
    assert runner.reproduce("smoke") == 0
    assert "done already: 02_whole" in capsys.readouterr().out


def test_parameters_are_checked_before_a_notebook_runs(series):
    mark = series.folder.parent / "ran"
    run = f"Path({str(mark)!r}).touch()"
    mark.parent.mkdir(parents=True)
    write_notebook("01_tagged", run, writes=())
    with pytest.raises(SettingsError, match="no parameter 'profle'. Did you mean 'profile'"):
        runner.run_notebook(series, "01_tagged", {"profle": "smoke"})
    write_notebook("01_tagged", run, writes=(), tag="parametres")
    with pytest.raises(SettingsError, match="01_tagged has 0 cells tagged 'parameters'"):
        runner.run_notebook(series, "01_tagged", PARAMETERS)
    assert not mark.exists()
    assert not files(series.folder)


def test_names_of_notebooks_and_profiles():
    with pytest.raises(SettingsError, match="no paper notebook '02_rcb'. Did you mean '02_rbc'"):
        runner.reproduce("smoke", ["02_rcb"])
    with pytest.raises(SettingsError, match="no profile 'smok'. Did you mean 'smoke'"):
        runner.reproduce("smok", ["02_rbc"])


def test_parameters_reach_the_notebook(series):
    write_notebook("01_told", "(out / 'answer.txt').write_text(f'{profile} {seed}')")
    runner.run_notebook(series, "01_told", {"profile": "smoke", "seed": 7})
    assert (series.figures / "answer.txt").read_text() == "smoke 7"


def test_what_is_done_is_not_done_again(series):
    write_notebook("01_whole", ANSWER)
    assert runner.reproduce("smoke", ["01_whole", "01_whole.ipynb"]) == 0
    before = files(series.folder)
    assert runner.reproduce("smoke") == 0
    assert files(series.folder) == before


def test_what_has_changed_is_done_again(series, tmp_path, monkeypatch):
    write_notebook("01_whole", ANSWER)
    assert runner.reproduce("smoke") == 0
    text = (PROJECT / "settings.ini").read_text()
    changed = re.sub(r"(\[count\.rbc\.ccl:bloodcount\][^[]*min_area = )50", r"\g<1>51", text)
    assert changed != text
    for name, content in (("same", text), ("changed", changed)):
        (tmp_path / f"{name}.ini").write_text(content)
        settings = load_settings("smoke", path=tmp_path / f"{name}.ini")
        settings = dataclasses.replace(settings, paths=series.settings.paths)
        other = dataclasses.replace(series, settings=settings)
        assert runner.is_done(other, "01_whole", PARAMETERS) == (name == "same")
    assert not runner.is_done(series, "01_whole", PARAMETERS | {"seed": 1})
    index = series.data.root / "index.csv"
    index.write_text(index.read_text().replace(",1712,", ",1713,"))
    other = dataclasses.replace(series, data=DataSet(series.data.root))
    assert not runner.is_done(other, "01_whole", PARAMETERS)
    assert runner.is_done(series, "01_whole", PARAMETERS)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "PROJECT", tmp_path)
        assert not runner.is_done(series, "01_whole", PARAMETERS), "the paper's numbers are others"
    write_notebook("01_whole", ANSWER, "pass")
    assert not runner.is_done(series, "01_whole", PARAMETERS)


@pytest.mark.parametrize(
    "name", ["figures/answer.txt", "figures/provenance/01_whole.json", "01_whole.ipynb"]
)
def test_what_was_tampered_with_or_removed_is_made_anew(series, name):
    write_notebook("01_whole", ANSWER)
    assert runner.reproduce("smoke") == 0
    if name == "figures/answer.txt":
        (series.folder / name).write_text("tampered")
    else:
        (series.folder / name).unlink()
    assert runner.reproduce("smoke") == 0
    assert (series.figures / "answer.txt").read_text() == "new"
    assert (series.folder / name).exists()
    assert runner.is_done(series, "01_whole", PARAMETERS)


def test_figures_may_lie_on_another_disk(series, tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    with contextlib.ExitStack() as stack:
        far = other / f"bloodcount-{os.getpid()}"
        far.mkdir()
        stack.callback(shutil.rmtree, far)
        series.folder.mkdir(parents=True)
        series.figures.symlink_to(far)
        write_notebook("01_whole", ANSWER)
        assert runner.reproduce("smoke") == 0
        assert (far / "answer.txt").read_text() == "new"


def test_results_hold_what_is_there_whoever_made_it(official):
    "In a fresh clone the tables are there, and the runs that made them are not."
    for name in ("01_mine", "02_theirs"):
        frame = pd.DataFrame(
            [["T", "m", "w", "rbc", "", "n", name, 1, "", "paper"]], columns=RESULTS
        )
        text = frame.to_csv(index=False)
        write = f"(out / 'numbers' / 'results_{name}.csv').write_text({text!r})"
        make = "(out / 'numbers').mkdir()"
        write_notebook(name, make, write, writes=[f"numbers/results_{name}.csv"])
    (official.figures / "numbers").mkdir(parents=True)
    (official.figures / "numbers" / "results_02_theirs.csv").write_text(text)
    assert runner.reproduce("paper", ["01_mine"]) == 0
    assert list(pd.read_csv(official.figures / "results.csv")["images"]) == ["01_mine", "02_theirs"]


def test_publishing_puts_outputs_into_the_notebooks(official):
    assert official.official and official.figures == official.settings.paths.figures
    write_notebook("01_whole", ANSWER, "seed + 41", "seed + 43")
    path = runner.PAPER_NOTEBOOKS / "01_whole.ipynb"
    source = nbformat.read(path, as_version=4)
    source.cells[-1].metadata.tags = ["licensed"]
    nbformat.write(source, path)
    assert runner.reproduce("paper", publish=True) == 0
    published = nbformat.read(path, as_version=4)
    assert [cell.source for cell in published.cells] == [cell.source for cell in source.cells]
    assert [cell.metadata for cell in published.cells] == [cell.metadata for cell in source.cells]
    assert published.cells[-2].outputs[0]["data"]["text/plain"] == "41"
    assert published.cells[-1].outputs == []
    assert runner.is_done(official, "01_whole", {"profile": "paper"})


def test_only_the_official_series_is_published(series):
    write_notebook("01_whole", ANSWER)
    before = files(runner.PAPER_NOTEBOOKS)
    with pytest.raises(InputError, match="nbs/paper is unchanged"):
        runner.reproduce("smoke", publish=True)
    assert files(runner.PAPER_NOTEBOOKS) == before
    assert not series.folder.exists(), "it ran before it was refused"
    with pytest.raises(InputError, match="nbs/paper is unchanged"):
        runner.publish_notebooks(series, ["01_whole"])


def test_a_failed_run_is_not_published(official):
    write_notebook("01_broken", ANSWER, "raise ValueError('boom')")
    before = files(runner.PAPER_NOTEBOOKS)
    assert runner.reproduce("paper", publish=True) == 1
    assert files(runner.PAPER_NOTEBOOKS) == before


def make_home(folder: Path, authors_folder: Path, notebooks: Path | None = None) -> Path:
    "A project of its own, with the modules, settings and notebooks of this one."
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "bloodcount", folder / "bloodcount", ignore=ignored)
    shutil.copy(PROJECT / "settings.ini", folder)
    shutil.copytree(notebooks or PROJECT / "nbs" / "paper", folder / "nbs" / "paper")
    (folder / "data").mkdir()
    (folder / "data" / "authors").symlink_to(authors_folder)
    for name in ("paper", "trained"):
        shutil.copytree(PROJECT / "data" / name, folder / "data" / name)
    (folder / "scratch").mkdir()
    for name in ("all-idb1.csv", "all-idb1-index.csv"):
        shutil.copy(PROJECT / "data" / name, folder / "data")
    return folder


def start(home: Path, *arguments: str) -> subprocess.Popen:
    "`bloodcount reproduce --profile smoke`, as that project's own command; it also writes home/log."
    env = {k: v for k, v in os.environ.items() if not k.startswith("BLOODCOUNT_")}
    with open(home / "log", "w") as log:
        return subprocess.Popen(
            [*COMMAND, "--profile", "smoke", *arguments],
            cwd=home,
            env=env | {"PYTHONPATH": str(home), "TMPDIR": str(home / "scratch")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(home: Path, *arguments: str) -> str:
    "The whole run's output."
    code = start(home, *arguments).wait(timeout=900)
    log = (home / "log").read_text()
    assert code == 0, log
    return log


@pytest.mark.parametrize(
    "stop, code",
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_the_runner_is_stopped(series, tmp_path, authors_folder, stop, code):
    write_notebook("01_whole", ANSWER, writes=())
    slow = "Path('kernel').write_text(str(os.getpid())); time.sleep(600)"
    write_notebook("02_slow", ANSWER, slow)
    write_notebook("03_never", ANSWER, writes=())
    home = make_home(tmp_path / "home", authors_folder, runner.PAPER_NOTEBOOKS)
    process = start(home)
    kernel = int(wait_for(lambda: "".join(p.read_text() for p in home.glob("kernel"))))
    process.send_signal(stop)
    assert process.wait(timeout=30) == code
    wait_for(lambda: not alive(kernel), seconds=15)
    assert set(files(home / "runs" / "smoke-synthetic")) == {
        "01_whole.ipynb",
        "figures/provenance/01_whole.json",
    }
    log = (home / "log").read_text()
    assert "03_never ..." not in log
    if stop == signal.SIGINT:
        assert "Traceback" not in log
        assert not list((home / "scratch").iterdir())
        assert log.endswith("Interrupted.\n")


@pytest.fixture(scope="session")
def home(tmp_path_factory, authors_folder) -> Path:
    "A project where the smoke profile has run."
    folder = make_home(tmp_path_factory.mktemp("paper") / "whole", authors_folder)
    finish(folder)
    return folder


@pytest.fixture(scope="session")
def resumed(tmp_path_factory, authors_folder) -> tuple[Path, dict]:
    "A project where it was killed when the first images were scored, and what it had kept by then."
    folder = make_home(tmp_path_factory.mktemp("paper") / "resumed", authors_folder)
    only = [word for name in NOTEBOOKS[:4] for word in ("--only", name)]
    process = start(folder, *only)
    wait_for(lambda: list((folder / "runs" / "scores").glob("rbc/[!.]*.json")))
    process.kill()
    process.wait()
    there = [path for path in (folder / "runs").rglob("[!.]*") if path.is_file()]
    kept = {path.relative_to(folder / "runs").as_posix(): path.stat().st_mtime_ns for path in there}
    assert list((folder / "scratch").iterdir())
    finish(folder, *only)
    return folder, kept


def provenance(home: Path, name: str) -> dict:
    return json.loads(
        (home / "runs" / "smoke-synthetic" / "figures" / "provenance" / f"{name}.json").read_text()
    )


def tables(home: Path) -> dict[str, bytes]:
    figures = home / "runs" / "smoke-synthetic" / "figures"
    text = {name: content for name, (content, _) in files(figures).items()}
    return {name: content for name, content in text.items() if name.endswith((".csv", ".md"))}


def test_tables_are_the_same_byte_for_byte(home, resumed):
    "In another folder, and after the runner was killed and started again."
    mine, theirs = tables(home), tables(resumed[0])
    of_all = {"README.md", "results.csv"}
    assert len(set(theirs) - of_all) > 20
    assert [name for name in set(theirs) - of_all if mine[name] != theirs[name]] == []


def test_a_killed_run_goes_on_where_it_was(resumed):
    folder, kept = resumed
    assert sum(name.startswith("scores/rbc/") for name in kept) >= 1
    after = files(folder / "runs")
    assert {name: after[name][1] for name in kept} == kept, "something was made again"
    assert "done already: 01_dataset" in (folder / "log").read_text()


def test_a_second_run_does_nothing(home):
    before = files(home / "runs")
    log = finish(home)
    assert files(home / "runs") == before
    assert f"done already: {', '.join(NOTEBOOKS)}\n" in log and "to do" not in log


def test_smoke_outputs_lie_under_runs_only(home):
    before = {"bloodcount", "settings.ini", "nbs", "data", "scratch"}
    assert {path.name for path in home.iterdir()} == before | {"runs", "log"}
    assert not list((home / "scratch").iterdir())
    for path in PROJECT.glob("nbs/paper/*.ipynb"):
        assert (home / "nbs" / "paper" / path.name).read_bytes() == path.read_bytes()
    page = (home / "runs" / "smoke-synthetic" / "figures" / "README.md").read_text()
    assert "these are no results" in page and "Not made yet" not in page


def test_provenance_says_what_the_outputs_come_from(home):
    runs = home / "runs" / "smoke-synthetic"
    data = DataSet(next((home / "runs").glob("sample-*")))
    for name in NOTEBOOKS:
        known = provenance(home, name)
        assert known["parameters"] == PARAMETERS
        assert known["data"] == {"title": data.title, "fingerprint": data.fingerprint}
        assert known["weights"]["authors"]["plt"] == packaged()["weights/plt.h5"]
        own = sha256(PROJECT / "bloodcount" / "weights" / "wbc" / "weights.npz")
        assert known["weights"]["bloodcount"]["wbc"] == own
        assert known["weights"]["segnet"] == {}, "none were copied into this project"
        assert known["commit"] == "unknown" and known["seconds"] > 0
        assert {"numpy", "keras", "tensorflow", "papermill"} <= set(known["versions"])
        source = nbformat.read(PROJECT / "nbs" / "paper" / f"{name}.ipynb", as_version=4)
        assert list(known["outputs"]) == runner.declared_outputs(source)
        for output, checksum in known["outputs"].items():
            assert sha256(runs / "figures" / output) == checksum
        assert (
            runner.verdict(nbformat.read(runs / f"{name}.ipynb", as_version=4), runs / "figures")
            == ""
        )


def test_results_are_long_form(home):
    figures = home / "runs" / "smoke-synthetic" / "figures"
    results = pd.read_csv(figures / "results.csv", keep_default_na=False)
    assert list(results) == RESULTS
    assert (
        ",".join(RESULTS) == "table,model,weights,cell,method,quantity,images,value,paper,profile"
    )
    for column in ("value", "paper"):
        values = results[column].astype(str)
        assert all(value == "" or math.isfinite(float(value)) for value in values)
    assert set(results["profile"]) == {"smoke"} and set(results["paper"]) == {""}
    assert set(results["model"]) <= {"do_unet", "segnet", "truth"}
    assert set(results["weights"]) <= {"authors", "bloodcount", "none"}
    assert set(results["cell"]) == {"rbc", "wbc", "plt", "rbc_mask", "rbc_edge"}
    assert set(results["method"]) == {"cht", "ccl", "watershed", "edt", ""}
    assert not results.duplicated(RESULTS[:7]).any()


def test_progress_is_shown(resumed):
    log = (resumed[0] / "log").read_text()
    assert all(f"{cell}, do_unet authors: 100%" in log for cell in protocol.TRUTHS)
    assert re.search(r"to do: 02_rbc, .*; the first time about \d+ minutes on 2 cores", log)


def test_artefacts_are_what_the_notebooks_declare():
    declared = {
        name: runner.declared_outputs(nbformat.read(path, as_version=4))
        for name in runner.notebooks()
        for path in [runner.PAPER_NOTEBOOKS / f"{name}.ipynb"]
    }
    listed = {name: set() for name in declared}
    for artefact, (notebook, _) in runner.ARTEFACTS.items():
        drawn = [
            f"{artefact}{s}" for s in (".png", ".svg") if f"{artefact}{s}" in declared[notebook]
        ]
        assert len(drawn) == artefact.startswith("figure_"), artefact
        listed[notebook] |= {*drawn} or {artefact + s for s in (".csv", ".md", ".tex")}
    beside = ("numbers/", "licensed/")
    for name, outputs in declared.items():
        assert len(outputs) == len(set(outputs))
        assert {output for output in outputs if not output.startswith(beside)} == listed[name]
    everything = sum(declared.values(), [])
    assert len(everything) == len(set(everything)), "two notebooks write one file"
    assert list(dict.fromkeys(nb for nb, _ in runner.ARTEFACTS.values())) == runner.notebooks()
    assert all(artefact in runner.list_notebooks() for artefact in runner.ARTEFACTS)


def test_commit_of_this_checkout():
    if not (PROJECT / ".git").exists():
        pytest.skip("not a git checkout")
    assert re.fullmatch(r"[0-9a-f]{12}\+?", runner.commit())


@pytest.fixture
def real_index(tmp_path) -> protocol.Run:
    "A run of the paper's profile on the data set's index alone."
    shutil.copy(PROJECT / "data" / "all-idb1-index.csv", tmp_path / "index.csv")
    return protocol.Run(load_settings("paper"), DataSet(tmp_path), "authors", 0, tmp_path)


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
    values = results.set_index("method")["value"].round(2).to_dict()
    assert values == {"cht": 94.03, "ccl": 76.49, "edt": 84.64}
    assert (scored["paper"] - scored["value"]).abs().max() < 0.011


@pytest.fixture
def sample_run(tmp_path) -> protocol.Run:
    "A run on two synthetic smears."
    settings = load_settings("smoke")
    sample = dataclasses.replace(settings.sample, smears=2, height=200, width=240)
    paths = dataclasses.replace(settings.paths, runs=tmp_path / "runs")
    settings = dataclasses.replace(settings, sample=sample, paths=paths)
    return protocol.Run(settings, protocol.sample_data(settings), "authors", 0, tmp_path)


def scored(run: protocol.Run, monkeypatch) -> list[str]:
    "The images that are scored, and not taken from what was kept, in the order of the index."
    fresh = []
    score = protocol.score_smear
    with monkeypatch.context() as patch:
        patch.setattr(
            protocol,
            "score_smear",
            lambda smear, *rest: fresh.append(smear.name) or score(smear, *rest),
        )
        kept = protocol.score_truth(run, "rbc")
    assert list(kept.counts["image"].unique()) == list(run.data.index.index)
    assert len(fresh) == len(set(fresh))
    return [name for name in run.data.index.index if name in fresh]  # Two are scored at a time


def test_scores_are_kept_until_what_they_depend_on_changes(sample_run, monkeypatch):
    everything = list(sample_run.data.index.index)
    assert scored(sample_run, monkeypatch) == everything
    assert scored(sample_run, monkeypatch) == []
    count = sample_run.settings.count
    ccl = dataclasses.replace(count["rbc"]["ccl"], min_area=300)
    changed = count | {"rbc": count["rbc"] | {"ccl": ccl}}
    settings = dataclasses.replace(sample_run.settings, count=changed)
    assert scored(dataclasses.replace(sample_run, settings=settings), monkeypatch) == everything
    assert scored(sample_run, monkeypatch) == []


def test_scores_without_annotations_are_not_taken_for_those_with(sample_run, authors_folder):
    "Im037_0 comes without them in the authors' package, and with them in the data set."
    bare = sample_run.folder / "bare"
    shutil.copytree(sample_run.data.root / "images", bare / "images")
    index = pd.read_csv(sample_run.data.root / "index.csv")
    index[["rbc_mask", "rbc_edge", "rbc_polygons", "wbc_mask", "plt_mask"]] = 0
    index.to_csv(bare / "index.csv", index=False)
    without = protocol.score_network(dataclasses.replace(sample_run, data=DataSet(bare)), "plt")
    assert len(without.pixels) == 0
    scores = protocol.score_network(sample_run, "plt")
    assert scores.counts.equals(without.counts)
    assert list(scores.pixels["image"].unique()) == list(sample_run.data.index.index)

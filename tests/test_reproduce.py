"The paper's notebooks, run by the runner: its logic without kernels, one real run of the smoke profile."

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jobs
import nbformat
import pandas as pd
import pytest
from jobs import ANSWER, alive, files, wait_for, without_kernel

from bloodcount.cache import commit
from bloodcount.data import DataSet
from bloodcount.errors import InputError, SettingsError
from bloodcount.fetch import index_of, packaged
from bloodcount.files import sha256
from bloodcount.settings import PROJECT, Paths, load_settings
from bloodcount.studies import page, protocol, reproduce, runner
from bloodcount.studies.reproduce import Reproduction, notebook_job
from bloodcount.studies.results import RESULTS
from bloodcount.studies.runner import declared_outputs, is_done
from bloodcount.studies.systems import SYSTEMS
from bloodcount.studies.tables import write_table

NOTEBOOKS = runner.notebooks()
COMMAND = [sys.executable, "-c", "from bloodcount.cli import main; main()", "reproduce"]


def write_notebook(name: str, *cells: str, **options) -> Path:
    return jobs.write_notebook(runner.PAPER_NOTEBOOKS / f"{name}.ipynb", *cells, **options)


def reproduction_in(folder: Path, profile: str, images: list[str]) -> Reproduction:
    "A profile whose paths lie in a folder, on an index of images that are not there."
    paths = Paths(**{field.name: folder / field.name for field in dataclasses.fields(Paths)})
    settings = dataclasses.replace(load_settings(profile), paths=paths)
    index = pd.read_csv(index_of()).set_index("image")
    index = index.loc[images] if images else index.iloc[:1].rename({"Im001_1": "Syn001_1"})
    (folder / "data").mkdir()
    index.to_csv(folder / "data" / "index.csv")
    return Reproduction(settings, DataSet(folder / "data"))


@pytest.fixture
def no_notebooks(tmp_path, monkeypatch):
    "No kernels, and an empty folder in the place of nbs/paper."
    (tmp_path / "notebooks").mkdir()
    for module in (runner, page, reproduce):
        monkeypatch.setattr(module, "PAPER_NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(runner, "_in_process", without_kernel)
    monkeypatch.setattr(reproduce, "authors", lambda folder: [])


@pytest.fixture
def smoke(tmp_path, no_notebooks, monkeypatch) -> Reproduction:
    "The smoke profile, and no notebooks yet."
    chosen = reproduction_in(tmp_path, "smoke", [])
    monkeypatch.setattr(reproduce, "reproductions", lambda profile: [chosen])
    return chosen


@pytest.fixture
def official(tmp_path, no_notebooks, monkeypatch) -> Reproduction:
    "The paper's profile on all images, and no notebooks yet."
    chosen = reproduction_in(tmp_path, "paper", ["Im001_1", "Im004_1"])
    assert not chosen.official and chosen.figures == chosen.folder / "figures"
    shutil.copy(index_of(), tmp_path / "data" / "index.csv")
    chosen = dataclasses.replace(chosen, data=DataSet(chosen.data.root))
    monkeypatch.setattr(reproduce, "reproductions", lambda profile: [chosen])
    return chosen


def done(chosen: Reproduction, name: str) -> bool:
    return is_done(notebook_job(chosen, name))


# Without kernels


def test_a_failed_notebook_does_not_stop_the_others(smoke, capsys):
    write_notebook("01_broken", "raise ValueError('boom')")
    write_notebook("02_whole", ANSWER)
    assert reproduce.reproduce("smoke") == 1
    said = capsys.readouterr()
    assert "1 failed: 01_broken" in said.out and "to do: 01_broken, 02_whole" in said.out
    assert "01_broken FAILED: ValueError: boom (as far as it ran: " in said.err
    assert (smoke.figures / "answer.txt").read_text() == "new"
    assert done(smoke, "02_whole") and not done(smoke, "01_broken")
    write_notebook("01_broken", "pass", writes=())
    assert reproduce.reproduce("smoke") == 0
    assert "done already: 02_whole" in capsys.readouterr().out


def test_a_notebook_without_its_parameters_runs_nothing(smoke):
    write_notebook("01_whole", ANSWER)
    write_notebook("02_tagged", ANSWER, tag="parametres")
    with pytest.raises(SettingsError, match="02_tagged has 0 cells tagged 'parameters'"):
        reproduce.reproduce("smoke")
    write_notebook("02_tagged", ANSWER, parameters='profle = "paper"')
    with pytest.raises(SettingsError, match="02_tagged has no parameter 'profile'."):
        reproduce.reproduce("smoke")
    assert not smoke.folder.exists()


def test_names_of_notebooks_and_profiles():
    with pytest.raises(SettingsError, match="no paper notebook '02_rcb'. Did you mean '02_rbc'"):
        reproduce.reproduce("smoke", ["02_rcb"])
    with pytest.raises(SettingsError, match="no profile 'smok'. Did you mean 'smoke'"):
        reproduce.reproduce("smok", ["02_rbc"])


def test_what_is_done_is_not_done_again(smoke):
    write_notebook("01_whole", "(out / 'answer.txt').write_text(profile)")
    assert reproduce.reproduce("smoke", ["01_whole", "01_whole.ipynb"]) == 0
    assert (smoke.figures / "answer.txt").read_text() == "smoke"
    before = files(smoke.folder)
    assert reproduce.reproduce("smoke") == 0
    assert files(smoke.folder) == before


def test_what_has_changed_is_done_again(smoke, tmp_path, monkeypatch):
    write_notebook("01_whole", ANSWER)
    assert reproduce.reproduce("smoke") == 0 and done(smoke, "01_whole")
    settings = smoke.settings
    evaluate = dataclasses.replace(settings.evaluate, bootstrap=settings.evaluate.bootstrap + 1)
    others = {
        "evaluate": dataclasses.replace(settings, evaluate=evaluate),
        "recipe": dataclasses.replace(settings, recipe={}),  # Of trainings, which this is not
    }
    for name, other in others.items():
        same = done(dataclasses.replace(smoke, settings=other), "01_whole")
        assert same == (name == "recipe"), name
    index = smoke.data.root / "index.csv"
    index.write_text(index.read_text().replace(",1712,", ",1713,"))
    other = dataclasses.replace(smoke, data=DataSet(smoke.data.root))
    assert not done(other, "01_whole") and done(smoke, "01_whole")
    for name in ("PROJECT", *reproduce.HOMES):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            if name == "PROJECT":
                patch.setattr(reproduce, name, tmp_path / "elsewhere")
            else:
                patch.setitem(reproduce.HOMES, name, tmp_path / "elsewhere")
            assert not done(smoke, "01_whole"), f"{name} holds other numbers"
    assert done(smoke, "01_whole")
    write_notebook("01_whole", ANSWER, "pass")
    assert not done(smoke, "01_whole")


def test_what_was_tampered_with_is_made_anew(smoke):
    write_notebook("01_whole", ANSWER)
    assert reproduce.reproduce("smoke") == 0
    (smoke.figures / "answer.txt").write_text("tampered")
    assert reproduce.reproduce("smoke") == 0
    assert (smoke.figures / "answer.txt").read_text() == "new" and done(smoke, "01_whole")


def test_results_hold_what_is_there_whoever_made_it(official):
    "In a fresh clone the tables are there, and the runs that made them are not."
    for name in ("01_mine", "02_theirs"):
        frame = pd.DataFrame(
            {
                column: [1.0 if column in ("level", "n", "value", "paper") else name]
                for column in RESULTS
            }
        )
        text = frame.to_csv(index=False)
        write = f"(out / 'numbers' / 'results_{name}.csv').write_text({text!r})"
        make = "(out / 'numbers').mkdir()"
        write_notebook(name, make, write, writes=[f"numbers/results_{name}.csv"])
    (official.figures / "numbers").mkdir(parents=True)
    (official.figures / "numbers" / "results_02_theirs.csv").write_text(text)
    assert reproduce.reproduce("paper", ["01_mine"]) == 0
    assert list(pd.read_csv(official.figures / "results.csv")["images"]) == ["01_mine", "02_theirs"]


def test_publishing_puts_outputs_into_the_notebooks(official, monkeypatch):
    told = []  # In the place of README.md, which is the project's own
    monkeypatch.setattr(reproduce, "write_headline", told.append)
    assert official.official and official.figures == official.settings.paths.figures
    path = write_notebook("01_whole", ANSWER, "seed + 41", "seed + 43")
    source = nbformat.read(path, as_version=4)
    source.cells[-1].metadata.tags = ["licensed"]
    nbformat.write(source, path)
    assert reproduce.reproduce("paper", publish=True) == 0
    assert len(told) == 1
    published = nbformat.read(path, as_version=4)
    assert [cell.source for cell in published.cells] == [cell.source for cell in source.cells]
    assert [cell.metadata for cell in published.cells] == [cell.metadata for cell in source.cells]
    assert published.cells[-2].outputs[0]["data"]["text/plain"] == "41"
    assert published.cells[-1].outputs == []
    assert done(official, "01_whole")


def test_only_the_official_run_is_published(smoke):
    write_notebook("01_whole", ANSWER)
    before = files(runner.PAPER_NOTEBOOKS)
    with pytest.raises(InputError, match="nbs/paper is unchanged"):
        reproduce.reproduce("smoke", publish=True)
    assert files(runner.PAPER_NOTEBOOKS) == before
    assert not smoke.folder.exists(), "it ran before it was refused"
    with pytest.raises(InputError, match="nbs/paper is unchanged"):
        reproduce.publish_notebooks(smoke, ["01_whole"])


def test_a_failed_run_is_not_published(official):
    write_notebook("01_broken", ANSWER, "raise ValueError('boom')")
    before = files(runner.PAPER_NOTEBOOKS)
    assert reproduce.reproduce("paper", publish=True) == 1
    assert files(runner.PAPER_NOTEBOOKS) == before


def test_a_page_of_what_is_there(official, tmp_path):
    with pytest.raises(InputError, match="holds no figure and no table; run `bloodcount rep"):
        reproduce.report("paper", tmp_path / "page.html")
    official.figures.mkdir()
    (official.figures / "table_1.csv").write_text("cell,images\nrbc,13\n")
    reproduce.report("paper", tmp_path / "page.html")
    assert "Table I. Images and tiles" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("rows", [page.FOLDED, page.FOLDED + 1])
def test_a_long_table_is_folded_and_keeps_its_footnotes(official, rows):
    official.figures.mkdir()
    table = pd.DataFrame({"by": ["Watershed‡"] * rows, "test": ["96.11"] * rows})
    write_table(official.figures / "table_1", table, "A caption.", "profile paper, data 0123")
    text = page.results_page(official.figures, "Of some data.")
    assert (f"<summary>The table, {rows} rows</summary>" in text) == (rows > page.FOLDED)
    assert text.count("| Watershed‡") == rows and text.count("\n‡ the rule `at_least_one`") == 1
    assert "data 0123" not in text and text.count("Of some data.") == 1


def test_the_page_sums_the_verdicts_and_shows_them_unfolded(official):
    official.figures.mkdir()
    verdicts = ["reproduced", "not"] * page.FOLDED + ["partly", ""]
    table = pd.DataFrame({"the paper says": "a count", "verdict": verdicts})
    write_table(official.figures / "table_claims", table, "A caption.", "profile paper")
    text = page.results_page(official.figures, "Of some data.")
    summed = f"Of {2 * page.FOLDED + 1} numbers that the paper prints, our networks reproduce {page.FOLDED}, 1 partly, and {page.FOLDED} not."
    assert summed in text and "<details>" not in text


def test_artefacts_are_what_the_notebooks_declare():
    declared = {
        name: declared_outputs(nbformat.read(path, as_version=4))
        for name in NOTEBOOKS
        for path in [runner.PAPER_NOTEBOOKS / f"{name}.ipynb"]
    }
    listed = {name: set() for name in declared}
    for artefact, (notebook, _) in page.ARTEFACTS.items():
        drawn = [f"{artefact}.png"] if f"{artefact}.png" in declared[notebook] else []
        assert len(drawn) == artefact.startswith("figure_"), artefact
        vector = {f"{artefact}.pdf"} & {*declared[notebook]}
        listed[notebook] |= {*drawn, *vector} or {artefact + s for s in (".csv", ".md", ".tex")}
    beside = ("numbers/", "licensed/")
    for name, outputs in declared.items():
        assert len(outputs) == len(set(outputs))
        assert {output for output in outputs if not output.startswith(beside)} == listed[name]
    everything = sum(declared.values(), [])
    assert len(everything) == len(set(everything)), "two notebooks write one file"
    assert {notebook for notebook, _ in page.ARTEFACTS.values()} == set(NOTEBOOKS)
    assert all(artefact in page.list_notebooks() for artefact in page.ARTEFACTS)


def test_commit_of_this_checkout():
    if not (PROJECT / ".git").exists():
        pytest.skip("not a git checkout")
    assert re.fullmatch(r"[0-9a-f]{12}\+?", commit())


# A project of its own, and its command


def make_home(folder: Path, authors_folder: Path, notebooks: Path | None = None) -> Path:
    "A project with the modules, settings and notebooks of this one."
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "bloodcount", folder / "bloodcount", ignore=ignored)
    shutil.copy(PROJECT / "settings.ini", folder)
    shutil.copytree(notebooks or PROJECT / "nbs" / "paper", folder / "nbs" / "paper")
    (folder / "data").mkdir()
    (folder / "data" / "authors").symlink_to(authors_folder)
    for name in ("paper", "trained", "segnet", "systems", "measured"):
        (folder / "data" / name).symlink_to(PROJECT / "data" / name)
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
    code = start(home, *arguments).wait(timeout=2400)
    log = (home / "log").read_text()
    assert code == 0, log
    return log


@pytest.mark.slow
@pytest.mark.parametrize("stop, code", [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_command_is_stopped(tmp_path, authors_folder, stop, code):
    "SIGKILL is in test_a_killed_run_goes_on_where_it_was."
    (tmp_path / "notebooks").mkdir()
    slow = "Path(f'kernel-{os.getpid()}').touch(); time.sleep(600)"
    for name in ("01_slow", "02_slow"):
        jobs.write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", ANSWER, slow)
    jobs.write_notebook(tmp_path / "notebooks" / "03_never.ipynb", ANSWER, writes=())
    home = make_home(tmp_path / "home", authors_folder, tmp_path / "notebooks")
    process = start(home)
    wait_for(lambda: len(list(home.glob("kernel-*"))) == 2)
    kernels = [int(path.name.partition("-")[2]) for path in home.glob("kernel-*")]
    process.send_signal(stop)
    assert process.wait(timeout=60) == code
    wait_for(lambda: not any(alive(kernel) for kernel in kernels), seconds=60)
    wait_for(lambda: not list((home / "scratch").glob("bloodcount-*")), seconds=60)
    assert not (home / "runs" / "smoke-synthetic").exists()
    log = (home / "log").read_text()
    assert "03_never done" not in log and "Traceback" not in log
    if stop == signal.SIGINT:
        assert log.endswith("Interrupted.\n")


# The smoke profile


@pytest.fixture(scope="module")
def home(tmp_path_factory, authors_folder) -> Path:
    "A project where the smoke profile has run; BLOODCOUNT_SMOKE names the `runs` of one that did."
    folder = make_home(tmp_path_factory.mktemp("reproduce") / "whole", authors_folder)
    if there := os.environ.get("BLOODCOUNT_SMOKE"):
        for path in [Path(there) / "smoke-synthetic", *Path(there).glob("sample-*")]:
            shutil.copytree(path, folder / "runs" / path.name)
    else:
        finish(folder)
    return folder


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, authors_folder) -> tuple[Path, dict]:
    "A project where it was killed when one notebook was done and images were scored; and what it had kept by then."
    folder = make_home(tmp_path_factory.mktemp("reproduce") / "resumed", authors_folder)
    only = [word for name in NOTEBOOKS[:2] for word in ("--only", name)]
    process = start(folder, *only)
    runs = folder / "runs"
    first = runs / "smoke-synthetic" / "figures" / "provenance" / f"{NOTEBOOKS[0]}.json"
    scored = runs / "cache" / "scores-rbc"
    wait_for(
        lambda: (first.exists() and list(scored.glob("[!.]*.json"))) or process.poll() is not None
    )
    process.kill()
    process.wait()
    wait_for(lambda: not list((folder / "scratch").glob("bloodcount-*")), seconds=60)
    there = [path for path in runs.rglob("[!.]*") if path.is_file()]
    kept = {path.relative_to(runs).as_posix(): path.stat().st_mtime_ns for path in there}
    finish(folder, *only)
    return folder, kept


def tables(home: Path) -> dict[str, bytes]:
    figures = home / "runs" / "smoke-synthetic" / "figures"
    text = {name: content for name, (content, _) in files(figures).items()}
    return {name: content for name, content in text.items() if name.endswith((".csv", ".md"))}


@pytest.mark.slow
def test_tables_are_the_same_byte_for_byte(home, resumed):
    "In another folder, and after the command was killed and started again."
    mine, theirs = tables(home), tables(resumed[0])
    summaries = {f"{name}{suffix}" for name in page.SUMMARIES for suffix in (".csv", ".md")}
    of_all = {"README.md", "results.csv", *summaries}
    assert len(set(theirs) - of_all) > 5
    assert [name for name in set(theirs) - of_all if mine[name] != theirs[name]] == []


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(resumed):
    folder, kept = resumed
    assert sum(name.startswith("cache/scores-rbc/") for name in kept) >= 1
    after = files(folder / "runs")
    assert {name: after[name][1] for name in kept} == kept, "something was made again"
    log = (folder / "log").read_text()
    assert f"done already: {NOTEBOOKS[0]}" in log
    assert re.search(r"to do: 02_rbc; the first time about \d+ minutes on 2 cores", log)
    assert "rbc, do_unet authors: 100%" in log, "progress is shown"


@pytest.mark.slow
def test_a_second_run_does_nothing(home):
    before = files(home / "runs")
    log = finish(home)
    assert files(home / "runs") == before
    assert f"done already: {', '.join(NOTEBOOKS)}\n" in log and "to do" not in log


@pytest.mark.slow
def test_smoke_outputs_lie_under_runs_only(home):
    before = {"bloodcount", "settings.ini", "nbs", "data", "scratch"}
    assert {path.name for path in home.iterdir()} <= before | {"runs", "log"}
    assert not list((home / "scratch").iterdir())
    for path in PROJECT.glob("nbs/paper/*.ipynb"):
        assert (home / "nbs" / "paper" / path.name).read_bytes() == path.read_bytes()
    text = (home / "runs" / "smoke-synthetic" / "figures" / "README.md").read_text()
    assert "these are no results" in text and "Not made yet" not in text


@pytest.mark.slow
def test_provenance_says_what_the_outputs_come_from(home):
    runs = home / "runs" / "smoke-synthetic"
    data = DataSet(next((home / "runs").glob("sample-*")))
    for name in NOTEBOOKS:
        known = json.loads((runs / "figures" / "provenance" / f"{name}.json").read_text())
        assert known["parameters"] == {"profile": "smoke"}
        assert known["data"] == {"title": data.title, "fingerprint": data.fingerprint}
        assert known["weights"]["authors"]["plt"] == packaged()["weights/plt.h5"]
        own = sha256(PROJECT / "bloodcount" / "weights" / "wbc" / "weights.npz")
        assert known["weights"]["bloodcount"]["wbc"] == own
        assert known["commit"] and known["seconds"] > 0
        assert {"numpy", "keras", "tensorflow", "papermill"} <= set(known["versions"])
        source = nbformat.read(PROJECT / "nbs" / "paper" / f"{name}.ipynb", as_version=4)
        assert list(known["outputs"]) == declared_outputs(source)
        for output, checksum in known["outputs"].items():
            assert sha256(runs / "figures" / output) == checksum
        executed = nbformat.read(runs / f"{name}.ipynb", as_version=4)
        assert runner.fault(executed, runs / "figures") == ""


@pytest.mark.slow
def test_results_are_long_form(home):
    figures = home / "runs" / "smoke-synthetic" / "figures"
    results = pd.read_csv(figures / "results.csv", keep_default_na=False)
    assert list(results) == RESULTS
    for column in ("level", "n", "value", "paper"):
        values = results[column].astype(str)
        assert all(value == "" or math.isfinite(float(value)) for value in values)
    assert set(results["profile"]) == {"smoke"} and set(results["paper"]) == {""}
    assert set(results["model"]) <= {"do_unet", "segnet", "stardist", "truth", *SYSTEMS}
    assert set(results["weights"]) <= {"authors", "bloodcount", "elsewhere", "none"}
    assert set(results["cell"]) == set(protocol.TRUTHS)
    assert {"cht", "ccl", "watershed", "edt"} <= set(results["method"])
    keys = RESULTS[: RESULTS.index("n")]
    assert not results.duplicated(keys).any()

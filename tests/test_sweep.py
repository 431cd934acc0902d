"Sweeps: grids, points that fail, workers and sweeps that are killed, on this machine and on Dask."

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jobs
import pandas as pd
import pytest
import yaml
from jobs import alive, wait_for, without_kernel

from bloodcount import cli
from bloodcount.errors import InputError, SettingsError
from bloodcount.studies import runner, sweep
from bloodcount.studies.runner import is_done, run

COMMAND = [sys.executable, "-c", "from bloodcount.cli import main; main()", "sweep"]
# What a point does after it has said so in the ledger, by its parameter `how`.
DEEDS = """
if how == "raise":
    raise ValueError("boom")
while how == "waits" and not (here / "gate").exists():
    time.sleep(0.1)
None"""
WRITE = """
(out / "numbers").mkdir()
(out / "numbers" / "results_x.csv").write_text(f"how,value\\nnumber,{seed / 8}\\n")
(out / "answer.txt").write_text(f"{seed} {how}")"""


def write_notebook(path: Path, here: Path, *cells: str, tag: str = "parameters") -> Path:
    begin = f"here = Path({str(here)!r})\nledger = open(here / 'ledger', 'a')"
    begin += "\nprint(seed, os.getpid(), file=ledger, flush=True)"
    return jobs.write_notebook(
        path, begin, *(cells or (DEEDS, WRITE)), parameters='seed = 0\nhow = "well"',
        writes=("numbers/results_x.csv", "answer.txt"), tag=tag,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_real_data(monkeypatch):
    "All files of the data set are part of a point's key; here none are."
    monkeypatch.delenv("BLOODCOUNT_DATA", raising=False)


@pytest.fixture
def book(tmp_path) -> Path:
    return write_notebook(tmp_path / "book.ipynb", tmp_path)


def write_grid(folder: Path, grid) -> Path:
    path = folder / "grid.yaml"
    path.write_text(grid if isinstance(grid, str) else yaml.safe_dump(grid, sort_keys=False))
    return path


def ledger(folder: Path) -> dict[int, list[int]]:
    "The processes of the kernels that ran each seed."
    ran: dict[int, list[int]] = {}
    path = folder / "ledger"
    for line in path.read_text().splitlines() if path.exists() else ():
        seed, process = map(int, line.split())
        ran.setdefault(seed, []).append(process)
    return ran


# The grid


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "not a grid"),
        ("seed", "not a grid"),
        ("3", "not a grid"),
        ("[]", "not a grid"),
        ("seed: 3", "seed needs a list of values, as seed: [1, 2]."),
        ("seed: []", "seed needs a list of values"),
        ("seed: {a: 1}", "seed needs a list of values"),
        ("- seed: 1\n- 2", "point 2 is not a mapping"),
        ("1: [2, 3]", "point 1 is not a mapping"),
        ("seed: [1, 2, 1]", 'points 1 and 3 are the same: {"seed": 1}.'),
        ("- {seed: 1, how: a}\n- {how: a, seed: 1}", "points 1 and 2 are the same"),
        ("seed: [1]\nseed: [2]", "not YAML (line 2: seed stands twice)."),
        ("seed: [1", "not YAML (line 1: "),
        ("seed: [2024-01-31]", "put quotes around a date."),
        ("seed: [2024-01-41]", "not YAML (day is out of range for month)."),
        ("seed: &a [1, *a]", "point 2 has a value that is no text"),
        ("seed: [!!python/name:os.system '']", "not YAML (line 1: "),
        ("seed: [\x00]", "not YAML ("),
    ],
)
def test_a_bad_grid_is_one_sentence(tmp_path, text, sentence):
    path = write_grid(tmp_path, text)
    with pytest.raises(InputError) as error:
        sweep.read_grid(path)
    assert str(error.value).startswith(f"{path}: ") and sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_grid_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="none.yaml: cannot be read"):
        sweep.read_grid(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        sweep.read_grid(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="not YAML"):
        sweep.read_grid(tmp_path / "binary.yaml")


def test_points(tmp_path):
    path = write_grid(tmp_path, "rate: [1e-4, -2E+3, 1]\nhow: [a, true, null]")
    points = sweep.read_grid(path)
    assert len(points) == 9 and points[0] == {"rate": 0.0001, "how": "a"}
    assert [point["rate"] for point in points[3::3]] == [-2000.0, 1]
    assert points[1]["how"] is True and points[2]["how"] is None
    listed = [{"seed": [1, 2]}, {}, {"seed": 1, "how": {"a": 1}}, {"seed": 1.0}, {"seed": True}]
    assert sweep.read_grid(write_grid(tmp_path, listed)) == listed


def test_names_and_keys(book, tmp_path, monkeypatch):
    "A folder's name is made from the parameters alone, a key from all that outputs depend on."
    few = sweep.plan(str(book), write_grid(tmp_path, {"seed": [0, 1]}), tmp_path)
    many = sweep.plan(str(book), write_grid(tmp_path, {"seed": [1, 2, 0]}), tmp_path)
    folders, keys = [p.outputs for p in many], [p.key for p in many]
    assert {p.outputs: p.key for p in few}.items() <= dict(zip(folders, keys)).items()
    assert len(set(folders)) == len(set(keys)) == 3
    for name in ("code_digest", "environment"):
        with monkeypatch.context() as patch:
            patch.setattr(sweep, name, lambda *_: {"versions": "other"})
            other = sweep.plan(str(book), tmp_path / "grid.yaml", tmp_path)
            assert [p.outputs for p in other] == folders
            assert not {p.key for p in other} & set(keys)
    write_notebook(book, tmp_path, "pass")
    changed = sweep.plan(str(book), tmp_path / "grid.yaml", tmp_path)
    assert not {p.key for p in changed} & set(keys)


@pytest.mark.parametrize("how", ["x" * 300, "\0", "a/" * 3000, "", 7, None, ["list"]])
def test_values_that_are_no_folder(book, tmp_path, how):
    (point,) = sweep.plan(str(book), write_grid(tmp_path, [{"how": how}]), tmp_path)
    assert point.parameters == {"how": how}


def test_a_trained_model_is_part_of_the_key(book, tmp_path):
    (tmp_path / "model").mkdir()
    grid = write_grid(tmp_path, {"how": [str(tmp_path / "model")]})
    keys = set()
    for card in (None, "{}", "[]"):
        if card:
            (tmp_path / "model" / "card.json").write_text(card)
        keys |= {point.key for point in sweep.plan(str(book), grid, tmp_path)}
    assert len(keys) == 3


@pytest.mark.parametrize(
    "notebook, error, sentence",
    [
        ("02_rcb", SettingsError, "paper notebook. Did you mean '02_rbc'?"),
        ("nbs/02_rbc.ipynb", SettingsError, "neither a file .ipynb nor a paper notebook."),
        ("text.ipynb", InputError, "text.ipynb: not a notebook ("),
        ("empty.ipynb", InputError, "empty.ipynb: not a notebook ("),
        ("folder.ipynb", InputError, "folder.ipynb: not a notebook ("),
        ("json.ipynb", InputError, "json.ipynb: not a notebook ("),
        ("untagged.ipynb", SettingsError, "untagged has 0 cells tagged 'parameters'"),
        ("book.ipynb", SettingsError, "book has no parameter 'sede'. Did you mean 'seed'?"),
    ],
)
def test_a_bad_notebook_or_name_runs_nothing(
    tmp_path, monkeypatch, capsys, book, notebook, error, sentence
):
    monkeypatch.chdir(tmp_path)
    Path("text.ipynb").write_text("no notebook\nat all")
    Path("empty.ipynb").touch()
    Path("folder.ipynb").mkdir()
    Path("json.ipynb").write_text('{"a": 1}')
    write_notebook(Path("untagged.ipynb"), tmp_path, tag="parametres")
    write_grid(tmp_path, "- seed: 1\n- sede: 2")
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", notebook, "grid.yaml", "-o", "out"])
    said = capsys.readouterr().err
    assert stop.value.code == error.exit_code == 2
    assert sentence in said and len(said.splitlines()) == 1
    assert not Path("out").exists() and not ledger(tmp_path)


def test_bad_usage(tmp_path, monkeypatch, capsys, book):
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path, {"seed": [1]})
    for arguments, code, sentence in (
        (["--workers", "0"], 2, "--workers"),
        (["--workers", "2", "--dask", "tcp://localhost:1"], 2, "leave one out"),
        (["--dask", "nonsense://here"], 2, "nonsense://here: no Dask scheduler answers there."),
        (["-o", "book.ipynb"], 1, "book.ipynb: results cannot be written there (not a folder)."),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["sweep", "book.ipynb", "grid.yaml", "-o", "out", *arguments])
        said = capsys.readouterr().err
        assert stop.value.code == code and sentence in said and "Traceback" not in said
    assert not ledger(tmp_path)


# Points that run


def test_a_sweep_and_its_second_run(book, tmp_path, monkeypatch, capsys):
    "Without kernels: one point of three fails, then the others are there and not run again."
    monkeypatch.setattr(runner, "_in_process", without_kernel)
    monkeypatch.chdir(tmp_path)
    grid = [{"seed": 0, "how": "well"}, {"seed": 1, "how": "raise"}, {"seed": 2, "how": "too"}]
    write_grid(tmp_path, grid)
    command = ["sweep", "book.ipynb", "grid.yaml", "-o", "out"]
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert said.err.endswith("1 of 3 points failed.\n") and "failed: ValueError: boom" in said.err
    assert "3 points, 0 are done" in said.out and "raise" in said.out

    summary = pd.read_csv("out/summary.csv", keep_default_na=False)
    assert list(summary) == ["seed", "how", "status", "seconds", "reason", "folder"]
    assert list(summary["status"]) == ["done", "failed", "done"]
    assert list(summary["how"]) == [point["how"] for point in grid]
    assert summary["reason"][1] == "ValueError: boom"
    assert Path("out/results.csv").read_text() == (
        "seed,parameter_how,how,value\n0,well,number,0.0\n2,too,number,0.25\n"
    )
    for point, folder in zip(grid, Path("out") / summary["folder"]):
        files = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
        assert yaml.safe_load((folder / "parameters.yaml").read_text()) == point
        if point["how"] == "raise":
            assert files == {"book.failed.ipynb", "parameters.yaml"}
            continue
        made = {"answer.txt", "numbers/results_x.csv"}
        assert files == made | {"book.ipynb", "parameters.yaml", "provenance.json"}
        assert (folder / "answer.txt").read_text() == f"{point['seed']} {point['how']}"

    before = {path: path.read_bytes() for path in Path("out").rglob("provenance.json")}
    write_grid(tmp_path, [*grid[:1], *grid[2:]])
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert not stop.value.code and "2 points, 2 are done" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in Path("out").rglob("provenance.json")} == before
    assert {seed: len(ran) for seed, ran in ledger(tmp_path).items()} == {0: 1, 1: 1, 2: 1}
    assert len(pd.read_csv("out/summary.csv")) == 2


@pytest.fixture
def finished(tmp_path, monkeypatch) -> runner.Job:
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_in_process", without_kernel)
        book = write_notebook(tmp_path / "finished.ipynb", tmp_path)
        grid = write_grid(tmp_path, {"seed": [5]})
        (point,) = sweep.plan(str(book), grid, tmp_path / "finished")
        assert run(point).fault == ""
    return point


def test_a_folder_that_the_workers_do_not_share(finished, tmp_path):
    place = tmp_path / "elsewhere"
    lost = dataclasses.replace(
        finished, outputs=place, provenance=place / "provenance.json", key="another"
    )
    summary = sweep.write_summary([finished, lost], {lost.key: runner.Outcome("", 1.0)}, tmp_path)
    assert list(summary["status"]) == ["done", "failed"]
    assert "the workers must share that folder" in summary["reason"][1]


def test_results_that_are_no_table(finished, tmp_path, capsys):
    folder = shutil.copytree(finished.outputs, tmp_path / "point")
    point = dataclasses.replace(finished, outputs=folder)
    (folder / "numbers" / "results_x.csv").write_text("")
    sweep.write_results([finished, point], tmp_path)
    assert len(pd.read_csv(tmp_path / "results.csv")) == 1
    assert "left out of results.csv" in capsys.readouterr().err
    sweep.write_results([], tmp_path)
    assert not (tmp_path / "results.csv").exists()


# With kernels


@pytest.mark.slow
@pytest.mark.parametrize("stop, code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_sweep_is_stopped(book, tmp_path, stop, code):
    "What is done is not done again, and nothing runs on."
    write_grid(tmp_path, [{"seed": 1}, {"seed": 2, "how": "waits"}])
    command = [*COMMAND, "book.ipynb", "grid.yaml", "-o", "out"]
    (tmp_path / "scratch").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        wait_for(lambda: 2 in ledger(tmp_path) or process.poll() is not None)
        process.send_signal(stop)
        assert process.wait(timeout=120) == code, (tmp_path / "log").read_text()
    finally:
        process.kill()
    wait_for(lambda: not alive(ledger(tmp_path)[2][0]), seconds=120)
    wait_for(lambda: not list((tmp_path / "scratch").glob("bloodcount-*")), seconds=120)
    (first,) = (tmp_path / "out").glob("*/provenance.json")
    before = first.read_bytes()
    if stop == signal.SIGINT:
        said = "Interrupted: 1 of 2 points are done; the same command goes on.\n"
        assert (tmp_path / "log").read_text().endswith(said)
        assert list(pd.read_csv(tmp_path / "out" / "summary.csv")["status"]) == ["done", "open"]
        return
    (tmp_path / "gate").touch()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "2 points, 1 are done" in done.stdout, done.stderr
    assert {seed: len(ran) for seed, ran in ledger(tmp_path).items()} == {1: 1, 2: 2}
    assert first.read_bytes() == before


@pytest.mark.slow
def test_two_sweeps_in_one_folder(book, tmp_path):
    write_grid(tmp_path, {"seed": [1]})
    command = [*COMMAND, "book.ipynb", "grid.yaml", "-o", "out"]
    both = [subprocess.Popen(command, cwd=tmp_path) for _ in range(2)]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    points = sweep.plan(str(book), tmp_path / "grid.yaml", (tmp_path / "out").absolute())
    assert all(map(is_done, points))
    assert not [path for path in (tmp_path / "out").rglob("*") if ".part" in path.name]


@pytest.mark.slow
def test_dask_loses_a_worker(book, tmp_path, monkeypatch):
    "A real cluster of two workers; one is killed while it runs a point."
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    grid = write_grid(tmp_path, {"seed": [1, 2, 3], "how": ["waits"]})
    script = tmp_path / "run.py"
    script.write_text(
        "import sys; from pathlib import Path; from bloodcount.studies.sweep import sweep\n"
        "sweep('book.ipynb', Path('grid.yaml'), Path('out'), dask=sys.argv[1])\n"
    )
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        local_directory=str(tmp_path / "dask"),
    ) as cluster:
        workers = [nanny.pid for nanny in cluster.workers.values()]
        process = subprocess.Popen([sys.executable, script, cluster.scheduler_address])
        wait_for(lambda: len(ledger(tmp_path)) == 2 or process.poll() is not None)
        first = ledger(tmp_path)
        assert len(first) == 2
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: any(not alive(ran[0]) for ran in first.values()))
        (tmp_path / "gate").touch()
        assert process.wait(timeout=600) == 0
        summary = pd.read_csv(tmp_path / "out" / "summary.csv")
        assert list(summary["status"]) == ["done"] * 3
        assert sorted(len(ran) for ran in ledger(tmp_path).values()) == [1, 1, 2]
    # What is done needs no cluster.
    again = sweep.sweep(str(book), grid, tmp_path / "out", dask="tcp://localhost:1")
    assert list(again["status"]) == ["done"] * 3


@pytest.mark.slow
def test_a_paper_notebook(tmp_path):
    grid = write_grid(tmp_path, {"profile": ["smoke"], "seed": [1]})
    summary = sweep.sweep("01_dataset", grid, tmp_path / "out")
    assert list(summary["status"]) == ["done"], list(summary["reason"])
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert list(results)[:3] == ["parameter_profile", "seed", "table"]
    assert set(results["seed"]) == {1} and set(results["profile"]) == {"smoke"}
    assert (tmp_path / "out" / summary["folder"][0] / "figure_1.png").exists()

"Sweeps: grids, points that fail, workers and sweeps that are killed, on this machine and on Dask."

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from bloodcount import cli
from bloodcount.errors import InputError, SettingsError
from bloodcount.studies import sweep

COMMAND = [sys.executable, "-c", "from bloodcount.cli import main; main()", "sweep"]
# What a point does after it has said so in the ledger, by its parameter `how`.
DEEDS = """
if how == "raise":
    raise ValueError("boom")
if how in ("worker dies", "kernel dies") and not (here / how).exists():
    (here / how).touch()
    os.kill(os.getppid() if how == "worker dies" else os.getpid(), signal.SIGKILL)
    time.sleep(60)
while how == "waits" and not (here / "gate").exists():
    time.sleep(0.1)
"""
WRITE = """
out = Path(os.environ["BLOODCOUNT_OUT"])
(out / "numbers").mkdir()
(out / "numbers" / "results_x.csv").write_text(f"how,value\\nnumber,{seed / 8}\\n")
(out / "answer.txt").write_text(f"{seed} {how}")
"""


def write_notebook(path: Path, here: Path, *cells: str, tag: str = "parameters") -> Path:
    begin = f"import os, signal, time; from pathlib import Path; here = Path({str(here)!r})"
    ledger = "with open(here / 'ledger', 'a') as file:\n    print(seed, os.getpid(), file=file)"
    title = "# A title\n- `numbers/results_x.csv`\n- `answer.txt`"
    parameters = nbformat.v4.new_code_cell('seed = 0\nhow = "well"', metadata={"tags": [tag]})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(title), parameters])
    sources = [f"{begin}\n{ledger}", *(cells or (DEEDS, WRITE))]
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(notebook, path)
    return path


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


def wait_for(condition, seconds: float = 900):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return value


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


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
    assert {p.name: p.key for p in few}.items() <= {p.name: p.key for p in many}.items()
    assert len({p.name for p in many}) == len({p.key for p in many}) == 3
    for module, name in ((sweep, "code_digest"), (sweep, "environment")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_: {"versions": "other"})
            other = sweep.plan(str(book), tmp_path / "grid.yaml", tmp_path)
            assert [p.name for p in other] == [p.name for p in many]
            assert not {p.key for p in other} & {p.key for p in many}
    write_notebook(book, tmp_path, "pass")
    changed = sweep.plan(str(book), tmp_path / "grid.yaml", tmp_path)
    assert not {p.key for p in changed} & {p.key for p in many}


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
    "One point fails, the process of one is killed and the kernel of another; then all again."
    monkeypatch.chdir(tmp_path)
    hows = ["well", "raise", "worker dies", "kernel dies"]
    grid = [{"seed": seed, "how": how} for seed, how in enumerate(hows)]
    write_grid(tmp_path, grid)
    command = ["sweep", "book.ipynb", "grid.yaml", "--workers", "2", "-o", "out"]
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert said.err.endswith("1 of 4 points failed.\n") and "failed: ValueError: boom" in said.err
    assert "4 points, 0 are done" in said.out and "kernel dies" in said.out
    assert {seed: len(processes) for seed, processes in ledger(tmp_path).items()} == {
        0: 1,
        1: 1,
        2: 2,
        3: 2,
    }

    summary = pd.read_csv("out/summary.csv", keep_default_na=False)
    assert list(summary) == ["seed", "how", "status", "seconds", "reason", "folder"]
    assert list(summary["status"]) == ["done", "failed", "done", "done"]
    assert list(summary["how"]) == hows and summary["reason"][1] == "ValueError: boom"
    assert Path("out/results.csv").read_text() == (
        "seed,parameter_how,how,value\n"
        "0,well,number,0.0\n2,worker dies,number,0.25\n3,kernel dies,number,0.375\n"
    )
    for point, folder in zip(grid, Path("out") / summary["folder"]):
        files = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
        assert yaml.safe_load((folder / "parameters.yaml").read_text()) == point
        if point["how"] == "raise":
            assert files == {"book.failed.ipynb", "parameters.yaml"}
            continue
        made = {"answer.txt", "book.ipynb", "numbers/results_x.csv"}
        assert files == made | {"parameters.yaml", "provenance.json"}
        assert (folder / "answer.txt").read_text() == f"{point['seed']} {point['how']}"
        provenance = json.loads((folder / "provenance.json").read_text())
        assert set(provenance["outputs"]) == made and provenance["parameters"] == point

    before = {path: path.read_bytes() for path in Path("out").rglob("provenance.json")}
    write_grid(tmp_path, [*grid[:1], *grid[2:]])
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert not stop.value.code and "3 points, 3 are done" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in Path("out").rglob("provenance.json")} == before
    assert sum(map(len, ledger(tmp_path).values())) == 6
    assert len(pd.read_csv("out/summary.csv")) == 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> sweep.Point:
    folder = tmp_path_factory.mktemp("finished")
    book = write_notebook(folder / "book.ipynb", folder)
    (point,) = sweep.plan(str(book), write_grid(folder, {"seed": [5]}), folder / "out")
    assert sweep.run_point(point)[0] == ""
    return point


def test_done_is_judged_from_what_lies_there(finished, tmp_path):
    def without_count(path):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[-1].execution_count = None
        nbformat.write(notebook, path)

    def without_code(path):
        known = json.loads(path.read_text())
        path.write_text(json.dumps(known | {"key": "of other code"}))

    harms = [
        ("answer.txt", lambda path: path.write_text("tampered")),
        ("answer.txt", Path.unlink),
        ("numbers/results_x.csv", Path.unlink),
        ("book.ipynb", Path.unlink),
        ("book.ipynb", without_count),
        ("book.ipynb", lambda path: path.write_bytes(path.read_bytes()[:500])),
        ("provenance.json", Path.unlink),
        ("provenance.json", lambda path: path.write_text("[]")),
        ("provenance.json", lambda path: path.write_bytes(path.read_bytes()[:200])),
        ("provenance.json", without_code),
    ]
    assert sweep.is_done(finished)
    assert not sweep.is_done(dataclasses.replace(finished, key="other"))
    for number, (name, harm) in enumerate(harms):
        folder = shutil.copytree(finished.folder, tmp_path / str(number))
        point = dataclasses.replace(finished, folder=folder)
        assert sweep.is_done(point)
        harm(folder / name)
        assert not sweep.is_done(point), name


def test_other_code_on_the_worker(finished, tmp_path):
    point = dataclasses.replace(finished, folder=tmp_path / "out", code="other")
    reason, _ = sweep.run_point(point)
    assert "code of bloodcount is not that of the sweep" in reason
    assert not sweep.is_done(point)


def test_a_folder_that_the_workers_do_not_share(finished, tmp_path):
    point = dataclasses.replace(finished, folder=tmp_path / "elsewhere")
    summary = sweep.write_summary([finished, point], {point.name: ("", 1.0)}, tmp_path)
    assert list(summary["status"]) == ["done", "failed"]
    assert "the workers must share that folder" in summary["reason"][1]


def test_results_that_are_no_table(finished, tmp_path, capsys):
    folder = shutil.copytree(finished.folder, tmp_path / "point")
    point = dataclasses.replace(finished, folder=folder)
    (folder / "numbers" / "results_x.csv").write_text("")
    sweep.write_results([finished, point], tmp_path)
    assert len(pd.read_csv(tmp_path / "results.csv")) == 1
    assert "left out of results.csv" in capsys.readouterr().err
    sweep.write_results([], tmp_path)
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize("stop, code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_sweep_is_stopped(book, tmp_path, stop, code):
    "What is done is not done again, and nothing runs on."
    write_grid(tmp_path, [{"seed": 1}, {"seed": 2, "how": "waits"}])
    command = [*COMMAND, "book.ipynb", "grid.yaml", "-o", "out"]
    (tmp_path / "scratch").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    with open(tmp_path / "log", "w") as log:
        runner = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        wait_for(lambda: 2 in ledger(tmp_path) or runner.poll() is not None)
        runner.send_signal(stop)
        assert runner.wait(timeout=120) == code
    finally:
        runner.kill()
    wait_for(lambda: not alive(ledger(tmp_path)[2][0]), seconds=120)
    wait_for(lambda: not list((tmp_path / "scratch").glob("bloodcount-*")), seconds=120)
    (first,) = (tmp_path / "out").glob("*/provenance.json")
    before = first.read_bytes()
    if stop == signal.SIGINT:
        said = "Interrupted: 1 of 2 points are done; the same command goes on.\n"
        assert (tmp_path / "log").read_text().endswith(said)
        assert list(pd.read_csv(tmp_path / "out" / "summary.csv")["status"]) == ["done", "open"]
    (tmp_path / "gate").touch()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "2 points, 1 are done" in done.stdout, done.stderr
    assert {seed: len(ran) for seed, ran in ledger(tmp_path).items()} == {1: 1, 2: 2}
    assert first.read_bytes() == before


def test_two_sweeps_in_one_folder(book, tmp_path):
    write_grid(tmp_path, {"seed": [1, 2]})
    command = [*COMMAND, "book.ipynb", "grid.yaml", "-o", "out"]
    both = [subprocess.Popen(command, cwd=tmp_path) for _ in range(2)]
    assert [runner.wait(timeout=600) for runner in both] == [0, 0]
    points = sweep.plan(str(book), tmp_path / "grid.yaml", (tmp_path / "out").absolute())
    assert all(map(sweep.is_done, points))
    assert not [path for path in (tmp_path / "out").rglob("*") if ".part" in path.name]


def test_dask_loses_a_worker(book, tmp_path, monkeypatch):
    "A real cluster of two workers; one is killed while it runs a point."
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    grid = write_grid(tmp_path, {"seed": [1, 2, 3, 4], "how": ["waits"]})
    script = tmp_path / "run.py"
    script.write_text(
        "import sys; from pathlib import Path; from bloodcount.sweep import sweep\n"
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
        runner = subprocess.Popen([sys.executable, script, cluster.scheduler_address])
        wait_for(lambda: len(ledger(tmp_path)) == 2 or runner.poll() is not None)
        first = ledger(tmp_path)
        assert len(first) == 2
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: any(not alive(ran[0]) for ran in first.values()))
        (tmp_path / "gate").touch()
        assert runner.wait(timeout=600) == 0
        summary = pd.read_csv(tmp_path / "out" / "summary.csv")
        assert list(summary["status"]) == ["done"] * 4
        assert sorted(len(ran) for ran in ledger(tmp_path).values()) == [1, 1, 1, 2]
    # What is done needs no cluster.
    again = sweep.sweep(str(book), grid, tmp_path / "out", dask="tcp://localhost:1")
    assert list(again["status"]) == ["done"] * 4


def test_a_paper_notebook(tmp_path):
    grid = write_grid(tmp_path, {"profile": ["smoke"], "seed": [0, 1]})
    summary = sweep.sweep("01_dataset", grid, tmp_path / "out")
    assert list(summary["status"]) == ["done", "done"], list(summary["reason"])
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert list(results)[:3] == ["parameter_profile", "seed", "table"]
    assert set(results["seed"]) == {0, 1} and set(results["profile"]) == {"smoke"}
    assert (tmp_path / "out" / summary["folder"][0] / "figure_1.png").exists()

"The runner: faults of a notebook injected for real, and its logic without kernels."

import contextlib
import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path

import nbformat
import pytest
from jobs import ANSWER, files, job_in, without_kernel, write_notebook

from bloodcount.errors import InputError
from bloodcount.files import sha256
from bloodcount.source import digest
from bloodcount.studies import runner
from bloodcount.studies.runner import Outcome, is_done, run

FAULTS = {
    "an error": ("raise ValueError('boom')", "ValueError: boom"),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", "Kernel died"),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", "Kernel died"),
    "SIGINT": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", "KeyboardInterrupt"),
    "sys.exit(0)": ("sys.exit(0)", "SystemExit: 0"),
    "os._exit(0)": ("os._exit(0)", "Kernel died"),
    "a time-out": ("time.sleep(60)", "timed out"),
}


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    "Where temporary folders are made."
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture
def quick(monkeypatch):
    "No kernels: the cells run here."
    monkeypatch.setattr(runner, "_in_process", without_kernel)


# Faults, with a kernel


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_of_a_failed_notebook_counts(tmp_path, scratch, monkeypatch, fault):
    "In its last cell, when its output is already written."
    cell, reason = FAULTS[fault]
    job = job_in(tmp_path, ANSWER, cell, timeout=2 if fault == "a time-out" else 60)
    for name in ("answer.txt", "book.ipynb", "provenance.json"):
        job.outputs.mkdir(exist_ok=True)
        (job.outputs / name).write_text("old")
    before, attempt = files(job.outputs), runner._attempt
    once = lambda *arguments: (attempt(*arguments)[0], False)  # noqa: E731
    monkeypatch.setattr(runner, "_attempt", once)
    said = run(job).fault
    after = files(job.outputs)
    assert reason in said and "\n" not in said and not is_done(job)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"book.failed.ipynb"}
    assert not list(scratch.iterdir())


def test_a_kernel_that_dies_once_is_tried_once_more(tmp_path):
    mark = f"mark = Path({str(tmp_path)!r}) / 'died'"
    die = "if not mark.exists():\n    mark.touch(); os.kill(os.getpid(), signal.SIGKILL)"
    job = job_in(tmp_path, mark, die, "(out / 'answer.txt').write_text(f'{seed}')")
    assert run(job).fault == ""
    assert is_done(job) and (job.outputs / "answer.txt").read_text() == "7"
    assert not job.failed.exists()


def test_the_process_of_a_notebook_dies(tmp_path, monkeypatch):
    "Its parent is killed under the kernel, each time."
    job = job_in(tmp_path, "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)")
    fault, killed = runner._attempt(job, threading.Event(), False)
    assert fault == "its process ended early (Killed)." and killed
    assert not is_done(job)


def test_other_code_where_the_notebook_runs(tmp_path):
    job = dataclasses.replace(job_in(tmp_path, ANSWER), code="other")
    assert run(job).fault == "The code of bloodcount here is not that of the command."
    assert not is_done(job) and not job.outputs.exists()


# Its logic, without kernels


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "outcomes, tries",
    [
        ([("", False)], 1),
        ([("boom", False)], 1),
        ([("Kernel died", True), ("", False)], 2),
        ([("Kernel died", True), ("Kernel died", True)], 2),
    ],
)
def test_only_what_was_killed_is_tried_once_more(tmp_path, monkeypatch, outcomes, tries):
    left = list(outcomes)
    monkeypatch.setattr(runner, "_attempt", lambda *_: left.pop(0))
    assert run(job_in(tmp_path, ANSWER)).fault == outcomes[tries - 1][0] and not left


@pytest.mark.usefixtures("quick")
def test_nobody_waits_any_longer(tmp_path, monkeypatch):
    stop, tried = threading.Event(), []
    monkeypatch.setattr(
        runner, "_attempt", lambda *a: stop.set() or tried.append(a) or ("Kernel died", True)
    )
    assert run(job_in(tmp_path, ANSWER), stop).fault == "Kernel died" and len(tried) == 1


@pytest.mark.usefixtures("quick")
def test_a_file_that_was_promised_and_not_written(tmp_path):
    job = job_in(tmp_path, ANSWER, writes=("answer.txt", "table.csv"))
    with pytest.raises(FileNotFoundError):
        run(job)  # Without a kernel nobody looks; with one, `fault` does
    executed = nbformat.reads(job.source, as_version=4)
    for cell in executed.cells:
        cell.execution_count = 1
    (tmp_path / "answer.txt").touch()
    assert runner.fault(executed, tmp_path) == "it did not write table.csv."
    (tmp_path / "table.csv").touch()
    assert runner.fault(executed, tmp_path) == ""
    executed.cells[-1].execution_count = None
    assert runner.fault(executed, tmp_path) == f"cell {len(executed.cells) - 1} did not run."


@pytest.mark.usefixtures("quick")
def test_what_is_done_is_not_done_again(tmp_path):
    job = job_in(tmp_path, "(out / 'answer.txt').write_text(f'{profile} {seed}')")
    assert not is_done(job) and run(job).fault == ""
    assert (job.outputs / "answer.txt").read_text() == "paper 7"
    before = files(job.outputs)
    assert is_done(job) and run(job) == Outcome("", 0.0) and files(job.outputs) == before
    assert not is_done(dataclasses.replace(job, key="another"))


@pytest.mark.usefixtures("quick")
def test_provenance(tmp_path):
    job = dataclasses.replace(job_in(tmp_path, ANSWER), about={"data": {"title": "smears"}})
    run(job)
    known = json.loads(job.provenance.read_text())
    assert known["parameters"] == {"seed": 7} and known["key"] == job.key
    assert known["data"] == {"title": "smears"} and known["seconds"] >= 0
    assert known["outputs"] == {"answer.txt": sha256(job.outputs / "answer.txt")}
    assert known["executed"] == sha256(job.executed)
    assert known["source"] == digest(runner.code_cells(nbformat.reads(job.source, 4)))
    assert {"commit", "python", "device", "versions", "code"} <= set(known)


HARMS = {
    "output tampered": ("answer.txt", lambda path: path.write_text("tampered")),
    "output lost": ("answer.txt", Path.unlink),
    "notebook lost": ("book.ipynb", Path.unlink),
    "notebook cut": ("book.ipynb", lambda path: path.write_bytes(path.read_bytes()[:500])),
    "provenance lost": ("provenance.json", Path.unlink),
    "provenance cut": ("provenance.json", lambda path: path.write_text(path.read_text()[:200])),
    "provenance of another kind": ("provenance.json", lambda path: path.write_text("[]")),
    "provenance without files": ("provenance.json", lambda p: p.write_text('{"key": "a key"}')),
    "provenance of nothing": ("provenance.json", lambda p: p.write_text('{"key": "a key", "outputs": 3}')),
}  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("harm", HARMS)
def test_what_was_harmed_is_made_anew(tmp_path, harm):
    name, do = HARMS[harm]
    job = job_in(tmp_path, ANSWER)
    run(job)
    do(job.outputs / name)
    assert not is_done(job)
    assert run(job).fault == "" and is_done(job)
    assert (job.outputs / "answer.txt").read_text() == "new"


@pytest.mark.usefixtures("quick")
def test_a_repaired_notebook_leaves_no_failed_copy(tmp_path):
    job = job_in(tmp_path, "raise ValueError('boom')")
    assert run(job).fault == "ValueError: boom" and job.failed.exists()
    job = job_in(tmp_path, ANSWER)
    assert run(job).fault == "" and not job.failed.exists()


@pytest.mark.usefixtures("quick")
def test_outputs_may_lie_on_another_disk(tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    with contextlib.ExitStack() as stack:
        far = other / f"bloodcount-{os.getpid()}"
        far.mkdir()
        stack.callback(shutil.rmtree, far)
        job = dataclasses.replace(job_in(tmp_path, ANSWER), outputs=far)
        assert run(job).fault == "" and (far / "answer.txt").read_text() == "new"


@pytest.mark.usefixtures("quick")
def test_a_job_that_cannot_be_written_stops_no_other(tmp_path):
    (tmp_path / "file").touch()
    good = job_in(tmp_path, ANSWER)
    bad = dataclasses.replace(good, outputs=tmp_path / "file" / "place", key="another")
    ended = {job.key: outcome.fault for job, outcome in runner.on_this_machine([bad, good], 1)}
    assert ended[good.key] == "" and "NotADirectoryError" in ended[bad.key]


@pytest.mark.parametrize("text", ["no notebook\nat all", "", '{"a": 1}', "[]"])
def test_a_file_that_is_no_notebook(tmp_path, text):
    path = tmp_path / "book.ipynb"
    path.write_text(text)
    with pytest.raises(InputError, match="book.ipynb: not a notebook") as error:
        runner.read_notebook(path)
    assert "\n" not in str(error.value)


def test_a_notebook_is_read_without_its_outputs(tmp_path):
    path = write_notebook(tmp_path / "book.ipynb", ANSWER)
    notebook = nbformat.read(path, 4)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="3")]
    notebook.cells[-1].execution_count = 3
    nbformat.write(notebook, path)
    read = runner.read_notebook(path)
    assert not read.cells[-1].outputs and read.cells[-1].execution_count is None
    assert read.metadata.kernelspec["language"] == "python"  # papermill asks for it

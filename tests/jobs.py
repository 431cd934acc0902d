"Small notebooks as jobs of the runner, run for real or without a kernel; what the tests of the runner share."

import contextlib
import os
import time
from pathlib import Path

import nbformat

from bloodcount.source import code_digest
from bloodcount.studies.parameters import INJECTED
from bloodcount.studies.runner import Job, read_notebook

BEGIN = "import os, signal, sys, time; from pathlib import Path; out = Path(os.environ['BLOODCOUNT_OUT'])"
ANSWER = "(out / 'answer.txt').write_text('new')"


def write_notebook(
    path: Path,
    *cells: str,
    parameters: str = 'profile = "paper"\nseed = 0',
    writes=("answer.txt",),
    tag: str = "parameters",
) -> Path:
    "A notebook with a title that says what it writes, parameters, and cells."
    title = "\n".join(["# A title", *(f"- `{file}`" for file in writes)])
    head = nbformat.v4.new_code_cell(parameters, metadata={"tags": [tag]})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(title), head])
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in (BEGIN, *cells)]
    nbformat.write(notebook, path)
    return path


def job_in(folder: Path, *cells: str, timeout: int = 60, writes=("answer.txt",)) -> Job:
    "A job whose notebook, outputs and provenance lie in a folder."
    path = write_notebook(folder / "book.ipynb", *cells, writes=writes)
    place = folder / "place"
    files = place, place / "book.ipynb", place / "provenance.json"
    source = nbformat.writes(read_notebook(path))
    return Job("book", source, {"seed": 7}, "a key", *files, code_digest(), timeout)


def without_kernel(job: Job, place: Path, stop, show) -> tuple[str, bool]:
    "In the place of the runner's process: the cells of a job, run here."
    executed = nbformat.reads(job.source, as_version=4)
    (place / "out").mkdir()
    told = "".join(f"{name} = {value!r}\n" for name, value in job.parameters.items())
    executed.cells.insert(2, nbformat.v4.new_code_cell(INJECTED + told))
    names, fault = {}, ""
    before, os.environ["BLOODCOUNT_OUT"] = os.environ.get("BLOODCOUNT_OUT"), str(place / "out")
    try:
        for number, cell in enumerate(cell for cell in executed.cells if cell.cell_type == "code"):
            *lines, last = cell.source.splitlines()
            exec("\n".join(lines), names)
            with contextlib.suppress(SyntaxError):
                shown = eval(last, names)
                data = {"text/plain": repr(shown)}
                output = nbformat.v4.new_output("execute_result", data, execution_count=number + 1)
                cell.outputs = [output]
                cell.execution_count = number + 1
                continue
            exec(last, names)
            cell.execution_count = number + 1
    except Exception as error:  # noqa: BLE001 whatever the cell of a test raises
        fault = f"{type(error).__name__}: {error}"
    finally:
        os.environ.pop("BLOODCOUNT_OUT")
        if before is not None:
            os.environ["BLOODCOUNT_OUT"] = before
    nbformat.write(executed, place / "out" / "notebook.ipynb")
    return fault, False


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    "Every file under a folder, with its bytes and the time of its last change."
    there = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in there
    }


def wait_for(condition, seconds: float = 600):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return value


def alive(process: int) -> bool:
    "Whether a process runs; one that has ended and waits for its parent does not."
    with contextlib.suppress(FileNotFoundError):
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    if Path("/proc").is_dir():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True

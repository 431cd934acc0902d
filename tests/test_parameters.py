"A mistyped parameter is refused before anything runs, by the commands and by papermill by hand."

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jobs import ANSWER, write_notebook

from bloodcount.errors import SettingsError
from bloodcount.settings import PROJECT
from bloodcount.studies.parameters import INJECTED, check_injected, check_parameters


def test_a_notebook_is_looked_at_before_it_runs(tmp_path):
    path = write_notebook(tmp_path / "book.ipynb", ANSWER)
    check_parameters(nbformat.read(path, 4), {"profile": "smoke", "seed": 1}, "book")
    with pytest.raises(SettingsError, match="book has no parameter 'profle'. Did you mean 'prof"):
        check_parameters(nbformat.read(path, 4), {"profle": "smoke"}, "book")
    write_notebook(path, ANSWER, tag="parametres")
    with pytest.raises(SettingsError, match="book has 0 cells tagged 'parameters'; it needs one."):
        check_parameters(nbformat.read(path, 4), {"profile": "smoke"}, "book")


@pytest.mark.parametrize(
    "head", ["seed = 0", "seed: int = 0", "# The seed\nseed=0", "other = 1\nseed = (\n    0\n)"]
)
def test_names_that_a_cell_sets(head):
    check_injected([head, f"{INJECTED}seed = 1"])
    for wrong in ("sede", "Seed", "seed_"):
        with pytest.raises(SettingsError, match=f"This notebook has no parameter '{wrong}'"):
            check_injected([head, f"{INJECTED}{wrong} = 1"])


def test_a_comparison_sets_nothing():
    with pytest.raises(SettingsError, match="'seed'"):
        check_injected(["seed == 0", f"{INJECTED}seed = 1"])


def papermill(source: Path, target: Path, *parameters: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", source, target, "-k", "python3", *parameters]
    return subprocess.run(command, capture_output=True, text=True)


def test_papermill_by_hand(tmp_path):
    "A paper notebook as README runs it, with a slip: nothing is written, and the name is told."
    done = papermill(
        PROJECT / "nbs" / "paper" / "01_dataset.ipynb",
        tmp_path / "ran.ipynb",
        "-p",
        "profil",
        "smoke",
    )
    assert done.returncode != 0
    assert "no parameter 'profil'. Did you mean 'profile'?" in done.stderr
    ran = [c for c in nbformat.read(tmp_path / "ran.ipynb", 4).cells if c.cell_type == "code"]
    first = next(i for i, cell in enumerate(ran) if "start(" in cell.source)
    assert not any(cell.execution_count for cell in ran[first + 1 :])

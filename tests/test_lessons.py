"The lessons of every notebook that exports a module, and of the way in."

import signal
import tomllib
from pathlib import Path

import pytest
from nbdev.test import test_nb as run_lessons

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb")) + sorted(
    (ROOT / "nbs" / "studies").glob("*.ipynb")
)
FLAGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]["tst_flags"].split()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_lessons(path):
    handler = signal.getsignal(signal.SIGINT)
    try:
        passed, _ = run_lessons(path, skip_flags=FLAGS, profile=False)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert passed, f"a lesson of {path.name} fails: its traceback is in the captured stderr"

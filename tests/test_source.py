"A result's name says which code made it: the code that was imported."

import gc
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bloodcount import source

PACKAGE = Path(source.PACKAGE)


@pytest.fixture
def copy(tmp_path) -> Path:
    "The package in a place of its own, to be edited."
    ignored = shutil.ignore_patterns("weights", "__pycache__", "_project")
    shutil.copytree(PACKAGE, tmp_path / "bloodcount", ignore=ignored)
    return tmp_path


def run(folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


ASK = "from bloodcount.source import code_digest; print(code_digest('errors'))"


def test_comments_and_docstrings_are_no_code(copy):
    before, path = run(copy, ASK), copy / "bloodcount" / "errors.py"
    path.write_text(path.read_text() + "\n# a comment\n")
    assert run(copy, ASK) == before
    path.write_text(path.read_text() + "\nMORE = 1\n")
    assert run(copy, ASK) != before


def test_edited_while_it_runs(copy):
    "Old code never gets the name of the new, and what it makes is returned but not kept."
    before = run(copy, ASK)
    told = run(
        copy,
        """
import warnings
from pathlib import Path
import bloodcount
path = Path("bloodcount/errors.py")
path.write_text(path.read_text() + "\\nMORE = 1\\n")
from bloodcount.source import code_digest, unchanged
from bloodcount.cache import kept_json
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    made = kept_json(Path("kept.json"), lambda: [1, 2])
print(code_digest("errors"), unchanged(), made, Path("kept.json").exists(), "Start anew" in str(caught[0].message))
""",
    )
    assert told == f"{before} False [1, 2] False True"
    assert run(copy, ASK) != before


def test_names_of_code():
    assert source.unchanged()
    assert "studies.overlap" in source.modules_there()
    names = {
        source.code_digest(*each) for each in ((), ("errors",), ("files",), ("errors", "files"))
    }
    assert len(names) == 4
    assert source.code_digest("files", "errors") != source.code_digest("errors", "files")


def test_code_is_named_by_two_threads_at_once():
    def let_others_run(*_):
        time.sleep(1e-6)

    gc.callbacks.append(let_others_run)  # Between the nodes of a tree, where the parser is confused
    try:
        source._statements.cache_clear()
        with ThreadPoolExecutor(2) as pool:
            assert len(set(pool.map(lambda _: source.code_digest("drawing"), range(4)))) == 1
    finally:
        gc.callbacks.remove(let_others_run)

"""The frame: notebooks, modules, imports, lock and manifest belong together."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbdev.test import test_nb as run_lessons
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import bloodcount
from bloodcount.segmentation import LEVELS
from bloodcount.source import digest
from bloodcount.studies.runner import code_cells

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
LIBRARY = sorted((ROOT / "nbs").glob("*.ipynb"))
START = ROOT / "nbs" / "index.ipynb"  # The way in; it exports nothing
PAPER = sorted((ROOT / "nbs" / "paper").glob("*.ipynb"))
MODULES = sorted(p.stem for p in (ROOT / "bloodcount").glob("*.py") if p.stem[0] != "_")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# A module imports only what stands before it.
ORDER = (
    "errors files settings provenance data synthetic fetch tiles augment models losses train segment count "
    "evaluate report diagram experiment tune trained study paper sweep cli"
).split()
PARAMETERS = {"profile", "weights", "cell", "seed", "model", "recipe"}

each_notebook = pytest.mark.parametrize("path", LIBRARY + PAPER, ids=lambda path: path.stem)
each_paper_notebook = pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[dict]:
    "The cells of one kind, each with its source as one string."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in found if c["cell_type"] == kind]


def syntax(source: str) -> ast.Module:
    "The parsed code, without IPython's own lines."
    lines = (line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    return ast.parse("\n".join(lines))


def imported(tree: ast.AST) -> set[str]:
    "Full names of all that is imported anywhere in the code of a bloodcount module."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["bloodcount" if node.level else "", node.module]))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name[0] != ".")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_clean_and_export_change_nothing(tmp_path):
    for name in ("nbs", "bloodcount"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "settings.ini", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    before = contents(tmp_path)
    for command in ("nbdev-clean", "nbdev-export"):
        subprocess.run([BIN / command], cwd=tmp_path, check=True, capture_output=True)
    after = contents(tmp_path)
    changed = [n for n in sorted(before | after) if before.get(n) != after.get(n)]
    assert not changed, f"make export changes {changed}"


def test_one_module_for_each_notebook():
    exported = [
        re.findall(r"^#\| *default_exp (\w+)", "\n".join(c["source"] for c in cells(path)), re.M)
        for path in LIBRARY
        if path != START
    ]
    assert sorted(sum(exported, [])) == MODULES
    assert all(len(names) == 1 for names in exported)


def test_all_modules_and_lessons_are_here():
    assert sorted(ORDER) == MODULES
    assert START in LIBRARY and len(LIBRARY) == len(MODULES) + 1
    assert PAPER


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_left(module):
    tree = ast.parse((ROOT / "bloodcount" / f"{module}.py").read_text(encoding="utf-8"))
    used = {name.split(".")[1] for name in imported(tree) if name.startswith("bloodcount.")}
    uphill = used & set(ORDER[ORDER.index(module) :])
    assert not uphill, f"{module} imports {sorted(uphill)}"


@each_notebook
def test_keras_alone_speaks_to_the_backend(path):
    "But where code asks which backend it is."
    for cell in cells(path):
        if "keras.backend.backend()" in cell["source"]:
            continue
        tree = syntax(cell["source"])
        roots = {name.split(".")[0] for name in imported(tree)}
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not roots & {"tensorflow", "tf_keras", "jax"} and "tf" not in names, cell["source"]


@each_paper_notebook
def test_paper_notebook_is_an_argument(path):
    "It tells and calls; definitions stand in the library, and nbdev-test passes it by."
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert re.search(r"^- skip_exec: true$", "".join(first["source"]), re.M)
    for cell in cells(path):
        assert not re.search(r"^#\| *(export|default_exp)", cell["source"], re.M), cell["source"]
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        tree = syntax(cell["source"])
        assert not any(isinstance(n, definitions) for n in ast.walk(tree)), cell["source"]


@each_paper_notebook
def test_paper_notebook_has_its_parameters(path):
    "Without the tag papermill would silently run with the defaults."
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    statements = ast.parse(tagged[0]["source"]).body
    assert all(isinstance(statement, ast.Assign) for statement in statements)
    names = {target.id for statement in statements for target in statement.targets}
    assert "profile" in names and names <= PARAMETERS


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_lessons(path):
    handler = signal.getsignal(signal.SIGINT)
    try:
        flags = PYPROJECT["tool"]["nbdev"]["tst_flags"].split()
        passed, _ = run_lessons(path, skip_flags=flags, profile=False)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert passed, f"a lesson of {path.name} fails: its traceback is in the captured stderr"


@each_notebook
def test_committed_notebook_is_fit_to_be_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert "widgets" not in notebook.metadata
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    for kind, value in ((k, v) for o in outputs for k, v in o.get("data", {}).items()):
        assert "widget" not in kind
        assert not kind.startswith("image/") or len(value) * 3 // 4 < 300_000


@pytest.mark.parametrize(
    "path", [p for p in PAPER if p.stem[0].isdigit()], ids=lambda path: path.stem
)
def test_committed_outputs_are_of_these_cells(path):
    "Stale ones need `bloodcount reproduce`, then `bloodcount reproduce --publish`."
    notebook = nbformat.read(path, as_version=4)
    if any(cell.cell_type == "code" and cell.outputs for cell in notebook.cells):
        made = json.loads((ROOT / "figures" / "provenance" / f"{path.stem}.json").read_text())
        assert made["source"] == digest(code_cells(notebook)), f"{path.name} is stale"


def test_notebooks_and_tests_are_formatted():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [BIN / "ruff", *command, "--quiet", "nbs", "tests"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["-c", "import bloodcount"], [BIN / "bloodcount", "--help"]])
def test_starts_without_a_backend(command):
    "A backend takes seconds to load, so help must come without one."
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert "bloodcount" in loaded
    assert loaded.isdisjoint({"tensorflow", "keras", "jax", "torch"})


def test_no_licensed_image_is_in_the_project():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert "pyproject.toml" in listed
    named = [n for n in listed if re.search(r"Im\d{3}_[01]\.(jpe?g|png|tiff?)$", n, re.I)]
    predicted = [n for n in named if re.match(r"data/segnet/(rbc|wbc|plt)/(mask|edge)/", n)]
    assert named == predicted
    for name in predicted:
        with Image.open(ROOT / name) as picture:
            few = picture.getcolors(LEVELS)  # None if it has more
            assert picture.mode == "P" and few, f"{name} is not a predicted mask"


def test_one_version():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    installed = importlib.metadata.version("bloodcount")
    assert bloodcount.__version__ == installed == cited


def requirements() -> list[str]:
    project = PYPROJECT["project"]
    return project["dependencies"] + sum(project["optional-dependencies"].values(), [])


@pytest.mark.parametrize("requirement", requirements())
def test_dependency_has_a_reason_and_is_locked(requirement):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf'^ +"{re.escape(requirement)}",  # \S', text, re.M), "no reason beside it"
    wanted = Requirement(requirement)
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    versions = re.findall(rf"^{re.escape(canonicalize_name(wanted.name))}==(\S+)", lock, re.M)
    assert versions and all(v in wanted.specifier for v in versions), "make lock"


def test_lock_names_no_place_and_brings_no_other_framework():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|(?<!\w)/\w|^-", lock, re.M)
    assert not re.search(r"^(torch|nvidia|opencv-python=)", lock, re.M)
    pinned = re.findall(r"^[a-z0-9-]+==\S+(?: ;.*)? \\\n    --hash=sha256:", lock, re.M)
    assert len(pinned) == len(re.findall(r"^[a-z]", lock, re.M)) > 100
    assert set(PYPROJECT["build-system"]["requires"]) <= set(requirements())

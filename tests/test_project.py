"""The frame: notebooks, modules, imports, lock and manifest belong together."""

import ast
import graphlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import bloodcount
from bloodcount.segmentation import LEVELS
from bloodcount.source import digest
from bloodcount.studies import page
from bloodcount.studies.reproduce import NOT_PAPER
from bloodcount.studies.runner import code_cells

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TOOL = sorted((ROOT / "nbs").glob("*.ipynb"))
STUDIES = sorted((ROOT / "nbs" / "studies").glob("*.ipynb"))
PAPER = sorted((ROOT / "nbs" / "paper").glob("*.ipynb"))
LIBRARY = [path for path in TOOL + STUDIES if path.stem[0].isdigit()]  # Each exports one module
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PARAMETERS = {"profile", "weights", "cell", "seed", "model", "recipe"}

each_notebook = pytest.mark.parametrize("path", TOOL + STUDIES + PAPER, ids=lambda path: path.stem)
each_paper_notebook = pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[dict]:
    "The cells of one kind, each with its source as one string."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in found if c["cell_type"] == kind]


def syntax(source: str) -> ast.Module:
    "The parsed code, without IPython's own lines."
    lines = (line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    return ast.parse("\n".join(lines))


def imported(tree: ast.AST, module: str = "") -> set[str]:
    "Full names of all that is imported anywhere in the code, of a bloodcount module if it is named."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ["bloodcount", *module.split(".")][: -node.level] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def module_of(path: Path) -> list[str]:
    "The modules that a notebook says it exports."
    source = "\n".join(cell["source"] for cell in cells(path))
    return re.findall(r"^#\| *default_exp (\S+)", source, re.M)


def modules() -> dict[str, tuple[str, int]]:
    "The floor and the number of each module's notebook."
    return {module_of(path)[0]: (path.parent.name, int(path.stem[:2])) for path in LIBRARY}


def code_of(module: str) -> str:
    return (ROOT / "bloodcount" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


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
    there = (path.relative_to(ROOT / "bloodcount") for path in ROOT.glob("bloodcount/**/*.py"))
    there = {".".join(path.with_suffix("").parts) for path in there if path.stem[0] != "_"}
    exported = [name for path in LIBRARY for name in module_of(path)]
    assert sorted(exported) == sorted(there)
    assert all(len(module_of(path)) == 1 for path in LIBRARY)
    others = [path for path in TOOL + STUDIES if path not in LIBRARY]
    assert not any(map(module_of, others)) and ROOT / "nbs" / "index.ipynb" in others
    assert all(module_of(path)[0].startswith("studies.") == (path in STUDIES) for path in LIBRARY)


def test_imports_point_down():
    "To a lower floor, or to a notebook with no higher number; a command loads its study when it runs."
    place = modules()
    for module, (floor, number) in place.items():
        used = {
            name.removeprefix("bloodcount.")
            for name in imported(ast.parse(code_of(module)), module)
        }
        for name in used & set(place):
            below, before = place[name]
            if (floor, below) == ("nbs", "studies"):
                assert module == "cli", f"{module} imports {name}"
            elif floor == below:
                assert before <= number, f"{module} imports {name}"


def test_a_change_makes_published_notebooks_stale_if_they_import_it():
    place, reached = modules(), set()

    def named(tree: ast.AST, module: str = "") -> set[str]:
        names = {name.removeprefix("bloodcount.") for name in imported(tree, module)}
        return (names | {name.rpartition(".")[0] for name in names}) & set(place)

    code = [
        cell["source"] for path in (ROOT / "nbs" / "paper").glob("*.ipynb") for cell in cells(path)
    ]
    waiting = set().union(*(named(syntax(source)) for source in code))
    while waiting:
        reached |= (now := waiting)
        waiting = set().union(*(named(ast.parse(code_of(name)), name) for name in now)) - reached
    assert set(NOT_PAPER) == set(place) - reached


def test_imports_make_no_circle():
    names = modules()
    uses = {
        module: {
            name.removeprefix("bloodcount.")
            for name in imported(ast.parse(code_of(module)), module)
        }
        & set(names)
        for module in names
    }
    graph = graphlib.TopologicalSorter({m: used for m, used in uses.items() if m != "cli"})
    assert len(list(graph.static_order())) >= len(names) - 1  # Raises CycleError


def test_the_tool_loads_no_study():
    code = "import sys; from bloodcount import batch, cli, counting, models; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert {"bloodcount.cli", "bloodcount.counting"} <= set(loaded)
    assert [name for name in loaded if name.startswith("bloodcount.studies")] == []


def test_exported_cells_and_modules_are_short():
    "At most 40 lines a cell and 600 a module."
    cells_, modules_ = set(), set()
    for path in LIBRARY:
        (module,) = module_of(path)
        if len(code_of(module).splitlines()) > 600:
            modules_.add(module)
        for cell in cells(path):
            lines = cell["source"].strip().splitlines()
            imports = all(
                isinstance(n, (ast.Import, ast.ImportFrom, ast.If))
                for n in syntax(cell["source"]).body
            )
            if lines and re.match(r"#\| *export", lines[0]) and len(lines) > 41 and not imports:
                first = re.search(r"^(?:def |class )?(\w+)", "\n".join(lines[1:]), re.M)
                cells_.add(f"{module}.{first[1]}")
    assert not modules_ and not cells_, "too long"


def test_readme_and_index_list_the_notebooks():
    "Else `make export`."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- notebooks -->" in readme and page.with_list(readme, ROOT) == readme
    index = ROOT / "nbs" / "index.ipynb"
    (listed,) = [
        c["source"] for c in cells(index, "markdown") if "<!-- notebooks -->" in c["source"]
    ]
    assert page.with_list(listed, index.parent) == listed
    assert listed.count("](") >= len(LIBRARY + PAPER)


def asks_for_the_backend(node: ast.AST) -> bool:
    "Whether it is a function that begins by asking which backend there is."
    if not isinstance(node, ast.FunctionDef):
        return False
    first = (node.body[1:] if ast.get_docstring(node) else node.body)[:1]
    asked = [ast.unparse(each.test) for each in first if isinstance(each, ast.If)]
    return any("keras.backend.backend()" in test for test in asked)


class WithoutBackend(ast.NodeTransformer):
    "Leaves out the functions that begin by asking which backend there is."

    def visit_FunctionDef(self, node):
        return ast.Pass() if asks_for_the_backend(node) else self.generic_visit(node)


@each_notebook
def test_keras_alone_speaks_to_the_backend(path):
    "But in a function that first asks which backend it is, and where StarDist is trained, which has TensorFlow only."
    if path.stem.endswith("star_training"):
        return
    for cell in cells(path):
        tree = WithoutBackend().visit(syntax(cell["source"]))
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


@each_notebook
def test_no_backend_speaks_in_committed_outputs(path):
    assert "WARNING:tensorflow" not in path.read_text(encoding="utf-8")


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


def test_what_is_imported_is_declared():
    "Not only brought along by another package."
    roots = set()
    for path in (ROOT / "bloodcount").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "bloodcount").with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        roots |= {name.split(".")[0] for name in imported(tree, module)}
    roots -= {"bloodcount", *sys.stdlib_module_names}
    declared = {canonicalize_name(Requirement(each).name) for each in requirements()}
    brought_by = importlib.metadata.packages_distributions()
    missing = [
        root
        for root in sorted(roots)
        if not declared & {canonicalize_name(name) for name in brought_by.get(root, [root])}
    ]
    assert missing == []


def test_lock_names_no_place_and_brings_no_other_framework():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|(?<!\w)/\w|^-", lock, re.M)
    assert not re.search(r"^(torch|nvidia|opencv-python=)", lock, re.M)
    pinned = re.findall(r"^[a-z0-9-]+==\S+(?: ;.*)? \\\n    --hash=sha256:", lock, re.M)
    assert len(pinned) == len(re.findall(r"^[a-z]", lock, re.M)) > 100
    assert set(PYPROJECT["build-system"]["requires"]) <= set(requirements())

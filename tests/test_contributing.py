"""CONTRIBUTING's "Add a counter", followed step by step on a copy of the project."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from bloodcount.settings import CELLS

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

PARAMETERS = """#| export
@section
class Blobs:
    "Components of a smoothed mask."

    source: Source
    min_area: Area
    smooth: Annotated[float, Field(ge=0)]  # Sigma, px"""
COUNTER = """#| export
def blobs(
    maps: Maps,
    threshold: Thresholds,
    settings: Any,
) -> Cells:
    "Cells as components of a smoothed mask."
    seen = binary(maps, threshold, settings.source, 0).astype(np.float32)
    smooth = cv2.GaussianBlur(seen, (0, 0), settings.smooth) > 0.5
    return cells_from_labels(components(smooth), settings.min_area)"""
SECTION = "\n[count.{cell}.blobs]\nsource = mask\nmin_area = 20\nsmooth = 1.5\n"
# What goes through COUNTERS has the new one: every cell type, a model's own folder, names and colours.
TRY = """
from bloodcount.counting import COUNTERS, count
from bloodcount.drawing import METHOD_COLOURS, METHOD_TITLES
from bloodcount.segmentation import truth_maps
from bloodcount.settings import PROJECT, load_settings
from bloodcount.studies.protocol import Run
from bloodcount.synthetic import synthetic_smear

settings, smear = load_settings("smoke"), synthetic_smear(seed=3, overlap=0)
for cell in ("rbc", "wbc", "plt"):
    counting = settings.published["do_unet"][cell]
    found = count(truth_maps(smear, cell), counting, "blobs")
    assert abs(len(found) - smear.counts[cell]) <= 1, cell
    assert "blobs" in Run(settings, None, "bloodcount", 0, PROJECT).how(cell).count, cell
assert COUNTERS.keys() <= METHOD_TITLES.keys() == METHOD_COLOURS.keys()
print(PROJECT)
"""


def edit(path: Path, pattern: str, new: str, before: str = "") -> None:
    "Change the one cell of a notebook that a pattern matches, and put another cell before it."
    notebook = nbformat.read(path, as_version=4)
    (place,) = [i for i, c in enumerate(notebook.cells) if re.search(pattern, c.source, re.M)]
    cell = notebook.cells[place]
    cell.source = re.sub(pattern, new, cell.source, count=1, flags=re.M)
    if before:
        notebook.cells.insert(place, nbformat.v4.new_code_cell(before))
    nbformat.write(notebook, path)


@pytest.fixture
def copy(tmp_path) -> Path:
    "The project without its data and results."
    ignored = shutil.ignore_patterns("__pycache__", "*.npz")
    for name in ("bloodcount", "nbs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "settings.ini", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_add_a_counter(copy):
    steps = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a counter")[2].split("\n##")[0]
    named = re.findall(r"`(nbs/\S+?\.ipynb|settings\.ini)`", steps)
    assert {"METHODS", "COUNTERS", "METHOD_TITLES", "METHOD_COLOURS"} <= set(
        re.findall(r"`(\w+)`", steps)
    )
    settings, ini, counting, drawing = (copy / name for name in named)
    edit(settings, r"^(METHODS = \{)", r'\1"blobs": Blobs, ', before=PARAMETERS)
    with open(ini, "a", encoding="utf-8") as file:
        file.writelines(SECTION.format(cell=cell) for cell in CELLS)
    edit(counting, r"^(COUNTERS\b.*= \{\n)", r'\1    "blobs": blobs,\n', before=COUNTER)
    edit(drawing, r"^(METHOD_TITLES = \{)", r'\1"blobs": "blobs", ')
    edit(drawing, r"^(METHOD_COLOURS\b.*= \{)", r'\1"blobs": "#000000", ')
    subprocess.run([BIN / "nbdev-export"], cwd=copy, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", TRY], cwd=copy, capture_output=True, text=True,
        env={"PYTHONPATH": str(copy), "PATH": str(BIN)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(copy)

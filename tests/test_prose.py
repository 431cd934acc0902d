"""Every decimal that the prose of the README and of the paper's notebooks says is one of the results, of the paper's, or a stated fact."""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from bloodcount.settings import PROJECT
from bloodcount.studies.claims import SAME_IMAGES
from bloodcount.studies.results import published, typed

PAPER = sorted((PROJECT / "nbs" / "paper").glob("*.ipynb"))
DECIMAL = re.compile(r"(?<![\w.])\d[\d,]*\.\d+(?!\w|\.\d)")
RESULTS = typed(pd.read_csv(PROJECT / "figures" / "results.csv", dtype=str, keep_default_na=False))


def one(frame: pd.DataFrame, **wanted: str) -> float:
    "The value of the one row that is meant."
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    (value,) = set(frame["value"])
    return value


def printed(table: str, method: str, images: str) -> float:
    "A count accuracy that the paper printed for DO-U-Net."
    return one(published(), table=table, model="do_unet", method=method, images=images)


def twice(cell: str) -> float:
    "The Dice of two annotations of one picture."
    return one(RESULTS, table="errata", quantity="dice_of_two_annotations", cell=cell)


def background(cell: str) -> float:
    "The accuracy of saying background everywhere, whole test images, percent."
    where = {"table": "baseline_pixels", "quantity": "all_background_accuracy", "condition": ""}
    return 100 * one(RESULTS, **where, cell=cell, images="test")


def gained(map_: str) -> pd.Series:
    "What transfer learning adds to the Dice of the test images' tiles: ours, and the paper's."
    rows = RESULTS[(RESULTS["table"] == "transfer") & (RESULTS["images"] == "test")]
    return rows[rows["map"] == map_].iloc[0]


def in_tiles(recipe: str, map_: str) -> float:
    "The Dice of the test images' tiles, the mean of the seeds."
    wanted = {"table": "tile_pixels", "quantity": "dice", "images": "test"}
    rows = RESULTS[(RESULTS[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return rows[(rows["recipe"] == recipe) & (rows["map"] == map_)]["value"].mean()


def in_aslan(model: str) -> float:
    "The count accuracy of red cells in a laboratory that our networks of ALL-IDB1 do not know."
    where = {"table": "elsewhere", "quantity": "count_accuracy", "cell": "rbc", "images": "aslan"}
    return one(RESULTS, **where, model=model, weights="bloodcount")


SAID = {
    "02_rbc": {"95.36": lambda: printed("counting_rbc_count", "cht", "13")},
    "03_wbc": {
        "97.94": lambda: printed("counting_wbc_count", "watershed", "13"),
        "95.64": lambda: printed("counting_wbc_count", "watershed", "108"),
    },
    "04_plt": {
        "98.58": lambda: printed("counting_plt_count", "ccl", "13"),
        "0.26": lambda: 0.26,  # In the authors' code
        "99.9": lambda: background("plt"),
        "0.72": lambda: twice("plt"),
    },
    "05_ceilings": {
        "99.69": lambda: one(
            RESULTS, table="ceilings_rbc", method="ccl", quantity="count_accuracy", images="all13"
        )
    },
    "06_training": {
        "0.02": lambda: SAME_IMAGES / 100,
        "0.003": lambda: abs(gained("mask")["value"]),
        "0.830": lambda: one(published(), recipe="model_a", map="mask", quantity="dice"),
        "0.967": lambda: in_tiles("model_a", "mask"),
    },
    "11_magnification": {"1.4": lambda: 1.4},  # A scale of the study
    "12_errata": {
        "0.99": lambda: twice("rbc"),
        "0.98": lambda: twice("wbc"),
        "0.72": lambda: twice("plt"),
    },
    "README": {
        "91.6": lambda: in_aslan(model="stardist"),
        "24.3": lambda: in_aslan(model="do_unet"),
        "3.11": lambda: 3.11,  # Versions of Python and of the licence
        "3.13": lambda: 3.13,
        "2.0": lambda: 2.0,
    },
}


def decimals(path: Path) -> set[str]:
    "What the prose says, without tables, code, and lists of files."
    if path.suffix == ".md":
        texts = [path.read_text(encoding="utf-8")]
    else:
        cells = nbformat.read(path, as_version=4).cells
        texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    text = re.sub(r"```.*?```|`[^`\n]*`|\(http[^)]*\)", "", "\n".join(texts), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    return set(DECIMAL.findall("\n".join(lines)))


@pytest.mark.parametrize("path", [*PAPER, PROJECT / "README.md"], ids=lambda path: path.stem)
def test_decimals_are_what_the_results_say(path):
    said = SAID.get(path.stem, {})
    assert decimals(path) == set(said), "say what each number is, above"
    for text, value in said.items():
        places = len(text.partition(".")[2])
        assert f"{value():.{places}f}" == text, text

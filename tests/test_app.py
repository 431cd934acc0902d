"The app in a real browser: count, click to add and to remove, save, read back."

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import roifile
from fake_finder import Darkness
from PIL import Image

from bloodcount import app
from bloodcount.app import Correction, Page, corrected, open_counted
from bloodcount.batch import Output, count_files
from bloodcount.counting import cells_from_labels, discs
from bloodcount.exports import read_labels
from bloodcount.picture import CountPlan
from bloodcount.store import STORE
from bloodcount.synthetic import synthetic_smear

SMEAR = synthetic_smear(seed=7, shape=(200, 260), rbc=9, wbc=0, plt=0, overlap=0, pallor=0)
PLAN = CountPlan(("rbc", "wbc"))
SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from fake_finder import Darkness
from bloodcount.app import serve
serve(sys.argv[2], sys.argv[3], show=False, finder=Darkness())
"""


@pytest.fixture
def smears(tmp_path):
    for name in "ab":
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(SMEAR.image).save(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


def test_corrections_of_a_label_image():
    found = {"rbc": Darkness()(SMEAR.image)["rbc"]}
    empty = np.argwhere(found["rbc"].labels == 0)[0]
    change = Correction().add("rbc", *map(float, empty)).remove("rbc", 3, 9)
    cells = corrected(found, change)["rbc"]
    assert len(cells) == 9 == cells.labels.max()
    assert np.allclose(cells.centre[2], found["rbc"].centre[3])
    assert change.remove("rbc", 9, 9).added == ()
    none = {"rbc": cells_from_labels(np.zeros((50, 50), np.int32))}
    assert len(corrected(none, Correction((("rbc", 20, 20),)))["rbc"]) == 1


def test_a_cell_added_in_a_clump_takes_its_part_of_it():
    labels = discs(np.array([[40, 40], [40, 70], [40, 100], [40, 200]]), np.full(4, 18), (80, 240))
    clump = cells_from_labels(np.where((labels > 0) & (labels < 4), 1, (labels == 4) * 2))
    change = Correction().add("rbc", 40, 40).add("rbc", 40, 100)
    cells = corrected({"rbc": clump}, change)["rbc"]
    area = np.bincount(cells.labels.ravel())[1:]
    assert len(cells) == 4 and area.tolist() == cells.area.tolist() and area.min() > 600
    assert area.sum() == (clump.labels > 0).sum() + (cells.labels[clump.labels == 0] > 0).sum()
    assert [cells.labels[40, col] for col in (40, 70, 100, 200)] == [3, 1, 4, 2]


def test_corrections_are_kept_and_are_of_these_bytes(tmp_path, smears):
    path, out = str(smears / "a.png"), tmp_path / "out"
    opened = open_counted(path, out, PLAN, Darkness())
    change = Correction().remove("rbc", 1, 9)
    opened.save(change)
    assert open_counted(path, out, PLAN, Darkness()).load() == change
    told = pd.read_csv(out / "corrected.csv")
    assert told["count"].tolist() == [8, 9] and set(told["method"]) == {"ccl"}
    assert set(told["settings"]) == set(pd.read_csv(out / "counts.csv")["settings"])
    count_files([path], [PLAN], Output(out), overwrite=True, finder=Darkness())
    assert open_counted(path, out, PLAN, Darkness()).load() == change
    Image.fromarray(SMEAR.image[:, ::-1]).save(path)
    assert open_counted(path, out, PLAN, Darkness()).load() == Correction()


def test_a_picture_with_nothing_to_count_can_be_saved(tmp_path):
    Image.fromarray(SMEAR.image[:28, :28]).save(tmp_path / "small.png")
    opened = open_counted(str(tmp_path / "small.png"), tmp_path / "out", PLAN, Darkness())
    assert not opened.result.cells and opened.save(Correction()).exists()


def test_a_bad_path_is_a_message_and_two_presses_are_one_result(tmp_path, smears):
    page = Page(tmp_path / "nowhere", tmp_path / "out", PLAN, Darkness())
    page.button.clicks += 1
    assert page.said.object == "Choose an image first." and not (tmp_path / "out").exists()
    page.path.value = str(tmp_path / "elsewhere")
    assert "no such file" in page.said.object
    page.path.value = str(tmp_path)
    assert "There is no image to count." in page.said.object
    page.path.value = str(smears)
    assert list(page.image.options) == ["a.png", "b.png"]
    app._tapped(page, SimpleNamespace(event_name="tap", x=5.0, y=5.0))
    assert page.said.object == "Count an image first."
    page.button.clicks += 1
    page.button.clicks += 1
    assert len(pd.read_csv(tmp_path / "out" / "counts.csv")) == 2
    (smears / "a.png").write_text("no picture any more")
    page.button.clicks += 1
    assert "a.png" in page.said.object and not page.button.disabled


def test_cells_of_the_picture_before_are_not_shown_on_the_next(tmp_path, smears):
    page = Page(smears, tmp_path / "out", PLAN, Darkness())
    page.button.clicks += 1
    drawn = {cell: source.data["xs"] for cell, source in page.drawing._outlines.items()}
    assert {cell: len(xs) for cell, xs in drawn.items()} == {"rbc": 9, "wbc": 9}
    page.mode.value = "remove"
    page.click(*Darkness()(SMEAR.image)["rbc"].centre[0])
    page.save.clicks += 1
    page.undo.clicks += 1
    assert page.said.object == "Not saved yet."
    Image.fromarray(SMEAR.image[..., 1]).save(smears / "b.png")  # Grey: no white cells
    page.image.value = str(smears / "b.png")
    page.button.clicks += 1
    assert page.drawing._outlines["wbc"].data["xs"] == []
    assert len(page.drawing._outlines["rbc"].data["xs"]) == 9


def test_an_image_is_shown_when_it_is_chosen_and_corrections_are_kept(tmp_path, smears):
    page = Page(smears, tmp_path / "out", PLAN, Darkness())
    first = page.drawing._picture.data["url"]
    assert len(first) == 1 and page.counts.object == ""
    page.button.clicks += 1
    page.mode.value = "remove"
    page.click(*Darkness()(SMEAR.image)["rbc"].centre[0])
    Image.fromarray(SMEAR.image[::-1]).save(smears / "b.png")
    page.image.value = str(smears / "b.png")
    assert page.drawing._picture.data["url"] != first
    assert page.counts.object == "" and page.drawing._outlines["rbc"].data["xs"] == []
    page.image.value = str(smears / "a.png")
    page.button.clicks += 1
    assert len(page.cells["rbc"]) == 8
    (smears / "b.png").write_text("no picture any more")
    page.image.value = str(smears / "b.png")
    assert "b.png" in page.said.object


def test_a_person_chooses_what_counts(tmp_path, smears, monkeypatch):
    asked = []
    monkeypatch.setattr(app, "finder_of", lambda plan: asked.append(plan.weights) or Darkness())
    page = Page(smears, tmp_path / "out")
    star, paper = page.way.options.values()
    assert page.way.value is star and (star.weights, paper.weights) == ("elsewhere", "bloodcount")
    page.button.clicks += 1
    page.way.value = paper
    page.button.clicks += 1
    assert asked == ["elsewhere", "bloodcount"]
    assert next(iter(app.ways_to_count(paper).values())) == paper
    own = CountPlan(("rbc",), weights="bloodcount", method="cht")
    assert list(app.ways_to_count(own).values())[0] == own and len(app.ways_to_count(own)) == 3


@pytest.fixture
def address(tmp_path, smears):
    "The app in a process of its own."
    command = [sys.executable, "-c", SERVE, Path(__file__).parent, smears, tmp_path / "out"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = process.stdout.readline()
    yield re.search(r"http://127\.0\.0\.1:\d+", said).group()
    process.terminate()
    process.wait(timeout=20)


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("There is no Chromium here.")
    # Without these it calls home, and as root it has no sandbox.
    quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    with playwright.sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=chromium, args=quiet.split())
        yield window.new_page(viewport={"width": 1320, "height": 900})
        window.close()


# Where a place of the picture lies in the window, by Bokeh's own scales.
PLACE = """([row, col]) => {
    const roots = Bokeh.index.roots ?? Object.values(Bokeh.index)
    const find = (view) => view.model?.type === "Figure" ? view
        : [...(view.children?.() ?? [])].map(find).find(Boolean)
    const view = [...roots].map(find).find(Boolean)
    const frame = view.frame, box = view.canvas.el.getBoundingClientRect()
    return [box.x + frame.x_scale.compute(col), box.y + frame.y_scale.compute(row)]
}"""

# A click on Count at the moment when it is there: the rest of the page has not loaded yet.
CLICK_AT_ONCE = """() => new Promise((done) => {
    const inside = (node) => [...node.querySelectorAll("*")].flatMap((e) => [e, ...(e.shadowRoot ? inside(e.shadowRoot) : [])])
    const seek = () => {
        const button = inside(document).find((e) => e.tagName === "BUTTON" && e.textContent.trim() === "Count")
        if (button) { button.click(); done() } else requestAnimationFrame(seek)
    }
    seek()
})"""


def test_in_a_browser(tmp_path, address, browser):
    out, shots = tmp_path / "out", os.environ.get("BLOODCOUNT_SCREENSHOTS")
    errors = []
    browser.on("pageerror", lambda error: errors.append(str(error)))

    def shot(name):
        if shots:
            browser.screenshot(path=f"{shots}/{name}.png")

    def counts(n):
        browser.get_by_role("row", name=re.compile(rf"red cells\s+{n}\b")).wait_for()

    def click(row, col):
        browser.mouse.click(*browser.evaluate(PLACE, [float(row), float(col)]))

    browser.goto(address)
    browser.get_by_role("button", name="Count", exact=True).wait_for()
    shot("chosen")
    browser.get_by_role("button", name="Count", exact=True).click()
    counts(9)
    shot("counted")
    cells = Darkness()(SMEAR.image)["rbc"]
    browser.get_by_role("button", name="remove").click()
    for layer in ("white cells", "platelets"):  # They are the same cells here
        browser.get_by_role("button", name=layer).click()
    time.sleep(0.5)
    click(*cells.centre[4])
    counts(8)
    browser.get_by_role("button", name="add").click()
    time.sleep(0.5)
    click(4, 5)
    click(195, 250)  # At once: to Bokeh a double click
    counts(10)
    shot("corrected")
    browser.get_by_role("button", name="Undo").click()
    counts(9)
    browser.get_by_role("button", name="Save").click()
    browser.get_by_text("Saved:").wait_for()
    shot("saved")
    assert errors == []

    told = json.loads((out / "corrections" / "a.json").read_text())
    assert told["removed"] == [["rbc", 5]] and len(told["added"]) == 1
    assert np.allclose(told["added"][0][1:], (4, 5), atol=1)
    labels = read_labels(out / "corrections" / "a_rbc.tif")
    row, col = cells.centre[4].astype(int)
    assert labels.max() == 9 and labels[row, col] == 0 and labels[4, 5] == 9
    rois = roifile.roiread(out / "corrections" / "a.zip")
    assert sum(roi.name.startswith("rbc") for roi in rois) == 9
    assert (pd.read_csv(out / "corrections" / "a.csv")["cell"] == "rbc").sum() == 9
    assert (out / STORE).is_dir()

    browser.reload()
    browser.evaluate(CLICK_AT_ONCE)
    counts(9)
    table = pd.read_csv(out / "corrected.csv").set_index("cell")
    assert table.loc["rbc", ["found", "count"]].tolist() == [9, 9]

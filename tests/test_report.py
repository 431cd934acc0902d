"""Figures, tables and the page: what is drawn is what is there, and the same input gives the same bytes."""

import csv
import dataclasses
import hashlib
import io
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.collections
import matplotlib.text
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from bloodcount.counting import COUNTERS, count
from bloodcount.drawing import WIDTH
from bloodcount.errors import InputError
from bloodcount.networks import MODELS, OUTPUTS, do_unet, keras, segnet
from bloodcount.segmentation import truth_maps
from bloodcount.settings import load_settings
from bloodcount.studies.diagram import KINDS, network_blocks, network_figure
from bloodcount.studies.figures import (
    Pipeline,
    agreement_figure,
    busiest,
    curve_figure,
    learning_curve,
    pipelines_figure,
    smears_figure,
    write_figure,
)
from bloodcount.studies.results import RESULTS
from bloodcount.studies.tables import (
    agreement_table,
    html_page,
    latex_table,
    latex_text,
    pixel_table,
    threshold_table,
    write_table,
)
from bloodcount.synthetic import synthetic_smear

SMEAR = synthetic_smear(seed=5, shape=(160, 208), rbc=6, wbc=1, plt=2)
SIDES = {"do_unet": 188, "segnet": 128, "segnet_3x3": 128}
TABLE = pd.DataFrame(
    [["[a] & b_c", "12.50 [9.0, 14.1]", "95.36", "-3.20"], ["50 % <x>\\", "1,234", "", "0.10"]],
    columns=["* what {it} is", "here", "paper, 13 images", "bias [limits], cells"],
)


def pipeline(cell: str, **shown) -> Pipeline:
    maps, settings = truth_maps(SMEAR, cell), load_settings("paper")
    found = {method: count(maps, cell, method, settings) for method in COUNTERS}
    return Pipeline(cell, maps, found, SMEAR.counts[cell], **shown)


def history(cell: str = "rbc") -> pd.DataFrame:
    "Columns as a training writes them: Keras names an output only where there are two."
    epochs = pd.DataFrame({"stage": ["large"] * 3 + ["train"] * 4, "epoch": [1, 2, 3, 1, 2, 3, 4]})
    for output in OUTPUTS[cell]:
        name = f"{output}_" if len(OUTPUTS[cell]) > 1 else ""
        epochs[f"{name}loss"] = np.linspace(0.9, 0.2, 7)
        epochs[f"{name}soft_dice"] = np.linspace(0.2, 0.9, 7)
        epochs[f"val_{output}_soft_dice"] = np.linspace(0.1, 0.8, 7)
    return epochs.assign(score=[0.1, 0.3, 0.2, 0.4, 0.6, 0.5, 0.55])


def small_unet(depth: int = 2, convolutions: int = 1) -> keras.Model:
    "A U-Net without cropping, of any depth."
    layers, skips = keras.layers, []
    image = x = keras.Input((64, 48, 3), name="image")
    for _ in range(depth):
        for _ in range(convolutions):
            x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(16, 3, padding="same")(x)
    for skip in reversed(skips):
        x = layers.Concatenate()([skip, layers.Conv2DTranspose(8, 2, strides=2)(x)])
        x = layers.Conv2D(8, 3, padding="same")(x)
    return keras.Model(
        image, layers.Conv2D(1, 1, activation="sigmoid", name="mask")(x), name="small"
    )


def drawn_boxes(figure) -> list[str]:
    ids = (artist.get_gid() for artist in figure.findobj())
    return sorted((i for i in ids if i and i.startswith("block-")), key=lambda i: int(i[6:]))


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize("outputs", (("mask",), ("mask", "edge")))
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_of_the_graph_is_drawn(name, outputs):
    model = MODELS[name].build(outputs, size=SIDES[name])
    of_graph = [layer.name for layer in model.layers if type(layer).__name__ in KINDS]
    blocks = network_blocks(model)
    assert [block.layer for block in blocks] == of_graph
    for block in blocks:
        output = model.get_layer(block.layer).output
        shape = (output[0] if isinstance(output, list | tuple) else output).shape
        assert (*block.side, block.channels) == tuple(shape[1:])
    figure = network_figure(model, "A network")
    assert drawn_boxes(figure) == [f"block-{i}" for i in range(len(blocks))]
    assert all(str(block.side[0]) in texts(figure) for block in blocks)
    assert [block.layer for block in blocks if block.kind == "output"] == list(outputs)


def test_blocks_tell_where_maps_are_joined_and_indices_used():
    blocks = network_blocks(do_unet(size=188))
    joined = [block for block in blocks if block.skip is not None]
    assert [(block.crop, blocks[block.skip].side[0], block.joined) for block in joined] == [
        (4, 40, 128),
        (16, 88, 64),
        (40, 184, 32),
    ]
    blocks = network_blocks(segnet(("mask",), size=64))
    unpooled = [block for block in blocks if block.kind == "unpooling"]
    assert [blocks[block.indices].level - 1 for block in unpooled] == [4, 3, 2, 1, 0]
    assert [block.level for block in unpooled] == [4, 3, 2, 1, 0]


def test_a_changed_model_changes_the_figure():
    base = len(drawn_boxes(network_figure(small_unet(), "small")))
    assert len(drawn_boxes(network_figure(small_unet(convolutions=2), "small"))) == base + 2
    assert len(drawn_boxes(network_figure(small_unet(depth=3), "small"))) == base + 4
    assert "64×48" in texts(network_figure(small_unet(), "small"))


def test_a_layer_without_a_drawing_is_refused():
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    with pytest.raises(InputError, match="GlobalAveragePooling2D"):
        network_blocks(model)


def all_figures() -> dict:
    rows = [(m, s, 5, n) for m in COUNTERS for s, n in (("train", 4), ("test", 6))]
    counts = pd.DataFrame(rows, columns=["method", "split", "real", "predicted"])
    curve = pd.DataFrame({"x": [1, 2, 1, 2], "y": [3, 4, 5, 6], "by": ["a", "a", "b", "b"]})
    return {
        "network": network_figure(small_unet(), "small"),
        "agreement": agreement_figure(counts, "lesson"),
        "pipelines": pipelines_figure([pipeline("rbc"), pipeline("wbc", image=SMEAR.image)]),
        "smears": smears_figure([SMEAR]),
        "learning": learning_curve(history(), "lesson"),
        "curve": curve_figure(curve, "x", "y", "by"),
    }


@pytest.mark.parametrize("suffix", (".png", ".svg", ".pdf"))
def test_the_same_figure_gives_the_same_bytes(tmp_path, suffix):
    first, second = all_figures(), all_figures()
    for name in first:
        for number, figure in enumerate((first[name], first[name], second[name])):
            write_figure(tmp_path / f"{number}{suffix}", figure, "profile smoke")
        written = {(tmp_path / f"{number}{suffix}").read_bytes() for number in range(3)}
        assert len(written) == 1, name
        if suffix == ".svg":
            root = ElementTree.fromstring(written.pop())
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            kept = " ".join(root.find("{*}metadata").itertext())
            assert "profile smoke" in kept and not re.search(r"\d{4}-\d\d-\d\d|matplotlib", kept)


def test_another_process_writes_the_same_diagram(tmp_path):
    code = (
        "import sys; from bloodcount.models import do_unet; from bloodcount.report import write_figure;"
        "from bloodcount.diagram import network_figure;"
        "write_figure(sys.argv[1], network_figure(do_unet(size=188), 'DO-U-Net'), 'a test')"
    )
    elsewhere, here = tmp_path / "elsewhere.svg", tmp_path / "here.svg"
    subprocess.run([sys.executable, "-c", code, elsewhere], check=True, capture_output=True)
    write_figure(here, network_figure(do_unet(size=188), "DO-U-Net"), "a test")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (elsewhere, here)]
    assert digests[0] == digests[1]


def test_figures_can_be_read_at_page_width():
    for name, figure in all_figures().items():
        assert figure.get_figwidth() <= WIDTH, name
        shown = [
            t for t in figure.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text()
        ]
        assert min(t.get_fontsize() for t in shown) >= 8, name


def test_png_keeps_its_source_and_its_white(tmp_path):
    write_figure(tmp_path / "a.png", learning_curve(history(), "lesson"), "profile smoke")
    picture = PIL.Image.open(tmp_path / "a.png")
    assert picture.text["Description"] == "profile smoke"
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(InputError, match="png"):
        write_figure(tmp_path / "a.gif", learning_curve(history(), "lesson"), "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("cell", ("rbc", "wbc"))
def test_learning_curve_marks_the_best_epoch_of_each_stage(cell):
    figure = learning_curve(history(cell), "lesson")
    labels = {text.get_text() for text in figure.findobj(matplotlib.text.Text)}
    assert {f"{o}, {i}" for o in OUTPUTS[cell] for i in ("learnt", "validation")} <= labels
    assert {"best: 2", "large", "train"} <= labels
    for panel in figure.axes:
        places = {line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == "--"}
        assert places == {2, 5}
    loss, dice = figure.axes
    assert max(max(line.get_ydata(), default=0) for line in dice.lines) <= 1
    assert any(np.isclose(line.get_ydata(), 0.9).any() for line in loss.lines)


def test_curves_with_and_without_intervals():
    frame = pd.DataFrame(
        {"x": [2, 1, 1, 2], "y": [3.0, 4, 5, 6], "by": list("aabb"), "part": list("ppqq")}
    )
    figure = curve_figure(frame, "x", "y", "by", panel="part", mark=1)
    assert [panel.get_title() for panel in figure.axes] == ["p", "q"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2]
    assert not figure.findobj(matplotlib.collections.PolyCollection)
    figure = curve_figure(frame.assign(low=0, high=9), "x", "y", "by")
    assert len(figure.findobj(matplotlib.collections.PolyCollection)) == 2


def test_pipeline_shows_the_photograph_only_if_it_is_given():
    rbc, wbc = pipeline("rbc"), pipeline("wbc", image=SMEAR.image)
    titles = [[title for title, _ in row] for row in rbc.rows()]
    assert titles[0] == ["mask", "edge", "mask minus edge"] and len(titles[1]) == len(COUNTERS)
    assert all(abs(p.astype(int) - SMEAR.image).mean() > 20 for _, p in rbc.rows()[1])
    assert [title for title, _ in wbc.rows()[0]][:2] == ["smear", "mask"]
    assert np.array_equal(wbc.rows()[0][0][1], SMEAR.image)
    unknown = dataclasses.replace(rbc, real=None)
    assert "None" not in texts(pipelines_figure([unknown]))


def test_a_window_shows_the_most_cells():
    centre = np.array([[10, 10], [70, 80], [75, 90], [72, 85]])
    window = busiest(centre, (100, 120), (40, 40))
    assert [(part.stop - part.start) for part in window] == [40, 40]
    assert (
        sum(
            window[0].start <= r < window[0].stop and window[1].start <= c < window[1].stop
            for r, c in centre
        )
        == 3
    )
    assert busiest(np.zeros((0, 2)), (100, 120), (500, 40)) == (slice(0, 100), slice(40, 80))
    shown = pipeline("rbc", window=(slice(0, 50), slice(10, 90))).rows()
    assert {picture.shape[:2] for row in shown for _, picture in row} == {(50, 80)}


def test_a_table_says_the_same_in_its_three_files(tmp_path):
    write_table(tmp_path / "table_a", TABLE, "A caption, 50 %.", "profile smoke")
    with open(tmp_path / "table_a.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [list(TABLE.columns), *TABLE.to_numpy().tolist()]
    markdown, latex = ((tmp_path / f"table_a{s}").read_text() for s in (".md", ".tex"))
    assert all(cell in markdown for row in rows[1:] for cell in row)
    assert all(latex_text(cell) in latex for row in rows[1:] for cell in row)
    assert r"\caption{A caption, 50 \%.}" in latex and r"\label{table_a}" in latex


def test_latex_escapes_and_aligns():
    assert latex_text(r"a_b & {c} #1 \ ~^ -2 pre-2 [-3, 4]") == (
        r"a\_b \& \{c\} \#1 \textbackslash{} \textasciitilde{}\textasciicircum{} $-$2 pre-2 [$-$3, 4]"
    )
    latex = latex_table(TABLE, "", "", "t")
    assert r"\begin{tabular}{lrrr}" in latex
    assert not re.search(r"\\\\\s*[*\[]", latex), "read as an argument of the line break"
    for name in ("table", "tabular"):
        assert latex.count(rf"\begin{{{name}}}") == latex.count(rf"\end{{{name}}}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
@pytest.mark.parametrize("package", ("", r"\usepackage{graphicx}"))
def test_latex_compiles(tmp_path, package):
    wide = pd.concat([TABLE, TABLE, TABLE], axis=1)
    tables = [
        latex_table(t, "50 % of_it", "a source", f"t{i}")
        for i, t in enumerate((TABLE, wide, pd.DataFrame()))
    ]
    document = [
        r"\documentclass{article}",
        package,
        r"\begin{document}",
        *tables,
        r"\end{document}",
    ]
    (tmp_path / "all.tex").write_text("\n".join(document))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert ("Overfull" in done.stdout) == (not package)


class Page(HTMLParser):
    "What a page holds; fails where tags do not match."

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.cells, self.said = [], [], [], io.StringIO()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.write(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_page_holds_everything_and_points_nowhere(tmp_path):
    write_table(tmp_path / "table_a", TABLE, "", "")
    write_table(tmp_path / "table_b", pd.DataFrame(), "", "")
    write_figure(tmp_path / "figure.svg", learning_curve(history(), "lesson"), "")
    write_figure(tmp_path / "figure.png", learning_curve(history(), "lesson"), "")
    items = [
        ("a", "A <table> & more", tmp_path / "table_a.csv", None, "<script>alert(1)</script>"),
        ("b", "Empty", tmp_path / "table_b.csv", tmp_path / "figure.svg", ""),
        ("c", "Picture", None, tmp_path / "figure.png", ""),
        ("d", 'Later "quoted"', tmp_path / "none.csv", None, ""),
    ]
    text = html_page("Results & such", "One.\n\nTwo < three.", items)
    page = Page(text)
    assert page.cells == [*TABLE.columns, *TABLE.to_numpy().ravel()]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert ids == ["a", "b", "c", "d"] and links == ["#a", "#b", "#c", "#d"]
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert [source[:19] for source in pictures] == ["data:image/svg+xml;", "data:image/png;base"]
    outside = re.sub(r"data:[^\"]*", "", text)
    assert not re.search(r"https?:|//|@import|url\(", outside)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe"})
    assert "alert(1)" in page.said.getvalue() and "Not made yet." in page.said.getvalue()
    printed = [
        a for tag, a in page.tags if tag in ("td", "th") and "paper" in (a.get("class") or "")
    ]
    assert len(printed) == 3
    assert text == html_page("Results & such", "One.\n\nTwo < three.", items)


def test_page_refuses_an_anchor_twice():
    with pytest.raises(InputError, match="same"):
        html_page("", "", [("same", "A", None, None, ""), ("same", "B", None, None, "")])


def test_report_needs_no_backend():
    "Tables and the page are made without loading one."
    code = "import sys, bloodcount.report, bloodcount.diagram; assert not {'keras', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def results(*rows) -> pd.DataFrame:
    "Long form, of platelets by our SegNet, profile paper."
    columns = ["table", "method", "quantity", "images", "value"]
    known = {"model": "segnet", "weights": "bloodcount", "cell": "plt", "paper": np.nan}
    frame = pd.DataFrame(rows, columns=columns).assign(profile="paper", **known)
    return frame[RESULTS]


def test_agreement_with_one_truth_is_not_shown_as_that_with_another():
    quantities = ("mae", "mape", "bias", "ba_bias", "ba_low", "ba_high", "ccc", "poisson_share")
    rows = [
        (table, "cht", quantity, "test", value)
        for table, value in (("S6", 0.25), ("S8", 0.5))
        for quantity in quantities
    ]
    assert list(agreement_table(results(*rows))["CCC"]) == ["0.250", "0.500"]


def test_no_column_of_pixel_scores_is_empty_and_no_rows_make_no_table():
    known = [("P1", "", quantity, "test", 0.5) for quantity in ("accuracy", "dice")]
    assert list(pixel_table(results(*known)))[3:] == ["accuracy", "Dice"]
    assert pixel_table(results()).empty and threshold_table(results()).empty

"""Plots: what is drawn is what is in the frame, and the same frame gives the same bytes."""

import re
import xml.etree.ElementTree as ElementTree

import matplotlib.collections
import matplotlib.colors
import matplotlib.text
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from bloodcount.counting import COUNTERS
from bloodcount.drawing import METHOD_COLOURS, METHOD_TITLES, WIDTH
from bloodcount.errors import InputError
from bloodcount.networks import OUTPUTS
from bloodcount.studies.figures import (
    agreement_figure,
    bland_altman_figure,
    curve_figure,
    drift_figure,
    learning_curve,
    magnification_figure,
    nothing_to_draw,
    recall_figure,
    training_curves,
    write_figure,
)

COUNTS = pd.DataFrame(
    [
        (f"Im{i}", split, "rbc", method, real, real + error)
        for error, method in enumerate(COUNTERS)
        for i, (split, real) in enumerate([("train", 4), ("train", 9), ("test", 30), (np.nan, 1)])
    ],
    columns=["image", "split", "cell", "method", "real", "predicted"],
)
BEST = pd.concat(
    COUNTS[COUNTS["method"] == method].assign(cell=cell)
    for cell, method in {"rbc": "cht", "wbc": "watershed", "plt": "ccl"}.items()
)
BEST.loc[BEST["image"] == "Im2", "predicted"] += 2
DRIFTS = pd.DataFrame(
    [
        ("wbc", "watershed", network, kind, level, drift, 13)
        for network in ("ours", "theirs")
        for kind, level, drift in [("hue", -20, -8), ("hue", 20, 0), ("gamma", 0.6, 625)]
    ],
    columns=["cell", "method", "network", "kind", "level", "drift", "cells"],
)
SCALES = pd.DataFrame(
    [
        ("ours", method, "as it is", scale, 90 * scale)
        for method in ("cht", "watershed")
        for scale in (0.5, 1)
    ],
    columns=["network", "method", "way", "scale", "accuracy"],
)
RECALLS = pd.DataFrame(
    [
        (side, label, method, 0.9, 1200)
        for side in ("train", "test")
        for label in ("0", "3 or more")
        for method in ("ccl", "ccl_mask")
    ],
    columns=["images", "neighbours", "method", "recall", "cells"],
)
NAMES = ("agreement", "bland_altman", "learning", "drift", "magnification", "recall", "nothing")


def history(cell: str = "rbc") -> pd.DataFrame:
    "Columns as a training writes them: Keras names an output only where there are two."
    epochs = pd.DataFrame({"stage": ["large"] * 3 + ["train"] * 4, "epoch": [1, 2, 3, 1, 2, 3, 4]})
    for output in OUTPUTS[cell]:
        name = f"{output}_" if len(OUTPUTS[cell]) > 1 else ""
        epochs[f"{name}loss"] = np.linspace(0.9, 0.2, 7)
        epochs[f"{name}soft_dice"] = np.linspace(0.2, 0.9, 7)
        epochs[f"val_{output}_soft_dice"] = np.linspace(0.1, 0.8, 7)
    return epochs.assign(score=[0.1, 0.3, 0.2, 0.4, 0.6, 0.5, 0.55])


def all_figures() -> dict:
    figures = {
        "agreement": agreement_figure(COUNTS, "lesson"),
        "bland_altman": bland_altman_figure(BEST, "lesson"),
        "learning": learning_curve(history(), "lesson"),
        "drift": drift_figure(DRIFTS, "lesson"),
        "magnification": magnification_figure(SCALES, "lesson"),
        "recall": recall_figure(RECALLS, "lesson"),
        "nothing": nothing_to_draw("lesson"),
    }
    assert tuple(figures) == NAMES
    return figures


def texts(figure) -> list[str]:
    shown = figure.findobj(matplotlib.text.Text)
    return [text.get_text() for text in shown if text.get_visible() and text.get_text()]


def colours(panel) -> set[str]:
    "Of its marks, as they are named in `drawing`."
    marks = [c for c in panel.collections if len(c.get_offsets()) and c.get_zorder() == 3]
    edges = [matplotlib.colors.to_hex(c.get_edgecolor()[0]) for c in marks]
    return {edge.upper() for edge in edges}


def points(panel) -> int:
    marks = [c for c in panel.collections if c.get_zorder() == 3]
    return sum(len(c.get_offsets()) for c in marks)


@pytest.mark.parametrize("suffix", (".png", ".svg", ".pdf"))
def test_the_same_figure_gives_the_same_bytes(tmp_path, suffix):
    first, second = all_figures(), all_figures()
    for name in ("agreement", "learning", "drift"):
        again = [first[name]] if name == "drift" else []  # A second layout would move its parts
        figures = [first[name], second[name], *again]
        for number, figure in enumerate(figures):
            write_figure(tmp_path / f"{number}{suffix}", figure, "profile smoke")
        written = {(tmp_path / f"{number}{suffix}").read_bytes() for number in range(len(figures))}
        assert len(written) == 1, name
        if suffix == ".svg":
            root = ElementTree.fromstring(written.pop())
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            kept = " ".join(root.find("{*}metadata").itertext())
            assert "profile smoke" in kept and not re.search(r"\d{4}-\d\d-\d\d|matplotlib", kept)


def test_a_plot_is_written_as_png_and_as_vector(tmp_path):
    write_figure(tmp_path / "a", all_figures()["drift"], "profile paper")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png"]
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert all(path.stat().st_size < 100_000 for path in tmp_path.iterdir())


def test_a_bad_format_writes_nothing(tmp_path):
    for path, formats in ((tmp_path / "a.gif", (".png",)), (tmp_path / "a", (".png", ".gif"))):
        with pytest.raises(InputError, match="gif"):
            write_figure(path, nothing_to_draw(""), "", formats)
    assert not list(tmp_path.iterdir())


def test_only_another_profile_is_printed_on_a_figure(tmp_path):
    "As ink below the figure: the paper's own source is kept in the file alone."
    sizes = {}
    for source in ("profile paper, some data", "profile smoke, some data"):
        write_figure(tmp_path / "a.png", nothing_to_draw("lesson"), source)
        picture = PIL.Image.open(tmp_path / "a.png")
        assert picture.text["Description"] == source
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        sizes[source.split(",")[0]] = (np.array(picture.convert("L")) < 200).sum()
    assert sizes["profile smoke"] > sizes["profile paper"] > 0


def test_figures_can_be_read_at_page_width():
    for name, figure in all_figures().items():
        assert figure.get_figwidth() <= WIDTH, name
        shown = [
            t for t in figure.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text()
        ]
        assert min(t.get_fontsize() for t in shown) >= 8, name


def words(figure) -> list[matplotlib.text.Text]:
    "What can be read on a figure: labels of ticks out of view are not drawn."
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    hidden = set()
    for axis in axes:
        low, high = sorted(axis.get_view_interval())
        hidden |= {t.label1 for t in axis.get_major_ticks() if not low <= t.get_loc() <= high}
    shown = [t for t in figure.findobj(matplotlib.text.Text) if t.get_visible() and t not in hidden]
    return [t for t in shown if t.get_text().strip() and t.get_window_extent().width]


@pytest.mark.parametrize("name", NAMES)
def test_no_words_lie_on_others_or_leave_the_page(name):
    figure = all_figures()[name]
    figure.draw_without_rendering()
    shown = [(text.get_text(), text.get_window_extent()) for text in words(figure)]
    for i, (one, box) in enumerate(shown):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, one
        for other, its in shown[:i]:
            across = min(box.x1, its.x1) - max(box.x0, its.x0)
            down = min(box.y1, its.y1) - max(box.y0, its.y0)
            assert across < 1 or down < 1, (one, other)


def test_every_method_has_its_own_colour_and_all_its_images():
    figure = agreement_figure(COUNTS, "lesson")
    assert [panel.get_title().split("\n")[0] for panel in figure.axes] == [
        METHOD_TITLES[method] for method in METHOD_TITLES if method in COUNTERS
    ]
    for panel, method in zip(figure.axes, METHOD_TITLES):
        assert colours(panel) == {METHOD_COLOURS[method]}
        assert points(panel) == 4 and "4 images" in panel.get_title()


def test_bland_altman_has_the_colour_of_the_method_and_names_its_limits():
    figure = bland_altman_figure(BEST, "lesson")
    for panel, method in zip(figure.axes, ("cht", "watershed", "ccl")):
        assert colours(panel) == {METHOD_COLOURS[method]}
        assert METHOD_TITLES[method] in panel.get_title()
    values = [text.get_text() for text in figure.axes[1].texts]
    assert values == ["+2.5", "+0.5", "+4.5"]  # Mean and limits of errors of 2, 2, 2 and 4


def test_one_image_counted_twice_by_a_method_is_refused():
    "As when red cells are counted on two maps, and both are drawn as one."
    with pytest.raises(InputError, match="Im0 is counted twice by CHT"):
        agreement_figure(pd.concat([COUNTS, COUNTS.assign(cell="rbc_mask")]), "lesson")


def test_images_at_one_place_make_one_larger_mark():
    many = pd.DataFrame(
        {"image": range(9), "split": "train", "method": "cht", "real": 1, "predicted": 1}
    )
    few = many.assign(real=[*[1] * 8, 2], predicted=[*[1] * 8, 2])
    sizes = [agreement_figure(f, "").axes[0].collections[1].get_sizes() for f in (many, few)]
    assert len(sizes[0]) == 1 and len(sizes[1]) == 2 and sizes[1].max() > 2 * sizes[1].min()


def test_no_counts_no_panels():
    for figure in (
        agreement_figure(COUNTS[:0], "A"),
        bland_altman_figure(BEST[:0], "A"),
        drift_figure(DRIFTS[:0], "A"),
    ):
        assert "No image here has what this figure needs." in texts(figure)


@pytest.mark.parametrize("cell", ("rbc", "wbc"))
def test_learning_curve_marks_the_best_epoch_of_each_stage(cell):
    figure = learning_curve(history(cell), "lesson")
    said = texts(figure)
    for output in OUTPUTS[cell]:
        assert {f"{output}, learnt images", f"{output}, validation images"} <= set(said)
    assert any(
        "stage 1: large, 3 epochs, best 2" in text and "stage 2: train, 4 epochs, best 2" in text
        for text in said
    )
    for panel in figure.axes[:2]:
        marks = [line for line in panel.lines if line.get_gid() == "best"]
        assert [line.get_xdata()[0] for line in marks] == [2, 5]
        assert all(line.get_ydata()[0] > 1 for line in marks)  # Above the panel: it covers nothing
    loss, dice = figure.axes[:2]
    inside = [line for line in dice.lines if line.get_gid() != "best"]
    assert max(max(line.get_ydata(), default=0) for line in inside) <= 1
    assert any(np.isclose(line.get_ydata(), 0.9).any() for line in loss.lines)


def test_training_curves_have_a_panel_for_each_network_over_its_own_steps():
    figure = training_curves({"one": (history("rbc"), 50), "two": (history("wbc"), 250)})
    shown = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in shown] == ["one", "two"]
    for panel, steps, outputs in zip(shown, (50, 250), (OUTPUTS["rbc"], OUTPUTS["wbc"])):
        marks = [line for line in panel.lines if line.get_gid() == "best"]
        assert [line.get_xdata()[0] for line in marks] == [2 * steps, 5 * steps]
        labels = {line.get_label() for line in panel.lines}
        assert {f"{output}, validation images" for output in outputs} <= labels
    assert "best epoch" in texts(figure)


def test_curves_are_drawn_where_they_belong():
    frame = pd.DataFrame(
        {"x": [2, 1, 1, 2], "y": [3.0, 4, 5, 6], "by": list("aabb"), "part": list("ppqq")}
    )
    figure = curve_figure(frame, "x", "y", "by", "part", styles={"b": {"color": "#010203"}})
    assert [panel.get_title() for panel in figure.axes] == ["p", "q"]
    (a, none), (nothing, b) = (panel.lines for panel in figure.axes)
    assert list(a.get_xdata()) == [1, 2] and list(a.get_ydata()) == [4, 3]
    assert not len(none.get_xdata()) and not len(nothing.get_xdata())
    assert b.get_color() == "#010203" and list(b.get_ydata()) == [5, 6]


def test_drift_is_nothing_at_the_unchanged_image_and_says_how_many_cells_there_were():
    figure = drift_figure(DRIFTS, "lesson")
    hue, gamma = figure.axes
    assert dict(zip(*hue.lines[0].get_data())) == {-20: -8, 0: 0, 20: 0}
    assert dict(zip(*gamma.lines[0].get_data())) == {0.6: 625, 1: 0}
    assert gamma.get_yscale() == "symlog" and hue.get_ylim()[1] > 625 > 0 > hue.get_ylim()[0]
    assert "White cells; unchanged: 13 by ours, Watershed, 13 by theirs, Watershed" in texts(figure)


def test_recall_says_how_many_cells_there_are_in_the_colours_of_the_methods():
    figure = recall_figure(RECALLS, "lesson")
    assert "0\n(1,200)" in texts(figure)
    drawn = [line.get_color() for line in figure.axes[0].lines]
    assert drawn == [METHOD_COLOURS["ccl"], METHOD_COLOURS["ccl_mask"]]

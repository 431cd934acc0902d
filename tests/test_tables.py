"""Tables and the page: what is printed is what is there."""

import csv
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bloodcount.errors import InputError
from bloodcount.studies.figures import nothing_to_draw, write_figure
from bloodcount.studies.results import RESULTS
from bloodcount.studies.tables import (
    FOOTNOTES,
    agreement_table,
    counted_by,
    html_page,
    latex_table,
    latex_text,
    marks,
    pixel_table,
    threshold_table,
    write_table,
)

TABLE = pd.DataFrame(
    [["[a] & b_c", "12.50 [9.0, 14.1]", "95.36", "-3.20"], ["50 % <x>\\", "1,234", "", "0.10"]],
    columns=["* what {it} is", "here", "paper, 13 images", "bias [limits], cells"],
)


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


def counts_by(model: str, weights: str, cell: str, counting: str, method: str) -> list[str]:
    return list(counted_by((model, weights, "", cell, counting, method)).values())[:2]


def test_late_choices_are_marked_where_their_numbers_stand():
    ours = "do_unet", "bloodcount"
    assert marks(*ours, "wbc", "watershed") == ("†", "‡") and marks(*ours, "rbc", "watershed") == (
        "",
        "",
    )
    assert counts_by("do_unet", "authors", "wbc", "tuned", "watershed")[1] == "Watershed‡"
    assert counts_by("do_unet", "authors", "wbc", "published", "watershed")[1] == "Watershed"
    network, counter = counts_by(*ours, "wbc", "tuned", "cht")
    assert network.endswith("†") and counter == "CHT"


@pytest.mark.parametrize("shown", ["Watershed", "Watershed‡", "our DO-U-Net†, Watershed‡"])
def test_a_table_explains_the_marks_that_it_has_and_no_others(tmp_path, shown):
    write_table(tmp_path / "table_a", pd.DataFrame({"by": [shown]}), "A caption.", "profile smoke")
    for suffix in (".md", ".tex"):
        text = (tmp_path / f"table_a{suffix}").read_text()
        assert [mark for mark in FOOTNOTES if f"{mark} " in text] == [
            m for m in FOOTNOTES if m in shown
        ]


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
    write_figure(tmp_path / "figure.svg", nothing_to_draw("lesson"), "")
    write_figure(tmp_path / "figure.png", nothing_to_draw("lesson"), "")
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
    code = "import sys, bloodcount.studies.tables, bloodcount.studies.pictures, bloodcount.studies.diagram; assert not {'keras', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def results(*rows) -> pd.DataFrame:
    "Long form, of platelets by our SegNet, profile paper."
    columns = ["table", "map", "method", "quantity", "images", "value"]
    known = {
        "model": "segnet",
        "weights": "bloodcount",
        "recipe": "best",
        "cell": "plt",
        "counting": "tuned",
    }
    known |= {"condition": "", "level": np.nan, "n": 30, "paper": np.nan, "profile": "paper"}
    return pd.DataFrame(rows, columns=columns).assign(**known)[RESULTS]


def test_agreement_with_one_truth_is_not_shown_as_that_with_another():
    quantities = ("mae", "mape", "bias", "ba_bias", "ba_low", "ba_high", "ccc", "poisson_share")
    rows = [
        (table, "", "cht", quantity, "test", value)
        for table, value in (("counting_plt_count", 0.25), ("counting_plt_mask_components", 0.5))
        for quantity in quantities
    ]
    assert list(agreement_table(results(*rows))["CCC"]) == ["0.250", "0.500"]


def test_no_column_of_pixel_scores_is_empty_and_no_rows_make_no_table():
    known = [("pixels", "mask", "", quantity, "test", 0.5) for quantity in ("accuracy", "dice")]
    assert list(pixel_table(results(*known)))[3:] == ["accuracy", "Dice"]
    assert pixel_table(results()).empty and threshold_table(results()).empty

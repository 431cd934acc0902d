"""Pictures of fields: annotations without photographs, one scale, arrows from each map to its methods."""

import matplotlib.patches
import matplotlib.text
import numpy as np
import pandas as pd
import pytest

from bloodcount.drawing import WIDTH
from bloodcount.segmentation import truth_maps
from bloodcount.settings import load_settings
from bloodcount.studies.figures import write_figure
from bloodcount.studies.pictures import (
    MAP_COLOURS,
    annotation,
    busiest,
    example_panels,
    field_panels,
    field_to_show,
    schema_figure,
    schema_of,
    smears_figure,
)
from bloodcount.synthetic import synthetic_smear

SMEAR = synthetic_smear(seed=5, shape=(160, 208), rbc=6, wbc=1, plt=2)
PUBLISHED = load_settings("paper").published["do_unet"]


def schema(cell: str, **shown):
    return schema_of(SMEAR, cell, truth_maps(SMEAR, cell), PUBLISHED[cell], **shown)


def pictures(figure) -> list[np.ndarray]:
    return [np.asarray(ax.get_images()[0].get_array()) for ax in figure.axes if ax.get_images()]


def texts(figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


def colours_of(image: np.ndarray) -> set[tuple]:
    return {tuple(colour) for colour in image.reshape(-1, 3)}


def test_an_annotation_holds_no_pixel_of_its_photograph():
    other = synthetic_smear(seed=5, shape=(160, 208), rbc=6, wbc=1, plt=2, stain=0.4)
    assert (other.image != SMEAR.image).any()
    assert np.array_equal(annotation(other), annotation(SMEAR))
    assert len(colours_of(annotation(SMEAR))) <= 5


def test_figure_1_has_one_scale_a_key_and_photographs_of_synthetic_smears_alone():
    real = field_panels([SMEAR, SMEAR, SMEAR], (100, 130))
    figure = smears_figure(real + example_panels(SMEAR, (100, 130)))
    shown = pictures(figure)
    assert {picture.shape for picture in shown} == {(100, 130, 3)}
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes}) == 1
    drawn = [len(colours_of(picture)) <= 5 for picture in shown]
    assert drawn == [True, True, True, False, True, False]
    assert {"red cells", "white cells", "platelets", "annotated edge of a red cell"} <= set(
        texts(figure)
    )
    assert texts(figure).count("200 px") == 6
    photographs = field_panels([SMEAR], (100, 130), photographs=True)
    assert len(colours_of(photographs[0].picture)) > 100


def test_a_smaller_field_keeps_the_scale():
    small = synthetic_smear(seed=6, shape=(96, 128), rbc=2, wbc=0, plt=0)
    figure = smears_figure(field_panels([SMEAR, small], (160, 208)), bar=50)
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes if ax.get_images()}) == 1


def test_a_schema_shows_no_photograph_unless_it_is_asked_to():
    plain, licensed = schema("wbc"), schema("wbc", photograph=True)
    assert len(colours_of(plain.field.picture)) <= 5
    assert np.array_equal(licensed.field.picture, SMEAR.image)
    methods = plain.panels()[1]
    assert [panel.title.split(":")[0] for panel in methods] == ["CHT", "CCL", "Watershed", "EDT"]
    for panel, with_photograph in zip(methods, licensed.panels()[1]):
        assert np.array_equal(panel.picture, with_photograph.picture)


@pytest.mark.parametrize("cell", ("rbc", "wbc"))
def test_each_method_has_an_arrow_from_each_map_that_it_takes(cell):
    one = schema(cell)
    figure = schema_figure([one])
    page = figure.axes[0]
    lanes = [
        (line.get_color(), line.get_xydata()) for line in page.lines if len(line.get_xdata()) == 4
    ]
    assert len(lanes) == sum(len(names) for names in one.taken.values())
    boxes = {
        ax.get_xlabel() or ax.get_title(): ax.get_position()
        for ax in figure.axes
        if ax.get_images()
    }
    for colour, way in lanes:
        name = next(name for name, its in MAP_COLOURS.items() if its == colour)
        start = boxes[name.replace("_", " ")]
        assert start.x0 * WIDTH < way[0][0] < start.x1 * WIDTH
        reached = [
            method for method in one.found
            for title, box in boxes.items()
            if title.lower().startswith(method) and box.x0 * WIDTH < way[-1][0] < box.x1 * WIDTH
        ]  # fmt: skip
        assert len(reached) == 1 and name in one.taken[reached[0]]


def test_counts_and_truth_are_of_the_whole_field_and_the_window_says_so():
    whole, part = schema("rbc"), schema("rbc", size=(60, 80))
    assert whole.title == "Red cells of Syn005_0, 6 in truth"
    assert part.title.endswith("80 x 60 px of it are shown, and counts of all of it")
    assert [p.title for p in whole.panels()[1]] == [p.title for p in part.panels()[1]]
    assert {panel.picture.shape[:2] for row in part.panels() for panel in row} == {(60, 80)}


def test_a_window_shows_the_most_cells():
    centre = np.array([[10, 10], [70, 80], [75, 90], [72, 85]])
    rows, cols = busiest(centre, (100, 120), (40, 40))
    assert [rows.stop - rows.start, cols.stop - cols.start] == [40, 40]
    inside = [rows.start <= r < rows.stop and cols.start <= c < cols.stop for r, c in centre]
    assert sum(inside) == 3
    assert busiest(np.zeros((0, 2)), (100, 120), (500, 40)) == (slice(0, 100), slice(40, 80))


def test_the_field_is_chosen_by_its_count_among_test_images():
    index = pd.DataFrame(
        {
            "wbc_count": [3, 45, 60, None, 45],
            "wbc_split": ["test", "test", "train", "test", "test"],
        },
        index=["a", "c", "d", "e", "b"],
    )
    assert field_to_show(index, "wbc", most=True) == "b"
    assert field_to_show(index, "wbc", most=False) == "a"
    assert field_to_show(index.assign(wbc_split="train"), "wbc", most=True) == "d"


def test_the_same_field_gives_the_same_bytes(tmp_path):
    for number in range(2):
        write_figure(
            tmp_path / f"{number}.png",
            schema_figure([schema("rbc"), schema("plt")]),
            "profile paper",
        )
        write_figure(
            tmp_path / f"smears{number}.png",
            smears_figure(field_panels([SMEAR], (90, 90))),
            "profile paper",
        )
    for name in ("", "smears"):
        first, second = ((tmp_path / f"{name}{number}.png").read_bytes() for number in range(2))
        assert first == second

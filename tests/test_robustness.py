"Pictures that are worse in known ways, and the drift of counts."

import numpy as np
import pytest

from bloodcount.counting import Cells, cells_from_discs
from bloodcount.errors import SettingsError
from bloodcount.studies import colour, protocol, robustness
from bloodcount.studies.colour import drift_rows
from bloodcount.studies.results import joined
from bloodcount.studies.star_network import STAR
from bloodcount.synthetic import synthetic_smear

GREY = np.full((80, 100, 3), 120, np.uint8)


@pytest.fixture
def run(sample_run) -> protocol.Run:
    return sample_run()


def fooled(image: np.ndarray) -> dict[str, Cells]:
    "Four cells in every picture, and one more where a row of it is black."
    many = 4 + (image.sum(axis=2) == 0).all(axis=1).any()
    cells = cells_from_discs(np.full((many, 2), 9), np.full(many, 3), image.shape[:2])
    return dict.fromkeys(("rbc", "wbc", "plt"), cells)


def test_pictures_get_worse_as_they_are_told():
    dot = GREY.copy()
    dot[40, 50] = 255
    blurred = robustness.worse(dot, "blur", 2)
    assert blurred[40, 50, 0] < 130 and blurred[40, 53, 0] > 120
    assert abs(robustness.worse(GREY, "noise", 8).std() - 8) < 0.2
    assert np.array_equal(robustness.worse(GREY, "noise", 8), robustness.worse(GREY, "noise", 8))
    margin = robustness.worse(GREY, "black margin", 20)
    assert margin.shape == (120, 140, 3) and np.array_equal(margin[20:-20, 20:-20], GREY)
    assert margin.sum() == GREY.sum()
    image = synthetic_smear(1, (128, 160), rbc=4, wbc=1, plt=1).image
    error = [
        np.abs(robustness.worse(image, "JPEG", quality).astype(int) - image).mean()
        for quality in (100, 75, 25)
    ]
    assert error[0] < error[1] < error[2] < 20
    assert np.array_equal(robustness.worse(image, "hue", 10), colour.shifted(image, "hue", 10))
    with pytest.raises(SettingsError, match="no change 'blurr'. Did you mean 'blur'"):
        robustness.worse(image, "blurr", 1)


def test_every_change_has_a_unit_and_a_place_of_rest_outside_of_its_levels():
    assert list(robustness.CHANGES) == list(robustness.UNITS) == list(robustness.AT_REST)
    for kind, levels in robustness.CHANGES.items():
        assert len(levels) == 4 and robustness.AT_REST[kind] not in levels


def test_a_margin_that_is_counted_is_a_drift(run):
    "It is one cell more than the four that there are, and nothing else moves the count."
    pictures = robustness.pictures_of(run)
    assert len(pictures) == 1 + len(robustness.CHANGES), "one test smear, one level each"
    counts = robustness.star_counts(run, pictures, fooled)["rbc"]
    seen = counts.set_index("kind")["predicted"]
    assert seen.pop("black margin") == 5 and set(seen) == {4}
    results = drift_rows(run, robustness.ROBUSTNESS, STAR, "rbc", "stars", counts)
    drift = results[results["quantity"] == "drift"].set_index("condition")["value"]
    assert drift["black margin"] == pytest.approx(25) and drift["noise"] == 0
    assert set(drift.index) == set(robustness.CHANGES)


def test_counts_are_kept(run):
    pictures, looked = robustness.pictures_of(run), []

    def find(image: np.ndarray) -> dict[str, Cells]:
        looked.append(1)
        return fooled(image)

    first = robustness.star_counts(run, pictures, find)
    again = robustness.star_counts(run, pictures, find)
    assert len(looked) == len(pictures) and first["plt"].equals(again["plt"])


def test_both_networks_stand_in_the_table_and_the_figure(run):
    counts = robustness.star_counts(run, robustness.pictures_of(run), fooled)
    frames = [
        drift_rows(run, robustness.ROBUSTNESS, STAR, cell, "stars", c) for cell, c in counts.items()
    ]
    none = counts["rbc"].assign(predicted=0)
    for cell in ("rbc", "plt"):
        frames.append(
            drift_rows(
                run, robustness.ROBUSTNESS, run.counted(cell), cell, run.how(cell).method, none
            )
        )
    results = joined(run, frames)
    table = robustness.robustness_table(results)
    assert table["cells"].tolist() == ["red cells"] * 2 + ["white cells"] + ["platelets"] * 2
    own = table[table["segmented by"] == "our star network"]
    assert set(own["black margin, %"]) == {"+25.0 at 240"} and set(own["blur, %"]) == {"0.0"}
    assert (table.loc[table["segmented by"] != "our star network", "blur, %"] == "").all()
    figure = robustness.robustness_figure(results, "lesson")
    drawn = [ax for ax in figure.axes if ax.lines]
    assert [ax.get_title() for ax in drawn] == list(robustness.CHANGES)
    assert all(0 in ax.lines[0].get_ydata() for ax in drawn), "the unchanged picture is drawn"


def test_nothing_to_show_without_a_test_image(run):
    none = joined(run, [])
    assert robustness.robustness_table(none).empty
    assert "No image here" in robustness.robustness_figure(none, "").texts[0].get_text()

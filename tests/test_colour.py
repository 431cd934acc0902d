"Changes of colour, and the drift of counts."

import numpy as np
import pandas as pd
import pytest

from bloodcount.counting import count
from bloodcount.errors import SettingsError
from bloodcount.segmentation import load_segmenter
from bloodcount.settings import load_settings
from bloodcount.studies import colour, protocol
from bloodcount.studies.results import joined, long_form
from bloodcount.synthetic import synthetic_smear


@pytest.fixture
def run(sample_run) -> protocol.Run:
    return sample_run()


def test_colours_change_as_they_are_told():
    image = synthetic_smear(1, (128, 160), rbc=4, wbc=1, plt=1).image
    for kind in ("brightness", "white balance", "gamma"):
        assert np.array_equal(colour.shifted(image, kind, 1), image)
    for kind, neutral in (("hue", 0), ("saturation", 1)):
        same = colour.shifted(image, kind, neutral)
        assert np.abs(same.astype(int) - image).max() <= 5  # HSV in 8 bits
    for kind, levels in colour.SHIFTS.items():
        for level in levels:
            changed = colour.shifted(image, kind, level)
            assert changed.dtype == np.uint8 and not np.array_equal(changed, image)
    warmer = colour.shifted(image, "white balance", 1.1) / np.maximum(image, 1.0)
    red, green, blue = warmer.mean((0, 1))
    assert red > green > blue
    with pytest.raises(SettingsError, match="no change of colour 'hues'. Did you mean 'hue'"):
        colour.shifted(image, "hues", 1)


def test_small_changes_of_colour_move_the_count_little(authors_folder):
    "The middle levels of each kind but hue, which the conclusion of the paper is about."
    settings = load_settings("smoke")
    segmenter, counting = load_segmenter("rbc", settings, "authors"), settings.published["do_unet"]
    image = synthetic_smear(3, (320, 416), rbc=24, wbc=0, plt=2, overlap=0.2, look="cream").image
    found = len(count(segmenter(image), counting["rbc"], "watershed"))
    assert abs(found - 24) <= 3
    for kind in ("brightness", "white balance", "gamma", "saturation"):
        for level in colour.SHIFTS[kind][1:3]:
            maps = segmenter(colour.shifted(image, kind, level))
            now = len(count(maps, counting["rbc"], "watershed"))
            assert abs(now - found) <= 5, (kind, level)


def made_up(hue: int, gamma: int, unchanged: int = 30) -> pd.DataFrame:
    "Counts of two images in two other colours."
    rows = [(image, "unchanged", 0.0, unchanged) for image in "ab"]
    rows += [(image, "hue", -20.0, hue) for image in "ab"]
    rows += [("a", "gamma", 1.25, gamma), ("b", "gamma", 1.25, unchanged)]
    return pd.DataFrame(rows, columns=["image", "kind", "level", "predicted"])


def drift_rows(run, cell: str, counts: pd.DataFrame) -> pd.DataFrame:
    return colour.drift_rows(run, colour.COLOUR, run.counted(cell), cell, "cht", counts)


def test_drifts_are_results_with_a_condition_and_a_level(run):
    counts = {"rbc": made_up(27, 36), "wbc": made_up(30, 30), "plt": made_up(1, 0, 0)}
    frame = joined(run, [drift_rows(run, cell, c) for cell, c in counts.items()])
    assert set(frame["table"]) == {"colour"}
    assert set(frame.loc[frame["quantity"] != "count", "n"]) == {2}
    drift = frame[frame["quantity"] == "drift"].set_index(["cell", "condition", "level"])["value"]
    assert drift["rbc", "hue", -20] == pytest.approx(-10)
    assert drift["rbc", "gamma", 1.25] == pytest.approx(10)
    assert (drift["wbc"] == 0).all() and drift["plt"].isna().all()
    table = colour.colour_table(frame).set_index("cells")
    assert table.loc["red cells", ["as it is", "hue, %", "gamma, %"]].tolist() == [
        "60", "-10.0 at -20", "+10.0 at 1.25",
    ]  # fmt: skip
    assert table.loc["white cells", "hue, %"] == "0.0"
    assert table.loc["platelets", "hue, %"] == "", "a drift from nothing is unknown"
    points = colour.drift_points(frame)
    assert points["network"].unique().tolist() == ["authors' DO-U-Net"] and len(points) == 6


def test_networks_of_one_kind_are_told_apart_by_their_recipes(run):
    frame = drift_rows(run, "rbc", made_up(27, 36))
    other = drift_rows(run, "rbc", made_up(15, 30)).assign(recipe="model_a")
    table = colour.colour_table(joined(run, [frame, other]))
    assert table["hue, %"].tolist() == ["-10.0 at -20", "-50.0 at -20"]


def test_nothing_to_show_without_a_test_image(run):
    none = long_form(run, [])
    assert drift_rows(run, "rbc", made_up(1, 1).iloc[:0]).empty
    assert colour.colour_table(none).empty
    assert "No image here" in colour.colour_figure(none, "").texts[0].get_text()


@pytest.mark.parametrize("own", protocol.COMPARED)
def test_only_networks_with_weights_see_other_colours(run, own):
    found = {each.weights for each in protocol.with_weights(run.by(own), "rbc")}
    assert found == {"authors", "bloodcount"}

"""One picture: what is outside of its field changes nothing; a size that the networks do not know is said."""

import dataclasses
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from bloodcount import picture, stars
from bloodcount.counting import cells_from_discs, cells_from_labels, components
from bloodcount.errors import SettingsError
from bloodcount.picture import CountPlan, LazyFinder, Seen, count, count_seen
from bloodcount.synthetic import synthetic_smear
from bloodcount.tiles import resized

SMEAR = synthetic_smear(5, (420, 560), rbc=30, overlap=0.2)
PLAN = CountPlan(("rbc",))


def _dark(image: np.ndarray) -> dict:
    return {"rbc": cells_from_labels(components(image[..., 1] < 158), 60)}


def _discs(image: np.ndarray) -> dict:
    cells = _dark(image)["rbc"]
    return {"rbc": cells_from_discs(cells.centre, cells.radius, image.shape[:2])}


@pytest.mark.parametrize("finder", [_dark, _discs])
def test_cells_of_a_field_lie_where_they_are_in_the_picture(finder):
    image = np.zeros((620, 760, 3), np.uint8)
    image[80:500, 120:680] = SMEAR.image
    field = np.zeros(image.shape[:2], bool)
    field[80:500, 120:680] = True
    alone = finder(SMEAR.image)["rbc"]
    found = count_seen("a", Seen(image, field=field), PLAN, finder).cells["rbc"]
    assert len(found) == len(alone) > 10 and found.shape == (620, 760)
    assert np.allclose(found.centre, alone.centre + [80, 120])
    assert (found.labels[80:500, 120:680] == alone.labels).all()


def test_a_black_margin_changes_no_count():
    image = np.zeros((580, 800, 3), np.uint8)
    image[80:500, 120:680] = SMEAR.image
    assert count(image, "rbc").counts == count(SMEAR.image, "rbc").counts


def test_the_default_counts_any_size_and_the_paper_s_networks_doubt_it():
    small = resized(SMEAR.image, 0.45)
    whole, other = count(SMEAR.image, "rbc"), count(small, "rbc")
    assert whole.rows[0]["status"] == other.rows[0]["status"] == "ok"
    assert abs(len(other.cells["rbc"]) - len(whole.cells["rbc"])) <= 1
    whole, small = (
        count(image, "rbc", network="do_unet").rows[0] for image in (SMEAR.image, small)
    )
    assert whole["status"] == "ok"
    assert small["status"] == "doubtful" and "these networks know 63 to 95 px" in small["reason"]


@pytest.mark.parametrize("size", [{"scale": 0.45}, {"diameter": 0.45 * 74}, {"scale": "auto"}])
def test_the_papers_networks_count_a_picture_of_another_size(size):
    paper = {"network": "do_unet"}
    whole, small = count(SMEAR.image, "rbc", **paper), resized(SMEAR.image, 0.45)
    found, row = (result := count(small, "rbc", **paper, **size)).cells["rbc"], result.rows[0]
    assert abs(len(found) - len(whole.cells["rbc"])) <= 3
    assert found.shape == found.labels.shape == small.shape[:2]
    assert np.median(found.radius) == pytest.approx(
        0.45 * np.median(whole.cells["rbc"].radius), rel=0.05
    )
    assert row["status"] == "ok" and row["scale"] == pytest.approx(0.45, rel=0.1)


def test_the_star_network_takes_a_size_that_is_told():
    small = resized(SMEAR.image, 0.45)
    plain, told = (
        count(small, "rbc", network="stardist", **size) for size in ({}, {"diameter": 40})
    )
    assert told.rows[0]["scale"] == pytest.approx(40 / 74, abs=0.001) != plain.rows[0]["scale"]


def test_cells_too_small_for_a_network_are_doubtful():
    row = count(SMEAR.image, "plt", network="do_unet", scale=1 / 16).rows[0]
    assert row["status"] == "doubtful" and "are too small for these networks." in row["reason"]


@pytest.mark.parametrize("network", ["stardist", "do_unet"])
@pytest.mark.parametrize("told, status", [({"scale": 1 / 4}, "doubtful"), ({"diameter": 74}, "ok")])
def test_a_size_that_is_told_is_held_against_the_picture(network, told, status):
    row = count(SMEAR.image, "plt", network=network, **told).rows[0]
    assert row["status"] == status
    assert ("px wide, and by the --scale or --diameter" in row["reason"]) == (status == "doubtful")


def test_networks_and_methods_have_weights_of_their_own():
    plans = {
        "elsewhere": [{}, {"network": "stardist"}],
        "bloodcount": [{"network": "do_unet"}, {"method": "cht"}],
        "authors": [{"weights": "authors"}, {"weights": "authors", "method": "cht"}],
    }
    for weights, asked in plans.items():
        assert [CountPlan(**each).weights for each in asked] == [weights] * len(asked)


@pytest.mark.parametrize(
    "size, said",
    [
        ({"scale": "big"}, "--scale big"),
        ({"scale": 0}, "--scale 0"),
        ({"scale": float("nan")}, "--scale nan"),
        ({"diameter": 2}, "--diameter 2"),
        ({"scale": "auto", "diameter": 40}, "pass one of them"),
        ({"pixel_size": float("nan")}, "--pixel-size nan"),
        ({"pixel_size": -0.1}, "--pixel-size -0.1"),
    ],
)
def test_a_size_that_cannot_be_is_refused(size, said):
    with pytest.raises(SettingsError, match=said):
        CountPlan(**size)


def test_a_stain_that_the_networks_do_not_know_is_doubtful():
    paper = LazyFinder(("rbc", "wbc"), "", "bloodcount", "", "paper")
    star = dataclasses.replace(paper, network="stardist")
    own = dataclasses.replace(paper, weights="runs/mine")
    assert "--weights elsewhere" in picture.strange_colours(paper, 0.1)
    for finder, red_over_green in ((paper, 0.14), (paper, np.nan), (star, 0.1), (own, 0.1)):
        assert not picture.strange_colours(finder, red_over_green)


def test_a_negative_is_doubtful():
    cells = _dark(SMEAR.image)
    for image, odd in ((SMEAR.image, False), (255 - SMEAR.image, True)):
        assert ("is brighter" in picture.strange_light(image, cells)) == odd
        row = count_seen("a", Seen(image), PLAN, lambda image: cells).rows[0]
        assert row["status"] == ("doubtful" if odd else "ok")
    assert not picture.strange_light(SMEAR.image, {})


def test_pink_cells_are_pinker_than_others():
    pink = (255 * np.float32([0.72, 0.84, 0.74])).round()  # A background of aslan
    cells = 255 * np.float32([0.72, 0.62, 0.66])
    dark = (SMEAR.image[..., 1] < 158)[..., None]
    image = np.where(dark, cells, pink).astype(np.uint8)
    assert picture.look_at(image).red_over_green < picture.LEAST_RED
    assert picture.look_at(SMEAR.image).red_over_green > picture.LEAST_RED


def test_a_grey_picture_is_told_once():
    row = count(SMEAR.image.mean(axis=2).astype(np.uint8), "rbc", finder=_dark).rows[0]
    said = f"{row['reason']} {row['warnings']}".lower()
    assert row["status"] == "doubtful" and said.count("need colour") == 1


@pytest.mark.parametrize("page", ["xyz", "", "-1", "1.5"])
def test_a_page_is_a_number_or_rgb(page):
    with pytest.raises(SettingsError, match="--page"):
        CountPlan(page=page)
    dataclasses.replace(PLAN, page="rgb"), dataclasses.replace(PLAN, page=3)


def test_warnings_go_to_their_own_picture_whoever_ends_first():
    before, told, inside = warnings.showwarning, {}, threading.Barrier(2)

    def first():
        with picture.listening():
            inside.wait()
        inside.wait()

    def second():
        with picture.listening(), picture.hearing() as said:
            inside.wait()
            inside.wait()
            warnings.warn("of the second", stacklevel=1)
        told["second"] = list(said)

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told["second"] == ["of the second"] and warnings.showwarning is before


def test_two_threads_load_a_network_once_and_leave_the_output_alone(monkeypatch):
    "While it loads, what it prints goes nowhere; two at once would lose the output for good."
    loads, output = [], sys.stdout

    def load(weights):
        with stars.hushed():
            loads.append(weights)
            time.sleep(0.1)  # The first one would end first
        return None

    monkeypatch.setattr(stars, "load_fast_stars", load)
    picture._load.cache_clear()
    finders = [
        LazyFinder((cell,), "stardist", "bloodcount", "", "paper") for cell in ("rbc", "wbc")
    ]
    threads = [threading.Thread(target=picture._loaded, args=(f,)) for f in (*finders, finders[0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    picture._load.cache_clear()
    assert len(loads) == 2 and sys.stdout is output

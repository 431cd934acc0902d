"""The star finder: thinning, suppression, drawing, tiles, and what it must refuse."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import bloodcount.stars as stars_module
from bloodcount.errors import InputError, IntegrityError, SettingsError
from bloodcount.settings import CELLS
from bloodcount.stars import (
    STAR_WEIGHTS,
    STARS,
    Stars,
    candidates,
    drawn,
    in_one_thread,
    joined,
    large_enough,
    load_stars,
    one_each,
    one_look,
    platelets,
    star_home,
    suppressed,
    white_cells,
)
from bloodcount.synthetic import synthetic_smear

RBC, WBC, PLT = range(3)


def disc(row: float, col: float, radius: float, score: float = 0.9, kind: int = RBC) -> Stars:
    return Stars(
        np.float32([[row, col]]),
        np.full((1, 32), radius, np.float32),
        np.float32([score]),
        np.array([kind]),
    )


@pytest.fixture(scope="module")
def finder():
    return load_stars()


@pytest.fixture(scope="module")
def smear():
    return synthetic_smear(seed=5, shape=(480, 640), overlap=0.1)


@pytest.fixture(scope="module")
def found(finder, smear):
    return finder(smear.image)


def test_red_cells_are_the_maxima_above_a_threshold_where_red_is_likeliest():
    depth = np.full((9, 9), 0.1, np.float32)
    depth[2, 2], depth[2, 6], depth[6, 4], depth[6, 0] = 0.5, 0.5, 0.5, 0.3
    kinds = np.zeros((9, 9, 4), np.float32)
    kinds[:4, :4, 1] = kinds[:4, 4:, 2] = kinds[4:, 2:, 3] = kinds[4:, :2, 1] = 1
    outline = np.full((9, 9, 32), 3.0)
    for least, wanted in ((0.6, []), (0.4, [[4, 4]]), (0.2, [[4, 4], [12, 0]])):
        kept = candidates(depth, outline, kinds, least)
        assert sorted(kept.centre.tolist()) == wanted and (kept.kind == RBC).all()


def test_platelets_are_regions_that_have_a_middle():
    share = white_map((20, 20, 3), (20, 60, 3), shape=(60, 120))
    share += white_map((20, 100, 3), shape=(60, 120), share=0.8)  # Too unsure of its type
    middle = np.where(np.arange(120) < 40, 0.75, 0.25) * np.ones((60, 1))
    found = platelets(share, middle.astype(np.float32))
    assert found.score.tolist() == [0.75, 0.25] and (found.kind == PLT).all()
    assert abs(found.centre[0] - 40).max() < 1.5 and 8 < found.diameter[0] < 16


def white_map(*discs: tuple[int, int, int], shape=(150, 200), share: float = 0.95) -> np.ndarray:
    "Discs (row, col, radius), in px of the map, two of the picture each."
    row, col = np.indices(shape)
    seen = np.zeros(shape, np.float32)
    for r, c, radius in discs:
        seen[np.hypot(row - r, col - c) <= radius] = share
    return seen


@pytest.mark.parametrize(
    "discs, cells",
    [
        ([], 0),
        ([(60, 60, 20)], 1),
        ([(60, 60, 16), (60, 72, 16)], 1),  # Two lobes
        ([(60, 60, 20), (60, 96, 20)], 2),  # Two cells that touch
        ([(60, 60, 20), (60, 96, 20), (92, 78, 20)], 3),
        ([(0, 60, 20), (149, 199, 20)], 2),  # At the border
    ],
)
def test_white_cells_are_regions_parted_at_their_necks(discs, cells):
    found = white_cells(white_map(*discs), 37.0)
    assert len(found) == cells and (found.kind == WBC).all()
    assert (abs(found.score - 0.95) < 0.005).all()
    if cells > 1:
        true = 2 * np.array([(row, col) for row, col, _ in discs], float)
        away = np.linalg.norm(found.centre[:, None] - true, axis=-1).min(axis=0)
        assert away.max() < 12


def test_a_white_speck_does_not_take_the_place_of_a_red_cell(finder, monkeypatch):
    "It would suppress the red cell around it, and then be dropped as too small."
    image = synthetic_smear(seed=1, shape=(480, 640), rbc=20, wbc=0, plt=0, overlap=0).image
    speck = disc(0, 0, 6, score=0.99, kind=WBC)
    reds = finder.find(image)

    def in_each(share, width):
        scale = finder.zoom * width / finder.diameter
        return joined([replace(speck, centre=c[None] * np.float32(scale)) for c in reds.centre])

    monkeypatch.setattr(stars_module, "white_cells", in_each)
    found = finder(image)
    assert len(found["rbc"]) == len(reds) == 20 and len(found["wbc"]) == 0


def test_a_white_cell_goes_as_far_as_the_network_reaches(finder, monkeypatch):
    "By tiles too; what the regions leave out is the network's to say."
    image = synthetic_smear(seed=1, shape=(480, 640), rbc=20, wbc=3, plt=0, overlap=0).image
    usual = finder(image)["wbc"]
    real = stars_module.white_cells

    def shrunk(share, width):
        stars = real(share, width)
        return replace(stars, reach=0.8 * stars.reach)

    monkeypatch.setattr(stars_module, "white_cells", shrunk)
    for whole in (stars_module.WHOLE, 10_000):
        monkeypatch.setattr(stars_module, "WHOLE", whole)
        found = finder(image)["wbc"]
        assert len(found) == len(usual) == 3
        assert (found.area > 0.8 * usual.area).all() and (found.area < usual.area).all()


def test_a_white_region_that_is_not_sure_is_none():
    assert len(white_cells(white_map((60, 60, 20), share=0.65), 37.0)) == 0


def test_a_white_cell_counts_by_its_mean_probability(finder):
    image = synthetic_smear(seed=1, shape=(480, 640), rbc=20, wbc=3, plt=0, overlap=0).image
    strict = replace(finder, thresholds=finder.thresholds | {"wbc": 1.0})
    assert len(finder(image)["wbc"]) == 3 and len(strict(image)["wbc"]) == 0


def test_a_speck_is_no_red_cell(finder):
    specks = joined([disc(30, 30, 5), disc(70, 70, 6), disc(30, 0, 5.5), disc(70, 0, 9)])
    large = large_enough(specks, (100, 100), np.pi * 18.5**2, finder.smallest)
    assert large.tolist() == [False, True, False, True]


def test_a_flat_top_is_one_cell_after_suppression():
    depth = np.zeros((30, 30), np.float32)
    depth[10:16, 10:16] = 1
    kinds = np.zeros((30, 30, 4), np.float32)
    kinds[..., 1] = 1
    many = candidates(depth, np.full((30, 30, 32), 30.0), kinds, 0.5)
    assert len(many) == 36 and len(suppressed(many, 0.4)) == 1


def test_suppression_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    many = joined(
        [disc(*rng.uniform(0, 300, 2), rng.uniform(8, 20), rng.uniform(0.3, 1)) for _ in range(200)]
    )
    kept = one_each(many, 0.4)
    again = one_each(many[rng.permutation(200)], 0.4)
    assert 20 < len(kept) < 200
    assert sorted(map(tuple, kept.centre)) == sorted(map(tuple, again.centre))


@pytest.mark.parametrize(
    "col, radius, kind, counts",
    [
        (50, 12, WBC, True),
        (50, 6, WBC, False),  # Whole, and less than half a red cell
        (0, 12, WBC, False),  # Half of it is seen, less than 1.4 red cells
        (0, 18, WBC, True),
        (10, 12, WBC, True),  # Nearly all of it is seen
        (99, 12, WBC, False),
        (0, 12, RBC, True),  # For which there is no rule
        (50, 1, PLT, True),
    ],
)
def test_a_white_cell_must_show_enough_of_itself(col, radius, kind, counts):
    rule, red_area = {"wbc": (0.5, 1.4)}, np.pi * 9**2
    for stars in (disc(50, col, radius, kind=kind), disc(col, 50, radius, kind=kind)):
        assert large_enough(stars, (100, 100), red_area, rule).tolist() == [counts]


def test_the_rule_is_that_of_the_card(finder):
    assert finder.smallest == json.loads((STARS / "card.json").read_text())["smallest"]
    image = synthetic_smear(seed=1, shape=(480, 640), rbc=20, wbc=3, plt=0, overlap=0).image
    strict = replace(finder, smallest={"wbc": (99.0, 99.0)})
    assert len(strict(image)["wbc"]) == 0 < len(finder(image)["wbc"])


def test_each_type_comes_from_the_look_of_its_width(finder):
    card = json.loads((STARS / "card.json").read_text())
    assert finder.widths == {"rbc": 48, "wbc": 37, "plt": 37} and card["widths"] == {"rbc": 48}
    image = synthetic_smear(seed=1, shape=(480, 640), rbc=30, wbc=3, plt=5).image
    zoom = finder.diameter / 70
    found = finder.find(image, zoom)
    for cell, kind in (("rbc", RBC), ("wbc", WBC), ("plt", PLT)):
        width = finder.widths[cell]
        there = one_look(finder, image, zoom * width / finder.diameter, width)
        own = {tuple(place) for place in there.centre[there.kind == kind]}
        assert {tuple(place) for place in found.centre[found.kind == kind]} <= own
        # One of the five platelets is too pale for it
        assert len(own) == {"rbc": 30, "wbc": 3, "plt": 4}[cell]
    once = replace(finder, widths=dict.fromkeys(finder.widths, finder.diameter))
    alone = one_look(finder, image, zoom, finder.diameter)
    assert np.array_equal(np.sort(once.find(image, zoom).score), np.sort(alone.score))


def test_platelets_lie_over_red_cells_but_not_in_white_ones():
    over_red = joined([disc(50, 50, 30, 0.9), disc(50, 50, 6, 0.5, PLT)])
    in_white = joined([disc(50, 50, 30, 0.9, WBC), disc(52, 50, 6, 0.95, PLT)])
    assert sorted(one_each(over_red, 0.4).kind) == [RBC, PLT]
    assert one_each(in_white, 0.4).kind.tolist() == [WBC]


def test_red_and_white_compete():
    both = joined([disc(50, 50, 30, 0.6, RBC), disc(52, 50, 32, 0.8, WBC)])
    assert one_each(both, 0.4).kind.tolist() == [WBC]


def test_overlapping_cells_share_evenly_and_what_nothing_is_left_of_goes():
    two = joined([disc(50, 50, 20, 0.5), disc(50, 70, 20, 0.9)])
    cells = drawn(two, (100, 120))
    left, right = cells.labels[50, [40, 80]]
    assert len(cells) == 2 and left != right
    assert (cells.labels[50, 32:59] == left).all() and (cells.labels[50, 62:89] == right).all()
    twice = joined([disc(50, 50, 20, 0.5), disc(50, 50, 20, 0.9)])
    assert drawn(twice, (100, 120)).score.tolist() == [np.float32(0.9)]


def test_a_cell_at_the_border_is_a_cell():
    cells = drawn(joined([disc(0, 50, 20), disc(99, 119, 20)]), (100, 120))
    assert len(cells) == 2 and cells.labels.shape == (100, 120)
    assert len(drawn(disc(0, 0, 5)[:0], (4, 7))) == 0


def test_moving_and_scaling_keep_pixels_in_place():
    cell = disc(10, 20, 8).scaled(np.array([2.0, 2.0]))
    assert cell.centre.tolist() == [[20.5, 40.5]] and cell.reach[0, 0] == 16
    assert disc(10, 20, 8).moved((3, 4)).centre.tolist() == [[13, 24]]


def test_it_finds_what_was_drawn(found, smear):
    assert abs(len(found["rbc"]) - smear.counts["rbc"]) <= 0.1 * smear.counts["rbc"]
    assert abs(len(found["wbc"]) - smear.counts["wbc"]) <= 1
    for cell, cells in found.items():
        assert cells.labels.shape == smear.image.shape[:2]
        assert np.unique(cells.labels[cells.labels > 0]).tolist() == list(range(1, len(cells) + 1))
        assert cell in CELLS


def test_the_middles_lie_in_true_cells(found, smear):
    row, col = np.rint(found["rbc"].centre).astype(int).T
    assert smear.masks["rbc"][row, col].mean() > 0.95


def test_tiles_change_nothing(finder, smear, found, monkeypatch):
    monkeypatch.setattr(stars_module, "WHOLE", 1000)
    monkeypatch.setattr(stars_module, "TILE", 352)
    tiled = finder(smear.image)
    for cell in ("rbc", "wbc"):
        away = np.linalg.norm(tiled[cell].centre[:, None] - found[cell].centre, axis=-1)
        assert abs(len(tiled[cell]) - len(found[cell])) <= 1
        within = (np.abs(found[cell].centre - [240, 320]) < [180, 260]).all(axis=1)
        assert (away.min(axis=0)[within] > 4).sum() <= 1


def test_twice_the_size_with_half_the_zoom_is_the_same(finder, smear, found):
    large = np.kron(smear.image, np.ones((2, 2, 1), np.uint8))
    cells = finder(large, finder.zoom / 2)
    assert abs(len(cells["rbc"]) - len(found["rbc"])) <= 1
    assert np.median(cells["rbc"].radius) == pytest.approx(
        2 * np.median(found["rbc"].radius), rel=0.03
    )


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (150, 170)])
def test_nothing_is_found_where_nothing_is(finder, level, shape):
    empty = finder(np.full((*shape, 3), level, np.uint8))
    assert [len(empty[cell]) for cell in CELLS] == [0, 0, 0]
    assert empty["rbc"].labels.shape == shape


def test_noise_is_no_cell(finder):
    grain = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    assert sum(map(len, finder(grain).values())) <= 2


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
)
def test_what_is_no_picture_is_refused(finder, image):
    with pytest.raises(InputError, match="uint8"):
        finder(image)


def test_an_impossible_zoom_is_refused(finder, smear):
    for zoom in (0, -1, np.nan, np.inf):
        with pytest.raises(SettingsError, match="zoom"):
            finder(smear.image, zoom)


def test_a_damaged_model_is_refused(tmp_path):
    with pytest.raises(IntegrityError, match="no star model"):
        load_stars(tmp_path / "absent")
    folder = shutil.copytree(STARS, tmp_path / "mine")
    with open(folder / "weights_best.h5", "r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    with pytest.raises(IntegrityError, match="damaged"):
        load_stars(folder)


@pytest.mark.parametrize("name", STAR_WEIGHTS)
def test_weights_of_this_package_have_names(name, smear):
    named = load_stars(name)
    assert named.weights == name and star_home(name) == STAR_WEIGHTS[name]
    counts = {cell: len(cells) for cell, cells in named(smear.image).items()}
    assert abs(counts["rbc"] - smear.counts["rbc"]) <= 0.1 * smear.counts["rbc"]


def test_a_copy_of_the_model_is_the_model(tmp_path, found, smear, capsys):
    mine = load_stars(shutil.copytree(STARS, tmp_path / "mine"))
    assert mine.weights == str(tmp_path / "mine")
    assert len(mine(smear.image)["rbc"]) == len(found["rbc"])
    assert capsys.readouterr().out == ""


def test_the_card_says_what_it_learnt_from():
    card = json.loads((STARS / "card.json").read_text())
    assert set(card["thresholds"]) == set(CELLS)
    held_out = {"Im037_0", "Im045_0", "Im053_1"}
    assert not held_out & set(card["data"]["images"]["rbc"])
    assert not set(card["validation"]["images"]) & set(card["data"]["images"]["rbc"])


@pytest.mark.parametrize(
    ("flags", "knows"),
    [
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu avx512f avx2", False),
        (None, False),
    ],
)
def test_half_precision_where_it_is_fast(monkeypatch, flags, knows):
    def read_text(path):
        assert str(path) == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError
        return f"flags : {flags}\n"

    monkeypatch.setattr(stars_module.Path, "read_text", read_text)
    assert stars_module.knows_bfloat16() == knows
    monkeypatch.setattr(stars_module, "chosen_engine", lambda engine: "keras")
    half = "mixed_bfloat16" if knows else "float32"
    assert stars_module.fast_way() == ("keras", half)
    monkeypatch.setattr(stars_module, "chosen_engine", lambda engine: "openvino")
    assert stars_module.fast_way() == ("openvino", "mixed_bfloat16")


@pytest.mark.parametrize("way", [("mixed_bfloat16", "keras"), ("mixed_bfloat16", "openvino")])
def test_a_faster_way_finds_the_same_cells(found, smear, way):
    "Nearly: it rounds, and a cell whose score is at the threshold may come or go."
    if way[1] == "openvino":
        pytest.importorskip("openvino")
    fast = load_stars("bloodcount", *way)(smear.image)
    for cell in CELLS:
        assert abs(len(found[cell]) - len(fast[cell])) <= max(1, 0.03 * len(found[cell]))


def test_the_librarys_loops_run_in_one_thread_and_others_are_left_alone():
    def threads():
        return {
            pool["num_threads"]
            for pool in ThreadpoolController().info()
            if pool["user_api"] == "openmp"
        }

    assert in_one_thread(threads)() == {1}
    before = threads()
    with pytest.raises(ZeroDivisionError):
        in_one_thread(lambda: 1 / 0)()
    assert threads() == before

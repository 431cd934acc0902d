"Smears of other laboratories: boxes and points with known answers, and a folder that may not be there."

import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bloodcount.counting import Cells, cells_from_discs, cells_from_labels, components
from bloodcount.errors import InputError
from bloodcount.scale import Scale
from bloodcount.segmentation import Maps
from bloodcount.settings import load_settings
from bloodcount.studies import elsewhere, other_smears, protocol
from bloodcount.studies.results import OF_IMAGES, RESULTS, value_of
from bloodcount.studies.star_network import STAR


@pytest.fixture
def run(sample_run) -> protocol.Run:
    return sample_run(bootstrap=50)


class DarkStars:
    "Finds what is dark, in the place of the star network."

    def __init__(self):
        self.looked = 0

    def scale(self, image: np.ndarray) -> Scale:
        return Scale(30.0, 9, True)

    def __call__(self, image: np.ndarray, scale: Scale | None = None) -> dict[str, Cells]:
        self.looked += 1
        dark = cells_from_labels(components(image[..., 1] < 100), 20)
        return dict.fromkeys(("rbc", "wbc", "plt"), dark)


def discs(*places: tuple[float, float, float]) -> Cells:
    rows, cols, radii = np.array(places or np.zeros((0, 3))).T
    return cells_from_discs(np.c_[rows, cols], radii, (100, 200))


def boxes(*places: tuple[float, float, float]) -> np.ndarray:
    "Squares around middles, from row, column and half a side."
    row, col, half = np.array(places, float).T
    return np.c_[row - half, col - half, row + half, col + half]


def test_each_box_needs_a_cell_of_its_own():
    "A cell in two boxes leaves one of them to the other cell, or empty."
    two = boxes((50, 50, 20), (50, 70, 20))
    shared, aside = (50, 60, 15), (50, 40, 15)
    told = other_smears.score_marks(discs(shared), two)
    assert told["found"] == 1 and len(told["wrong"]) == 1
    assert other_smears.score_marks(discs(shared, aside), two)["found"] == 2
    told = other_smears.score_marks(discs(), two)
    assert (told["found"], told["count"], told["wrong"].tolist()) == (0, 0, [0, 1])
    told = other_smears.score_marks(discs(shared), np.zeros((0, 4)))
    assert (told["outlined"], told["found"], told["outside"]) == (0, 0, 1)


def test_a_split_cell_has_two_middles_in_its_middle():
    one = boxes((50, 50, 20))
    assert other_smears.score_marks(discs((50, 42, 8), (50, 58, 8)), one)["split"] == 1
    beside = other_smears.score_marks(discs((50, 50, 15), (50, 66, 8)), one)
    assert beside["split"] == 0, "a cell at the rim of a box is another one"


def test_what_lies_outside_of_all_boxes_counts_away_from_the_border_only():
    told = other_smears.score_marks(
        discs((50, 50, 10), (50, 120, 10), (5, 150, 10)), boxes((50, 50, 15))
    )
    assert told["outside"] == 1


def test_a_point_needs_a_cell_that_no_other_point_has():
    points = np.tile([[50, 50], [54, 52], [50, 120], [90, 190]], 2).astype(float)
    told = other_smears.score_marks(discs((50, 50, 12), (50, 120, 12)), points, points=True)
    assert (told["outlined"], told["found"], told["split"]) == (4, 2, 0)
    assert 3 in told["wrong"] and 2 not in told["wrong"]


def test_a_picture_of_other_cells_is_resized_and_its_cells_come_back(run):
    "Discs of 17 px, and a counter that knows 37: four of them, where they are."
    row, col = np.indices((160, 200))
    middles, image = (
        [(40, 40), (40, 120), (110, 60), (120, 150)],
        np.full((160, 200, 3), 200, np.uint8),
    )
    for r, c in middles:
        image[np.hypot(row - r, col - c) <= 17] = 60

    def segmenter(picture: np.ndarray) -> Maps:
        assert picture.shape[0] == pytest.approx(160 * 74 / 34, abs=1)
        mask = (picture[..., 1] < 130).astype(np.float32)
        return Maps(mask, np.zeros_like(mask))

    cells = other_smears.at_size(image, 34, 74, segmenter, run.how("rbc"))
    assert len(cells) == 4 and cells.shape == (160, 200)
    order = np.lexsort(cells.centre.T[::-1])
    assert np.allclose(cells.centre[order], middles, atol=1) and np.allclose(
        cells.radius, 17, atol=0.7
    )


def write_folder(folder, images=("a.png", "b.png")) -> None:
    (folder / "aslan").mkdir(parents=True)
    for i, name in enumerate(images):
        Image.fromarray(np.full((40, 50, 3), (200 + i, 150, 170), np.uint8)).save(
            folder / "aslan" / name
        )
    lines = [
        "set,image,cell,xmin,ymin,xmax,ymax",
        "aslan,a.png,rbc,1,2,30,20",
        "aslan,b.png,wbc,5,6,9,8",
    ]
    (folder / "truth.csv").write_text("\n".join([*lines, "mars,c.png,rbc,1,2,3,4"]) + "\n")
    known = [
        "set,image,width,height,source,sha256",
        "aslan,a.png,50,40,x,y",
        "aslan,b.png,50,40,x,y",
    ]
    (folder / "sources.csv").write_text("\n".join([*known, "mars,c.png,50,40,x,y"]) + "\n")


def test_a_folder_of_other_smears_is_found_by_its_name(tmp_path, monkeypatch):
    settings = load_settings("paper")
    write_folder(tmp_path)
    monkeypatch.setenv("BLOODCOUNT_OTHER_SMEARS", str(tmp_path))
    assert other_smears.other_folder(settings) == tmp_path
    before = other_smears.other_name(settings)
    first, second = other_smears.read_fields(tmp_path)
    assert first.marks["rbc"].tolist() == [[2, 1, 20, 30]] and len(first.marks["wbc"]) == 0
    assert second.marks["wbc"].tolist() == [[6, 5, 8, 9]] and first.key != second.key
    assert first.read().shape == (40, 50, 3)
    with open(tmp_path / "truth.csv", "a") as file:
        file.write("aslan,b.png,rbc,1,2,3,4\n")
    assert other_smears.other_name(settings) != before
    assert other_smears.other_name(load_settings("smoke")) == ""
    (tmp_path / "aslan" / "b.png").unlink()
    with pytest.raises(InputError, match="b.png: no such image"):
        other_smears.read_fields(tmp_path)


def test_a_wrong_folder_is_an_error_and_none_is_none(tmp_path, monkeypatch, sample_run):
    settings = load_settings("paper")
    monkeypatch.setenv("BLOODCOUNT_OTHER_SMEARS", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="BLOODCOUNT_OTHER_SMEARS=.*nowhere: no truth.csv"):
        other_smears.other_folder(settings)
    monkeypatch.delenv("BLOODCOUNT_OTHER_SMEARS")
    paths = dataclasses.replace(settings.paths, other=tmp_path)
    settings = dataclasses.replace(settings, paths=paths)
    run = protocol.Run(settings, sample_run().data, "authors", 0, tmp_path)
    assert other_smears.other_folder(settings) is None and other_smears.other_name(settings) == ""
    assert other_smears.fields_of(run) == []
    results = elsewhere.elsewhere_results(run, other_smears.elsewhere_rows(run, []))
    assert results.empty and elsewhere.elsewhere_table(results).empty
    assert elsewhere.scale_table(results).empty
    for figure in (
        elsewhere.elsewhere_figure(results, ""),
        elsewhere.wrong_figure([], pd.DataFrame()),
    ):
        assert "No image here" in figure.texts[0].get_text()


def test_drawn_fields_mark_every_cell_of_the_types_of_their_set():
    for field in other_smears.drawn_fields():
        drawn = other_smears._DRAWN[field.set]
        assert {cell: len(m) for cell, m in field.marks.items()} == {
            c: drawn[c] for c in field.marks
        }
        is_point = (field.marks["rbc"][:, :2] == field.marks["rbc"][:, 2:]).all()
        assert is_point == other_smears.SETS[field.set].points


def test_each_field_is_looked_at_once(run, monkeypatch):
    monkeypatch.setattr(other_smears, "compared", lambda run, cell: [])
    fields, finder = other_smears.drawn_fields(), DarkStars()
    rows = other_smears.elsewhere_rows(run, fields, lambda: finder)
    assert finder.looked == len(fields) and set(rows["diameter"]) == {30.0}
    again = other_smears.elsewhere_rows(run, fields, lambda: finder)
    assert finder.looked == len(fields) and again.equals(rows)
    figure = elsewhere.wrong_figure(fields, rows, lambda: finder)
    assert sum(bool(ax.images) for ax in figure.axes) == len(fields)


def row(
    of: str, image: str, cell: str, outlined: int, found: int, count: int, split: int = 0
) -> dict:
    numbers = {"outlined": outlined, "found": found, "split": split, "count": count, "outside": 1}
    size = {"diameter": 60.0, "sure": image != "a"}
    return STAR | {"method": "stars", "set": of, "image": image, "cell": cell} | numbers | size


ROWS = pd.DataFrame([
    row("cbc", "a", "rbc", 20, 18, 25, split=1), row("cbc", "b", "rbc", 20, 20, 30),
    row("cbc", "a", "wbc", 1, 1, 1), row("cbc", "b", "wbc", 2, 2, 3),
    row("cbc", "a", "plt", 3, 2, 4), row("cbc", "b", "plt", 1, 1, 2),
    row("chula", "c", "rbc", 50, 45, 80),
    row("aslan", "d", "rbc", 20, 19, 22), row("aslan", "e", "rbc", 10, 10, 10),
])  # fmt: skip


def test_each_set_is_scored_by_what_its_truth_can_bear(run):
    results = elsewhere.elsewhere_results(run, ROWS)
    assert not results.duplicated(RESULTS[: RESULTS.index("n")]).any()
    red, white, small = (results[results["cell"] == cell] for cell in ("rbc", "wbc", "plt"))
    assert value_of(red, "found_share", "cbc") == pytest.approx(38 / 40)
    assert value_of(red, "split_share", "cbc") == pytest.approx(1 / 40)
    assert np.isnan(value_of(red, "count_accuracy", "cbc")), "not every red cell is boxed"
    assert np.isnan(value_of(red, "split_share", "chula")), "a point cannot be split"
    assert value_of(red, "count_accuracy", "aslan") == pytest.approx(95)
    assert value_of(red, "bias", "aslan") == pytest.approx(100 * 2 / 30)
    assert value_of(white, "right_share", "cbc") == 0.5
    assert value_of(small, "f1_marks", "cbc") == pytest.approx(2 * 3 / (4 + 6))
    assert value_of(red, "sure_share", "cbc") == 0.5
    single = results[results["quantity"].isin(OF_IMAGES)]
    assert set(single["images"]) == {"cbc/a", "cbc/b", "chula/c", "aslan/d", "aslan/e"}


def test_the_tables_and_the_figure(run):
    other = ROWS.assign(model="do_unet", weights="authors", recipe="", found=0)
    other.loc[other["cell"] == "wbc", "recipe"] = "best"  # Each cell type has its recipe
    results = elsewhere.elsewhere_results(run, pd.concat([ROWS, other]))
    table = elsewhere.elsewhere_table(results)
    assert table["set"].tolist() == ["cbc", "cbc", "chula", "chula", "aslan", "aslan"]
    assert table["red cells found, %"].tolist()[:3] == ["95.00", "0.00", "90.00"]
    assert table["platelets, F1"].tolist()[::2] == ["0.600", "", ""]
    assert table["red cells, count accuracy, %"].tolist()[2] == ""
    assert elsewhere.scale_table(results)["scale sure, % of fields"].tolist()[0] == "50.00"
    figure = elsewhere.elsewhere_figure(results, "lesson")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights[:3] == pytest.approx([0.95, 0.9, 29 / 30]) and heights[3:] == [0, 0, 0]
    assert len(figure.legends[0].get_texts()) == 2, "one bar for an owner's networks"


def test_the_second_weights_are_scored_on_what_was_kept_out(run, monkeypatch):
    fields, asked = other_smears.drawn_fields(), []
    learnt = {"data": {"images": {"other": [f"cbc/{fields[0].name}", "aslan/none"]}}}
    monkeypatch.setattr(other_smears, "star_card", lambda folder: learnt)

    def found(run, field, finder, weights):
        asked.append((field.set, field.name, weights))
        count = 4 if weights == other_smears.SECOND else 3
        return {
            "rows": [row(field.set, field.name, "rbc", 4, count, 4) | {"weights": weights}],
            "diameter": 70.0,
            "sure": True,
        }

    monkeypatch.setattr(other_smears, "star_field", found)
    rows = other_smears.second_rows(run, fields)
    assert len(asked) == 2 * (len(fields) - 1) and ("cbc", fields[0].name) not in {
        a[:2] for a in asked
    }
    whole, kept = elsewhere.elsewhere_results(run, ROWS), other_smears.KEPT_OUT
    results = pd.concat([whole, elsewhere.elsewhere_results(run, rows, kept)])
    table = elsewhere.elsewhere_table(results, kept)
    assert table["set"].tolist() == [f"{of}{kept}" for of in other_smears.SETS for _ in range(2)]
    assert table["red cells found, %"].tolist() == ["75.00", "100.00"] * 3
    assert table["segmented by"].tolist()[:2] == ["our star network", "our second star network"]
    assert elsewhere.elsewhere_table(results).equals(elsewhere.elsewhere_table(whole))
    assert elsewhere.scale_table(results).equals(elsewhere.scale_table(whole))


def test_every_third_field_of_a_set_is_not_learnt(monkeypatch):
    taken = []
    monkeypatch.setattr(
        other_smears, "marked_truth", lambda name, *rest: taken.append((name, rest[3:]))
    )
    blank = [("cbc", name) for name in "dbaec"] + [("chula", "z")]
    fields = [other_smears.Field(of, name, {}, "", lambda: None) for of, name in blank]
    other_smears.second_truths(fields, None)
    assert sorted(name for name, _ in taken) == ["cbc/a", "cbc/b", "cbc/d", "cbc/e", "chula/z"]
    assert dict(taken)["chula/z"] == ((), True) and dict(taken)["cbc/a"] == (("wbc", "plt"), False)


def test_the_worst_fields_are_the_star_networks():
    other = ROWS.assign(model="do_unet", found=0)
    worst = elsewhere.worst_fields(pd.concat([ROWS, other]), 1)
    assert worst == [("cbc", "a"), ("chula", "c"), ("aslan", "d")]
    assert elsewhere.worst_fields(pd.DataFrame()) == []

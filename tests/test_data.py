"""Data sets are written and read back; what is wrong with one is said in a sentence."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bloodcount.data import (
    COLUMNS,
    DataSet,
    Smear,
    content_sha256,
    image_path,
    names,
    polygon_mask,
    read_mask,
    read_polygons,
    read_smear,
    real_data,
    write_dataset,
    write_mask,
)
from bloodcount.errors import InputError
from bloodcount.settings import load_settings
from bloodcount.synthetic import synthetic_smear

GREY = "ignore:.*a grey image"


def test_masks(tmp_path):
    mask = np.random.default_rng(0).random((33, 70)) < 0.4
    write_mask(tmp_path / "mask.png", mask)
    assert Image.open(tmp_path / "mask.png").mode == "1"
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)
    (tmp_path / "text.png").write_text("no mask")
    (tmp_path / "cut.png").write_bytes((tmp_path / "mask.png").read_bytes()[:-60])
    for name, says in (
        ("none.png", "no such mask"),
        ("text.png", "not a mask"),
        ("cut.png", "not a mask"),
    ):
        with pytest.raises(InputError, match=f"{name}: {says}"):
            read_mask(tmp_path / name)


def test_outlines_that_are_none(tmp_path):
    for text in (
        "",
        "[]",
        "{}",
        '{"polygons": 3}',
        '{"polygons": [[1, 2, 3]]}',
        '{"polygons": [["a", "b"]]}',
    ):
        (tmp_path / "outlines.json").write_text(text)
        with pytest.raises(InputError, match="not a file of outlines"):
            read_polygons(tmp_path / "outlines.json")
    with pytest.raises(InputError, match="no such outlines"):
        read_polygons(tmp_path / "none.json")


@pytest.fixture(scope="module")
def smears():
    size = {"shape": (128, 192), "rbc": 6, "plt": 3}
    one = synthetic_smear(seed=1, wbc=1, patient=True, **size)
    two = synthetic_smear(seed=2, wbc=0, overlap=0.5, **size)
    bare = Smear("Syn003_0", two.image[:90], counts={"wbc": 0}, splits={"rbc": "test"})
    one.splits.update(rbc="train", wbc="test")
    two.splits.update(rbc="test")
    return [one, two, bare]


def test_a_data_set_is_read_as_it_was_written(tmp_path, smears):
    data = write_dataset(tmp_path / "all", smears)
    assert list(data.index.columns) == COLUMNS[1:]
    assert data.title == "synthetic sample (3 smears)"
    for smear in smears:
        back = read_smear(data, smear.name)
        assert (back.name, back.counts, back.splits) == (smear.name, smear.counts, smear.splits)
        assert np.array_equal(back.image, smear.image)
        for found, drawn in ((back.masks, smear.masks), (back.edges, smear.edges)):
            assert found.keys() == drawn.keys()
            assert all(np.array_equal(found[cell], drawn[cell]) for cell in drawn)
        assert back.polygons.keys() == smear.polygons.keys()
        for cell, drawn in smear.polygons.items():
            assert len(back.polygons[cell]) == len(drawn)
            assert all(np.allclose(a, b, atol=0.0051) for a, b in zip(back.polygons[cell], drawn))
    assert set(read_smear(data, "Syn001_1", ["wbc"]).masks) == {"wbc"}
    assert list(data.index["all_patient"]) == [1, 0, 0]
    with pytest.raises(InputError, match="already"):
        write_dataset(tmp_path / "all", smears)
    assert [p.name for p in tmp_path.iterdir()] == ["all"]


def test_a_data_set_that_cannot_be_written_leaves_nothing(tmp_path, smears):
    def broken():
        yield smears[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "all", broken())
    assert list(tmp_path.iterdir()) == []
    assert len(write_dataset(tmp_path / "none", []).index) == 0


def test_names_by_what_they_have(tmp_path, smears):
    data = write_dataset(tmp_path / "all", smears)
    assert names(data, "rbc") == ["Syn001_1", "Syn002_0", "Syn003_0"]
    assert names(data, "rbc", having=["mask", "edge", "polygons"]) == ["Syn001_1", "Syn002_0"]
    assert names(data, "wbc", having=["count"]) == [s.name for s in smears if "wbc" in s.counts]
    assert names(data, "wbc", having=["edge"]) == []
    for split in ("train", "test"):
        assert names(data, "rbc", split) == [s.name for s in smears if s.splits.get("rbc") == split]


def rewrite_masks(root):
    for path in (root / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            mask.copy().save(path, compress_level=1)


def rewrite_outlines(root):
    for path in (root / "polygons").rglob("*.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(values.items())), indent=2))


def rewrite_index(root):
    text = (root / "index.csv").read_bytes()
    (root / "index.csv").write_bytes(text.replace(b"\n", b"\r\n"))


def leave_traces(root):
    (root / "README.md").write_text("Where the data are from.")
    (root / "images" / ".DS_Store").write_bytes(b"\0")
    (root / "images" / "Thumbs.db").write_bytes(b"\0")
    (root / "masks" / "a.folder").mkdir()


SAME = [rewrite_masks, rewrite_outlines, rewrite_index, leave_traces]


@pytest.mark.parametrize("change", SAME)
def test_equal_data_have_one_fingerprint(tmp_path, smears, change):
    one = write_dataset(tmp_path / "one", smears).fingerprint
    root = write_dataset(tmp_path / "two", smears).root
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    change(root)
    assert before != {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert DataSet(root).fingerprint == one and len(one) == 12


def flip_a_mask(root):
    path = root / "masks" / "rbc" / "Syn001_1.png"
    mask = read_mask(path)
    mask[64, 96] ^= True
    write_mask(path, mask)


def change_a_count(root):
    index = pd.read_csv(root / "index.csv", dtype={"rbc_count": "Int64"})
    index.loc[0, "rbc_count"] += 1
    index.to_csv(root / "index.csv", index=False)


def change_a_pixel(root):
    pixels = np.array(Image.open(root / "images" / "Syn001_1.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(root / "images" / "Syn001_1.png")


def move_an_outline(root):
    path = root / "polygons" / "rbc" / "Syn002_0.json"
    values = json.loads(path.read_text())
    values["polygons"][0][0][0] += 0.01
    path.write_text(json.dumps(values))


def lose_an_edge(root):
    (root / "edges" / "rbc" / "Syn002_0.png").unlink()


def swap_two_masks(root):
    one, two = (root / "masks" / "rbc" / f"{n}.png" for n in ("Syn001_1", "Syn002_0"))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


OTHER = [flip_a_mask, change_a_count, change_a_pixel, move_an_outline, lose_an_edge, swap_two_masks]


@pytest.mark.parametrize("change", OTHER)
def test_other_data_have_another_fingerprint(tmp_path, smears, change):
    data = write_dataset(tmp_path / "all", smears)
    before = data.fingerprint
    change(data.root)
    assert DataSet(data.root).fingerprint != before


def test_an_index_that_is_wrong(tmp_path, smears):
    data = write_dataset(tmp_path / "all", smears)
    path = data.root / "index.csv"
    right = path.read_text()

    def says(text):
        path.write_text(text)
        with pytest.raises(InputError) as error:
            DataSet(data.root).index  # noqa: B018
        return str(error.value)

    for column in COLUMNS:
        short = right.replace(f"{column},", f"{column[:-1]},", 1)
        short = short.replace(f",{column}\n", f",{column[:-1]}\n", 1) if short == right else short
        assert f"lacks the column {column!r}. Did you mean {column[:-1]!r}?" in says(short)
    rows = right.splitlines()
    assert "Syn002_0" in says("\n".join([*rows, rows[2]]))
    for text in ("", 'image,"width\n1', "\n".join([*rows, rows[2] + ",1,2,3"])):
        assert "not a table of images" in says(text)
    path.unlink()
    for lost in (lambda: DataSet(data.root).index, lambda: DataSet(data.root).fingerprint):
        with pytest.raises(InputError, match="index.csv is missing"):
            lost()


def test_images_may_be_named_by_number(tmp_path, smears):
    named = [Smear(name, smears[0].image) for name in ("001", "1e3")]
    data = write_dataset(tmp_path / "all", named)
    assert list(data.index.index) == ["001", "1e3"]
    assert read_smear(data, "001").name == "001"


def test_a_data_set_with_something_missing(tmp_path, smears):
    data = write_dataset(tmp_path / "all", smears)
    with pytest.raises(InputError, match="no image Syn001_0. Did you mean 'Syn00[13]_.'"):
        read_smear(data, "Syn001_0")
    write_mask(data.root / "masks" / "rbc" / "Syn001_1.png", np.ones((8, 8), bool))
    with pytest.raises(InputError, match="Syn001_1.png.*8 x 8.*128 x 192"):
        read_smear(data, "Syn001_1")
    (data.root / "masks" / "rbc" / "Syn001_1.png").unlink()
    with pytest.raises(InputError, match="Syn001_1.png: no such mask"):
        read_smear(data, "Syn001_1")
    (data.root / "images" / "Syn001_1.png").unlink()
    with pytest.raises(InputError, match="no image Syn001_1"):
        image_path(data, "Syn001_1")


def test_content_of_what_is_damaged_matches_nothing(tmp_path):
    for name, body in (
        ("cut.png", b"\x89PNG\r\n\x1a\n"),
        ("text.json", b"{"),
        ("latin.csv", b"\xe4"),
    ):
        (tmp_path / name).write_bytes(body)
        (tmp_path / "same.bin").write_bytes(body)
        assert content_sha256(tmp_path / name) == content_sha256(tmp_path / "same.bin")


def test_where_the_real_data_are(tmp_path, smears, monkeypatch):
    shown = dict(data=tmp_path / "data", authors=tmp_path / "authors")
    text = "\n".join(f"{key} = {folder}" for key, folder in shown.items())
    source = (load_settings().paths.data.parents[1] / "settings.ini").read_text()
    source = source.replace("data = data/all-idb1\nauthors = data/authors", text)
    (tmp_path / "settings.ini").write_text(source)
    settings = load_settings("paper", path=tmp_path / "settings.ini")
    monkeypatch.delenv("BLOODCOUNT_DATA", raising=False)
    with pytest.raises(InputError, match="bloodcount data authors"):
        real_data(settings)
    for name in ("authors", "data", "named"):
        write_dataset(tmp_path / name, smears[:1])
        if name == "named":
            monkeypatch.setenv("BLOODCOUNT_DATA", str(tmp_path / name))
        assert real_data(settings).root == tmp_path / name
    monkeypatch.setenv("BLOODCOUNT_DATA", str(tmp_path / "none"))
    with pytest.raises(InputError, match="BLOODCOUNT_DATA=.*none"):
        real_data(settings)


def test_the_outlines_of_all_idb1_are_its_counts(data_folder):
    data = DataSet(data_folder)
    chosen = names(data, "rbc", having=["polygons"])
    found = [len(read_polygons(data.root / "polygons" / "rbc" / f"{name}.json")) for name in chosen]
    assert found == list(data.index.loc[chosen, "rbc_count"])
    assert len(chosen) == 13 and sum(found) == 5341
    assert [len(names(data, "rbc", split)) for split in ("train", "test")] == [10, 3]
    assert data.title == "ALL-IDB1 (108 images)"


def test_smears_of_all_idb1(data_folder):
    data = DataSet(data_folder)
    for name in ("Im037_0", "Im001_1"):
        smear = read_smear(data, name)
        assert smear.image.shape == (*data.index.loc[name, ["height", "width"]], 3)
        mask, edge = smear.masks["rbc"], smear.edges["rbc"]
        assert mask.shape == edge.shape == smear.image.shape[:2]
        inside = np.zeros_like(mask)
        for outline in smear.polygons["rbc"]:
            first = np.floor(outline.min(axis=0)).astype(int).clip(0)
            size = np.ceil(outline.max(axis=0)).astype(int) + 1 - first
            part = inside[first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
            part |= polygon_mask(outline - first, part.shape)
        assert 2 * (inside & mask).sum() / (inside.sum() + mask.sum()) > 0.95


@pytest.mark.parametrize(
    "outline", [[], [[1, 2]], [[1, 2], [3, 4]], [[1, 2], [3, 4], [5, float("nan")]]]
)
def test_an_outline_without_three_points_is_refused(tmp_path, outline):
    path = tmp_path / "outlines.json"
    path.write_text(json.dumps({"polygons": [[[0, 0], [9, 0], [9, 9]], outline]}))
    with pytest.raises(InputError, match="outline 2 has no three points"):
        read_polygons(path)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", "/root"])
def test_a_name_of_an_image_holds_no_folder(tmp_path, name):
    write_dataset(tmp_path / "data", [synthetic_smear(0, (128, 128), rbc=2, wbc=0, plt=0)])
    path = tmp_path / "data" / "index.csv"
    path.write_text(path.read_text().replace("Syn000_0", name))
    with pytest.raises(InputError, match="the name of an image holds no folder"):
        _ = DataSet(tmp_path / "data").index

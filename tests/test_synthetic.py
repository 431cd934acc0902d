"""The synthetic smear: its truth is exact, its dials do what they say."""

import numpy as np
import pytest
from skimage.measure import label

from bloodcount.data import polygon_mask, read_smear, write_dataset
from bloodcount.errors import SettingsError
from bloodcount.settings import Sample
from bloodcount.synthetic import LOOKS, sample_smears, synthetic_smear


def components(mask):
    return int(label(mask, connectivity=2).max())


def overlapping_pairs(smear):
    shape = smear.image.shape[:2]
    cells = [polygon_mask(outline, shape).ravel() for outline in smear.polygons["rbc"]]
    flat = np.array(cells, np.float32)
    return int(np.triu(flat @ flat.T > 0, 1).sum())


def test_same_seed_same_bytes():
    first, again, other = synthetic_smear(3), synthetic_smear(3), synthetic_smear(4)
    assert first.image.tobytes() == again.image.tobytes()
    assert all(first.masks[cell].tobytes() == again.masks[cell].tobytes() for cell in first.masks)
    assert not np.array_equal(first.image, other.image)


def test_optics_leave_the_cells_in_place():
    sharp, dim = (
        synthetic_smear(3, blur=0, noise=0),
        synthetic_smear(3, blur=3, stain=0.5, look="olive"),
    )
    assert np.array_equal(sharp.edges["rbc"], dim.edges["rbc"])


@pytest.mark.parametrize("seed", range(5))
def test_apart_each_cell_is_one_component(seed):
    smear = synthetic_smear(seed, overlap=0)
    red, edge = smear.masks["rbc"], smear.edges["rbc"]
    assert components(red) == components(red & ~edge) == smear.counts["rbc"]
    assert components(smear.masks["wbc"]) == smear.counts["wbc"]
    assert components(smear.masks["plt"]) == smear.counts["plt"]


@pytest.mark.parametrize("overlap", [0, 0.1, 0.3, 0.6, 1.0])
def test_overlap_dial(overlap):
    smear = synthetic_smear(7, rbc=30, overlap=overlap, whole=True)
    assert overlapping_pairs(smear) == min(round(overlap * 30), 29)


@pytest.mark.parametrize("whole", [True, False])
def test_outlines_enclose_the_mask(whole):
    smear = synthetic_smear(5, overlap=0.6, whole=whole)
    shape = smear.image.shape[:2]
    union = np.any([polygon_mask(outline, shape) for outline in smear.polygons["rbc"]], axis=0)
    assert (union & ~smear.masks["rbc"]).sum() == 0
    assert (smear.masks["rbc"] & ~union).sum() <= (0 if whole else 100)
    assert len(smear.polygons["rbc"]) == smear.counts["rbc"] == 45


def test_seen_parts_do_not_overlap_and_can_be_counted():
    smear = synthetic_smear(5, overlap=0.5, whole=False)
    assert overlapping_pairs(smear) == 0
    parts = label(smear.masks["rbc"] & ~smear.edges["rbc"], connectivity=2)
    assert (np.bincount(parts.ravel())[1:] >= 200).sum() == 45


def test_cell_types_are_disjoint_and_white_cells_touch():
    smear = synthetic_smear(2, rbc=25, wbc=5, touching=1.0, patient=True)
    assert sum(mask.astype(int) for mask in smear.masks.values()).max() == 1
    assert components(smear.masks["wbc"]) == 1 and smear.counts["wbc"] == 5


@pytest.mark.parametrize("look", LOOKS)
def test_stains_absorb_as_they_should(look):
    smear = synthetic_smear(6, look=look)
    green = smear.image[..., 1]
    empty = ~np.any(list(smear.masks.values()), axis=0)
    background, red, white = (
        np.median(green[m]) for m in (empty, smear.masks["rbc"], smear.masks["wbc"])
    )
    assert background > 1.05 * red > 1.05 * white
    assert np.percentile(green[smear.masks["wbc"]], 10) < 0.6 * background


@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 9)])
def test_few_or_no_cells(counts):
    rbc, wbc, plt = counts
    smear = synthetic_smear(rbc=rbc, wbc=wbc, plt=plt, shape=(200, 300))
    assert tuple(components(mask) for mask in smear.masks.values()) == counts
    assert smear.image.shape == (200, 300, 3) and smear.image.dtype == np.uint8


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(SettingsError, match="do not fit into 128 x 128 px"):
        synthetic_smear(shape=(128, 128), rbc=20)
    with pytest.raises(SettingsError, match="'cream'"):
        synthetic_smear(look="craem")
    with pytest.raises(SettingsError, match="overlap 1.5"):
        synthetic_smear(overlap=1.5)


def test_sample_survives_writing(tmp_path):
    smears = sample_smears(Sample(smears=4, height=320, width=416))
    assert [smear.name for smear in smears] == ["Syn001_1", "Syn002_0", "Syn003_1", "Syn004_0"]
    assert [smear.splits["wbc"] for smear in smears] == ["train", "train", "test", "train"]
    data = write_dataset(tmp_path / "sample", smears)
    for smear in smears:
        back = read_smear(data, smear.name)
        assert back.counts == smear.counts and back.splits == smear.splits
        assert np.array_equal(back.image, smear.image)
        assert np.array_equal(back.edges["rbc"], smear.edges["rbc"])
        assert all(
            np.allclose(a, b, atol=0.01)
            for a, b in zip(back.polygons["rbc"], smear.polygons["rbc"])
        )


@pytest.mark.parametrize("size", [(128, 128), (300, 400)])
def test_samples_of_any_size_fit(size):
    smears = sample_smears(Sample(smears=6, height=size[0], width=size[1]))
    for smear in smears:
        assert len(smear.polygons["rbc"]) == smear.counts["rbc"] > 0
        assert (smear.counts["wbc"] <= 2) if smear.name.endswith("_0") else smear.counts["wbc"] >= 1

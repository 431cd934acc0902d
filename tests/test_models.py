"A trained model is a folder with all that it needs to be used."

import json
import shutil

import numpy as np
import pytest

import bloodcount as bc
from bloodcount.errors import InputError, IntegrityError, SettingsError
from bloodcount.models import load_finder, load_model, read_counting, write_counting
from bloodcount.segmentation import SHIPPED, model_folder
from bloodcount.settings import CELLS, load_settings
from bloodcount.synthetic import synthetic_smear

SMOKE = load_settings("smoke")


@pytest.fixture(scope="module")
def smear():
    return synthetic_smear(5, shape=(320, 416), rbc=20, wbc=1, plt=3)


def test_the_door_opens_without_a_backend():
    assert {"load_model", "read_image", "synthetic_smear", "COUNTERS"} <= set(dir(bc))
    assert bc.load_model is load_model
    with pytest.raises(AttributeError, match="no attribute 'lod_model'"):
        _ = bc.lod_model


@pytest.mark.parametrize("cell", CELLS)
def test_shipped_models_bring_their_own_counting(cell):
    counting = read_counting(SHIPPED / cell)
    assert counting.method in counting.count
    assert counting != SMOKE.published["do_unet"][cell]


def test_a_model_counts_with_its_own_parameters(tmp_path, smear):
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED / "rbc", folder)
    own = load_model("rbc", folder, SMOKE)
    assert own.counting == load_model("rbc", settings=SMOKE).counting and own.recipe == "model_a"
    by_default = own.count(smear.image)
    assert abs(len(by_default) - smear.counts["rbc"]) <= 3
    assert len(own.count(smear.image, "cht")) != 0 and own.count(smear.image, "cht").labels.any()
    (folder / "counting.json").unlink()
    untuned = load_model("rbc", folder, SMOKE)
    assert untuned.counting == SMOKE.published["do_unet"]["rbc"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: "{",
        lambda told: json.dumps(told | {"method": "none"}),
        lambda told: json.dumps({k: v for k, v in told.items() if k != "threshold"}),
        lambda told: json.dumps(told | {"threshold": {"mask": 2, "edge": 0.5}}),
        lambda told: json.dumps(told | {"count": {"cht": {"source": "mask"}}}),
    ],
)
def test_damaged_counting_is_told(tmp_path, damage):
    write_counting(tmp_path, read_counting(SHIPPED / "rbc"))
    path = tmp_path / "counting.json"
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(IntegrityError, match="counting.json: damaged"):
        read_counting(tmp_path)


def test_wrong_names():
    with pytest.raises(SettingsError, match="'rcb'.*Did you mean 'rbc'"):
        model_folder("rcb", "bloodcount")
    with pytest.raises(SettingsError, match="'author'.*Did you mean 'authors'"):
        model_folder("rbc", "author")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.uint16),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
        "smear.jpg",
    ],
)
def test_what_is_no_image_is_refused_in_a_sentence(image):
    with pytest.raises(InputError, match=r"An image is an array \(H, W, 3\) of uint8"):
        load_model("rbc", settings=SMOKE).count(image)


def test_a_finder_finds_all_its_types(smear):
    found = load_finder(("rbc", "wbc"), method="edt", settings=SMOKE)(smear.image)
    assert list(found) == ["rbc", "wbc"]
    assert abs(len(found["rbc"]) - smear.counts["rbc"]) <= 3

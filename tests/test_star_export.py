"""The star network outside: the same answers by ONNX, BioImage.IO and QuPath's OpenCV."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from bloodcount import cli, star_export
from bloodcount.drawing import CELL_TITLES
from bloodcount.errors import SettingsError
from bloodcount.files import sha256
from bloodcount.star_export import (
    MAXIMA,
    network_maps,
    network_onnx,
    qupath_script,
    sample_picture,
)
from bloodcount.stars import GRID, HEADS, MARGIN, STARS, SURELY, as_input, load_stars, star_card

CLOSE = {"prob": 1e-4, "dist": 1e-3, "prob_class": 1e-4}  # Of float32 in another order; px for dist


@pytest.fixture(scope="module")
def network():
    return load_stars().model.keras_model


@pytest.fixture(scope="module")
def here(network):
    maps = network_maps(network, sample_picture())
    assert maps["prob"].max() > 0.8 and maps["dist"].max() > 15  # The picture has cells
    return maps


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    "The zip for BioImage.IO."
    pytest.importorskip("onnx")
    pytest.importorskip("bioimageio.spec")
    return star_export.write_bioimageio(tmp_path_factory.mktemp("zip") / "stars.zip", STARS)


def assert_same(found: dict, here: dict) -> None:
    assert set(found) == set(HEADS)
    for name in HEADS:
        assert found[name].shape == here[name].shape
        assert np.abs(found[name] - here[name]).max() < CLOSE[name], name


def test_opencv_reads_the_network_at_any_size(network, here, tmp_path):
    cv2, onnx = pytest.importorskip("cv2"), pytest.importorskip("onnx")
    onnx.save(network_onnx(network), tmp_path / "stars.onnx")
    reader = cv2.dnn.readNetFromONNX(str(tmp_path / "stars.onnx"))
    for picture in (sample_picture(), sample_picture()[:128, 64:]):
        reader.setInput(np.moveaxis(as_input(picture), -1, 0)[None].copy())
        found = dict(zip(HEADS, reader.forward(list(HEADS))))
        assert_same(found, network_maps(network, picture))


def test_a_layer_that_is_not_known_is_refused(network):
    import keras

    with pytest.raises(SettingsError, match="odd of kind GaussianNoise"):
        star_export.layer_nodes(keras.layers.GaussianNoise(0.1, name="odd"), ["image"])


def test_the_package_holds_what_its_users_need(package, here, tmp_path):
    "Among it the model as stardist reads it, and test tensors that are ours."
    with zipfile.ZipFile(package) as file:
        file.extractall(tmp_path)
    assert sha256(tmp_path / "weights_best.h5") == star_card(STARS)["weights_sha256"]
    for name in ("config.json", "thresholds.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((STARS / name).read_text())
    assert np.load(tmp_path / "test_image.npy").shape == (1, 3, 256, 320)
    assert_same({name: np.load(tmp_path / f"test_{name}.npy") for name in HEADS}, here)
    told = (tmp_path / "README.md").read_text()
    assert "is 37 px wide; red cells come from another picture, where it is 48 px wide." in told
    least = star_card(STARS)["thresholds"]
    assert f"of `prob` that reach {least['rbc']:.2f}." in told
    assert f"is above {SURELY['wbc']}" in told and f"the region reaches {least['wbc']:.2f}." in told
    assert f"is above {SURELY['plt']}" in told and f"somewhere reaches {least['plt']:.2f}." in told
    said = ", ".join(f"{CELL_TITLES[cell]} {MAXIMA[cell]:.2f}" for cell in ("wbc", "plt"))
    assert f"other thresholds for some: {said}." in told


def test_bioimageio_finds_no_fault_and_says_the_same(package, here):
    "It mirrors the image at its borders, so they differ by as much as `halo` says."
    core = pytest.importorskip("bioimageio.core")
    pytest.importorskip("onnxruntime")
    summary = core.test_model(package)
    assert summary.status == "passed", summary.display()
    image = np.moveaxis(sample_picture(), -1, 0)[None]
    sample = core.predict(model=package, inputs={"image": image})
    halo = MARGIN // GRID
    inner = np.s_[..., halo:-halo, halo:-halo]
    found = {str(name): tensor.data.to_numpy() for name, tensor in sample.members.items()}
    assert here["prob"][inner].max() > 0.5  # There are cells
    assert_same({n: m[inner] for n, m in found.items()}, {n: m[inner] for n, m in here.items()})


def test_what_was_there_stays_if_writing_fails(monkeypatch, tmp_path):
    pytest.importorskip("bioimageio.spec")

    def broken(*_):
        raise OSError("the disk is full")

    (tmp_path / "stars.zip").write_text("before")
    monkeypatch.setattr(star_export, "network_onnx", broken)
    with pytest.raises(OSError, match="full"):
        star_export.write_bioimageio(tmp_path / "stars.zip", STARS)
    assert [path.name for path in tmp_path.iterdir()] == ["stars.zip"]
    assert (tmp_path / "stars.zip").read_text() == "before"


def test_the_script_for_qupath_names_the_models_own_numbers(tmp_path):
    card = {
        **star_card(STARS),
        "diameter": 30.0,
        "thresholds": {"rbc": 0.5, "wbc": 0.4, "plt": 0.2},
    }
    script = qupath_script(card, tmp_path / 'a "b".onnx')
    assert ".pixelSize(0.2500)" in script and ".threshold(0.5)" in script
    white, platelet = MAXIMA["wbc"], MAXIMA["plt"]
    told = f'["red cells": 0.5, "white cells": {white}, "platelets": {platelet}]'
    assert told in script
    assert r"a \"b\".onnx" in script and script.count("{") == script.count("}")


# The command


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", *map(str, arguments)])
    out, errors = capsys.readouterr()
    return stop.value.code, out, errors.splitlines()


@pytest.mark.parametrize("missing", ["onnx", "bioimageio.spec"])
def test_without_the_extra_one_sentence_says_what_to_install(
    capsys, monkeypatch, tmp_path, missing
):
    for name in ("onnx", "bioimageio.spec"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else json)
    code, _, errors = said(capsys, "--bioimageio", tmp_path / "stars.zip")
    assert (code, len(errors)) == (2, 1)
    assert f"needs {missing}" in errors[0] and "pip install 'bloodcount[share]'" in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "Say what to write: --bioimageio FILE.zip or --qupath FILE.onnx."),
        (["--bioimageio", "stars.onnx"], "--bioimageio stars.onnx: the name must end in .zip."),
        (["--qupath", "stars.pb"], "--qupath stars.pb: the name must end in .onnx."),
    ],
)
def test_wrong_usage_of_export(capsys, arguments, sentence):
    assert said(capsys, *arguments)[::2] == (2, [sentence])


def test_no_star_model_is_refused(capsys, tmp_path):
    code, _, errors = said(capsys, "--weights", tmp_path, "--qupath", tmp_path / "a.onnx")
    assert (code, len(errors)) == (3, 1) and str(tmp_path) in errors[0]


def test_what_the_tool_counts_with_is_exported(monkeypatch):
    from bloodcount.picture import CountPlan
    from bloodcount.stars import STAR_WEIGHTS

    asked = []
    monkeypatch.setattr(star_export, "write_qupath", lambda path, model: asked.append(model) or [])
    with pytest.raises(SystemExit):
        cli.main(["export", "--qupath", "a.onnx"])
    assert asked == [STAR_WEIGHTS[CountPlan().weights]]


def test_both_at_once_by_the_command_itself(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("bioimageio.spec")
    asked = ["--bioimageio", "a.zip", "--qupath", "b.onnx"]
    done = subprocess.run(
        [sys.executable, "-c", "from bloodcount.start import main; main()", "export", *asked],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["a.zip", "b.onnx", "b.groovy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.groovy", "b.onnx"]

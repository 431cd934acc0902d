"Another engine finds the same cells."

import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from bloodcount import engines
from bloodcount.counting import count
from bloodcount.errors import SettingsError
from bloodcount.models import load_model
from bloodcount.segmentation import maps_name
from bloodcount.settings import load_settings
from bloodcount.synthetic import synthetic_smear

SMOKE = load_settings("smoke")
no_openvino = importlib.util.find_spec("openvino") is None


def with_engine(name):
    segment = {k: dataclasses.replace(v, engine=name) for k, v in SMOKE.segment.items()}
    return dataclasses.replace(SMOKE, segment=segment)


@pytest.mark.skipif(no_openvino, reason="openvino is not installed")
@pytest.mark.parametrize("cell", ["rbc", "wbc"])
def test_openvino_counts_as_keras(cell):
    smear = synthetic_smear(5, shape=(320, 416), rbc=20, wbc=2, plt=3)
    ours, theirs = (load_model(cell, settings=with_engine(e)) for e in ("keras", "openvino"))
    maps, others = ours.maps(smear.image), theirs.maps(smear.image)
    assert np.abs(maps.mask - others.mask).mean() < 0.01
    assert np.abs(maps.mask - others.mask).max() < 0.35
    counts = [len(count(m, ours.counting)) for m in (maps, others)]
    assert abs(counts[0] - counts[1]) <= 1
    names = {maps_name(smear.image, model.segmenter) for model in (ours, theirs)}
    assert len(names) == 2, "maps of two engines are kept apart"


QUIET = """
import sys
calls = []
watched = ("socket.getaddrinfo", "socket.connect", "os.fork", "subprocess.Popen")
sys.addaudithook(lambda event, args: calls.append((event, str(args)[:80])) if event in watched else None)
import numpy
from bloodcount.networks import keras
from bloodcount.engines import compiled
calls.clear()  # What loading TensorFlow starts is not of the engine
image = keras.Input((32, 32, 3), name="image")
network = keras.Model(image, keras.layers.Conv2D(1, 3, padding="same")(image))
compiled(network, "openvino")(numpy.zeros((1, 32, 32, 3), "float32"))
print(calls)
"""


@pytest.mark.skipif(no_openvino, reason="openvino is not installed")
def test_openvino_tells_nobody(tmp_path):
    where = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", QUIET], env=where, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert not (tmp_path / "intel").exists()  # Where its makers would have named this user


def test_names_of_engines(monkeypatch):
    with pytest.raises(SettingsError, match="'openvin'.*Did you mean 'openvino'"):
        engines.chosen_engine("openvin")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert engines.chosen_engine("auto") == "keras"
    with pytest.raises(SettingsError, match="not installed: pip install"):
        engines.chosen_engine("openvino")

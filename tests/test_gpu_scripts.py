"""The scripts of benchmarks/gpu: the network, its losses and its truth are the library's; what is missing is said at once."""

import subprocess
import sys

import numpy as np
import pytest

from bloodcount.settings import CELLS, PROJECT, load_settings

GPU = PROJECT / "benchmarks" / "gpu"


@pytest.fixture
def stars(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    import stars

    yield stars
    sys.modules.pop("stars")


def test_the_network_is_the_librarys(stars):
    from bloodcount.networks import keras
    from bloodcount.star_training import star_network

    theirs, ours = star_network().keras_model, stars.network(keras)
    weights = theirs.get_weights()
    assert [w.shape for w in weights] == [w.shape for w in ours.get_weights()]
    ours.set_weights(weights)
    image = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    for true, found in zip(theirs.predict(image, verbose=0), ours.predict(image, verbose=0)):
        assert true.shape == found.shape
        assert np.abs(true - found).max() < 0.02 * max(np.abs(true).max(), 1)  # bfloat16


def test_the_loss_is_the_librarys(stars):
    from bloodcount.star_training import LOSS_WEIGHTS, UNIT, StarSchedule, _compiled, star_network
    from bloodcount.stars import RAYS

    rng, shape = np.random.default_rng(1), (2, 8, 8)
    depth = rng.random(shape).astype(np.float32) * (rng.random(shape) > 0.5)
    kinds = rng.integers(-1, 4, shape)
    depth[kinds < 0] = 0
    reach = 30 * rng.random((*shape, RAYS)).astype(np.float32)
    found = [rng.random((*shape, 1)), 4 * rng.random((*shape, RAYS)), rng.random((*shape, 4))]
    found[2] /= found[2].sum(axis=-1, keepdims=True)
    found = [each.astype(np.float32) for each in found]
    total, parts = stars.loss_of(found, depth[..., None], reach, kinds)

    model = star_network()
    losses = _compiled(model, StarSchedule()).loss
    middle = np.where(kinds < 0, -1, depth)[..., None].astype(np.float32)
    one_hot = np.eye(4, dtype=np.float32)[kinds.clip(0)]
    one_hot[kinds < 0] = -1
    true = middle, np.concatenate([reach / UNIT, depth[..., None]], axis=-1), one_hot
    wanted = [float(np.mean(loss(t, f))) for loss, t, f in zip(losses, true, found)]
    assert np.allclose([float(p) for p in parts], wanted, rtol=1e-4)
    weights = LOSS_WEIGHTS[0], LOSS_WEIGHTS[1] * UNIT, LOSS_WEIGHTS[2]
    assert float(total) == pytest.approx(np.dot(weights, wanted), rel=1e-4)


def test_every_chain_is_of_recipes_that_there_are(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    import train

    recipes = load_settings("gpu").recipe
    for cell, _, names, _ in train.CHAINS:
        assert cell in CELLS and set(names) <= set(recipes[cell])
        for name, before in zip(names, ("none", *names)):
            assert recipes[cell][name].start == before
    sys.modules.pop("train")


def test_a_machine_without_the_data_is_left_at_once(tmp_path):
    script = (GPU / "run.sh").read_text().replace("/tmp/", f"{tmp_path}/")
    (tmp_path / "bc").mkdir()
    (tmp_path / "data" / "images").mkdir(parents=True)
    done = subprocess.run(
        ["bash", "-c", script, "run.sh", "500"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "0 of 108 images" in done.stdout


def test_archives_hold_what_was_trained_once(tmp_path):
    runs, stars, out = (tmp_path / name for name in ("runs", "stars", "out"))
    folder = runs / "gpu-x" / "trained" / "rbc-do_unet-best-0"
    for each in (folder, stars, out, runs / "gpu-x" / "trained" / "rbc-segnet-half-0"):
        each.mkdir(parents=True)
    np.savez(folder / "checkpoint.npz", best000=np.ones(3, np.float32), model000=np.zeros(3))
    (folder / "history.csv").write_text("epoch\n1\n")
    (stars / "stars.npz").write_bytes(b"weights")
    (runs / "gpu-x" / "trained" / "rbc-segnet-half-0" / "weights.npz").write_bytes(b"large")
    command = [sys.executable, GPU / "collect.py", runs, stars, out, tmp_path / "sent.txt"]

    def names() -> set[str]:
        import tarfile

        subprocess.run(command, check=True, capture_output=True)
        found = {
            name.rpartition("/")[2]
            for a in out.glob("*.tar")
            for name in tarfile.open(a).getnames()
        }
        for archive in out.glob("*.tar"):
            archive.unlink()
        return found

    assert names() == {"history.csv", "unfinished.npz", "stars.npz"}
    assert names() == {"history.csv"}

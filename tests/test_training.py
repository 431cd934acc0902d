"""Training: who learns from what, killed and resumed, diverged, damaged; both backends."""

import contextlib
import dataclasses
import os
import pickle
import shutil
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from backends import numbers_elsewhere, write_numbers
from small import small, small_network

from bloodcount import training as module
from bloodcount.data import DataSet, Smear, image_path, names, read_smear, write_dataset
from bloodcount.errors import IntegrityError, RunError, SettingsError
from bloodcount.files import read_card, sha256
from bloodcount.networks import MODELS, OUTPUTS, do_unet, keras, read_weights, write_weights
from bloodcount.segmentation import Segmenter, load_segmenter
from bloodcount.settings import CELLS, PROFILES, load_settings
from bloodcount.synthetic import sample_smears
from bloodcount.training import Source, Training, build, prepare, read_checkpoint, sides, train

SMOKE = load_settings("smoke")
KEPT = ["card.json", "history.csv", "weights.npz"]


def changed(settings, title, **values):
    "Settings with other values in a section."
    first, *others = title.split(".")
    node = getattr(settings, first)
    if not others:
        return dataclasses.replace(settings, **{first: dataclasses.replace(node, **values)})
    leaf = others.pop()
    inner = node[others[0]] if others else node
    inner = {**inner, leaf: dataclasses.replace(inner[leaf], **values)}
    return dataclasses.replace(settings, **{first: {**node, others[0]: inner} if others else inner})


def training(folder, runs, *what, settings=SMOKE, **options) -> Training:
    "A training on the synthetic smears of a folder."
    settings = changed(settings, "paths", runs=Path(folder) / runs)
    return Training(settings, DataSet(Path(folder) / "data"), *(what or ("rbc",)), **options)


@pytest.fixture
def light():
    with small_network():
        yield


@pytest.fixture(scope="module", autouse=True)
def few_validation_chips():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "VALIDATION_CHIPS", 8)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "Where the synthetic smears are."
    folder = tmp_path_factory.mktemp("train")
    write_dataset(folder / "data", sample_smears(SMOKE.sample))
    return folder


class Deadly:
    "In the place of a progress bar: acts after a number of steps."

    def __init__(self, steps, act):
        self.left, self.act = steps, act

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def set_postfix(self, **_):
        pass

    def update(self):
        self.left -= 1
        if self.left == 0:
            self.act()


def stop():
    raise KeyboardInterrupt


def rows(made: Path) -> pd.DataFrame:
    return pd.read_csv(made / "history.csv").drop(columns="seconds")


def weights_of(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[name] for name in sorted(file.files)]


# Which images


def dotted(name, seed, split=None, cells=("rbc",), edge=False) -> Smear:
    image = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), np.uint8)
    mask = np.ones((12, 12), bool)
    edges = {"rbc": mask} if edge else {}
    return Smear(
        name, image, dict.fromkeys(cells, mask), edges, splits={"rbc": split, "wbc": split}
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> DataSet:
    "As ALL-IDB1: few images with edges, many without a split; some are there twice."
    smears = [dotted(f"A{i}", i, "train", CELLS, True) for i in range(8)]
    smears += [dotted(f"T{i}", 50 + i, "test", CELLS, True) for i in range(2)]
    smears += [dotted("T2", 52, "test", ())]
    smears += [dotted("A8", 51, "train", CELLS, True)]  # T1
    smears += [dotted(f"L{i}", i) for i in range(8)]  # A0 to A7
    smears += [dotted("L8", 50), dotted("L9", 52)]  # T0, T2
    smears += [dotted(f"M{i}", 70 + i) for i in range(5)]
    return write_dataset(tmp_path_factory.mktemp("mixed") / "data", smears)


def pixels(data: DataSet, images) -> set[str]:
    return {sha256(image_path(data, name)) for name in images}


@pytest.mark.parametrize("validation", [1, 3, 20])
@pytest.mark.parametrize("images", ["train", "large", "large_with_test"])
@pytest.mark.parametrize("cell", ["rbc", "wbc"])
def test_no_image_is_on_two_sides(mixed, cell, images, validation):
    settings = changed(SMOKE, f"recipe.{cell}.best", validation=validation)
    learnt, judged = sides(Training(settings, mixed, cell), images)
    tested = names(mixed, cell, "test")
    assert len(judged) == min(validation, 7) and {*judged} < {f"A{i}" for i in range(8)}
    assert not pixels(mixed, learnt) & pixels(mixed, judged)
    assert not pixels(mixed, judged) & pixels(mixed, tested)
    with_a_mask = {*names(mixed, cell, having=["mask"])}
    kept_out = pixels(mixed, judged) | pixels(mixed, [] if images == "large_with_test" else tested)
    every = {*names(mixed, cell, "train")} if images == "train" else with_a_mask
    assert {*learnt} == {name for name in every if not pixels(mixed, [name]) & kept_out}
    assert ({"T0", "T1"} <= {*learnt}) == (images == "large_with_test")


def test_all_seeds_and_recipes_are_judged_on_the_same_images(mixed):
    chosen = {
        tuple(sides(Training(SMOKE, mixed, "rbc", "do_unet", recipe, seed), images)[1])
        for recipe in SMOKE.recipe["rbc"]
        for seed in (0, 1)
        for images in ("train", "large", "large_with_test")
    }
    assert len(chosen) == 1


def test_only_as_paper_learns_from_test_images():
    using = {
        (cell, name)
        for profile in PROFILES
        for cell, recipes in load_settings(profile).recipe.items()
        for name, recipe in recipes.items()
        if "large_with_test" in recipe.stages
    }
    assert using == {("rbc", "as_paper")}


@pytest.mark.parametrize(
    "smears",
    [
        [dotted("T", 1, "test", CELLS, True)],
        [dotted("A", 0, "train", CELLS, True), dotted("T", 1, "test", CELLS, True)],
        [dotted("A", 0, "train", CELLS, True), dotted("B", 1, "train", CELLS, True)]
        + [dotted("T", 1, "test", CELLS, True)],
        [dotted("A", 0, "train", CELLS, True), dotted("B", 0, "train", CELLS, True)],
        [dotted("A", 0, "train", ()), dotted("B", 1, "train", ()), dotted("C", 2)],
    ],
    ids=["none", "one", "the other is a test image", "one twice", "no masks"],
)
def test_too_few_images_are_one_sentence(smears, tmp_path):
    data = write_dataset(tmp_path / "few", smears)
    with pytest.raises(SettingsError, match=r" has too few rbc images with a mask to train on\.$"):
        sides(Training(SMOKE, data, "rbc"), "train")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("rcb",), "'rcb'.*Did you mean 'rbc'"),
        (("rbc", "dounet"), "'dounet'.*Did you mean 'do_unet'"),
        (("wbc", "do_unet", "model_b"), "no recipe 'model_b' for wbc"),
    ],
)
def test_wrong_names(folder, names, says):
    with pytest.raises(SettingsError, match=says):
        training(folder, "runs", *names)


@pytest.mark.parametrize(
    ("network", "size", "nearest"),
    [("do_unet", 190, "188 or 196"), ("do_unet", 84, "92 or 100"), ("segnet", 127, "96 or 128")],
)
def test_a_chip_that_does_not_fit_is_one_sentence(folder, network, size, nearest):
    settings = changed(SMOKE, f"train.{network}", input_size=size)
    with pytest.raises(SettingsError, match=rf"\[train.{network}\] input_size = {size}.*{nearest}"):
        training(folder, "runs", "rbc", network, settings=settings)


# Batches


def equal(a, b) -> bool:
    (image, truth), (other, others) = a, b
    return np.array_equal(image, other) and all(map(np.array_equal, truth, others))


@pytest.mark.parametrize(("recipe", "stage"), [("best", 0), ("best", 1), ("as_paper", 1)])
def test_batches_go_on_where_they_were(folder, recipe, stage):
    at = training(folder, "runs", recipe=recipe)
    steps = at.chosen[0].steps
    whole = list(islice(Source(at, stage).batches(0), 3 * steps))
    late = list(islice(Source(at, stage).batches(1), 2 * steps))
    assert len(late) == 2 * steps and all(map(equal, whole[steps:], late))
    assert not any(equal(a, b) for i, a in enumerate(whole) for b in whole[:i])
    other = next(Source(dataclasses.replace(at, seed=1), stage).batches(0))
    assert not equal(other, whole[0])


def test_the_first_stage_teaches_both_outputs_the_mask(folder):
    at = training(folder, "runs")
    for stage in (0, 1):
        for image, (mask, edge) in islice(Source(at, stage).batches(0), 4):
            assert image.shape == (2, 108, 108, 3) and mask.shape == edge.shape == (2, 20, 20, 1)
            assert np.array_equal(mask, edge) == (stage == 0) or not (mask.any() or edge.any())
            assert image.dtype == mask.dtype == np.float32 and -1 <= image.min() < image.max() <= 1
    _, truth = Source(at, 1).validation()
    assert not np.array_equal(truth["mask"], truth["edge"]) and truth["edge"].any()


@pytest.mark.parametrize(
    ("cell", "recipe", "stages"),
    [
        ("rbc", "best", [1]), ("rbc", "refined", [0]), ("rbc", "model_b", []),
        ("wbc", "best", []), ("plt", "best", []),
    ],
)  # fmt: skip
def test_cells_are_pasted_where_edges_are_learnt(folder, monkeypatch, cell, recipe, stages):
    pasted = []

    def paste(smear, number, *arguments):
        pasted.append(stage)
        assert number == round(at.chosen[1].paste * len(smear.polygons["rbc"])) > 0
        return real(smear, number, *arguments)

    real = module.paste_cells
    monkeypatch.setattr(module, "paste_cells", paste)
    at = training(folder, "runs", cell, recipe=recipe)
    for stage in range(len(at.chosen[0].stages)):
        source = Source(at, stage)
        list(islice(source.batches(0), 2 * at.chosen[0].steps))
        source.validation()
        assert pasted.count(stage) == (2 * len(source.learnt) if stage in stages else 0)


@pytest.mark.parametrize(
    ("cell", "recipe", "drawn_into"),
    [("wbc", "refined", 1), ("wbc", "best", 0), ("plt", "refined", 0)],
)
def test_white_cells_are_drawn_anew_each_epoch(folder, monkeypatch, cell, recipe, drawn_into):
    images = {True: [], False: []}  # Of those that are learnt, of those that judge

    def draw(smear, number, rng):
        assert number == at.chosen[1].drawn > 0
        images[smear.name in source.learnt].append(real(smear, number, rng).image)
        return real(smear, 1, rng)

    real = module.draw_white_cells
    monkeypatch.setattr(module, "draw_white_cells", draw)
    at = training(folder, "runs", cell, recipe=recipe)
    source = Source(at, 0)
    list(islice(source.batches(0), 2 * at.chosen[0].steps))
    for _ in range(2):
        source.validation()
    assert len(source.learnt) <= module.DRAWN_INTO and len(images[True]) == 2 * drawn_into
    assert len({image.tobytes() for image in images[True]}) == 2 * drawn_into
    judged = {image.tobytes() for image in images[False]}
    assert len(judged) == drawn_into * len(source.judged) == len(images[False]) / 2


def test_validation_is_the_same_for_every_epoch_and_unchanged(folder):
    at = training(folder, "runs")
    (image, truth), (again, _) = Source(at, 0).validation(), Source(at, 0).validation()
    assert np.array_equal(image, again)
    hard = changed(
        SMOKE, "augment.best", hue=(0.1, 0.1), gamma=(3.0, 3.0), paste=2.0, quality=(0.5, 0.5)
    )
    strong = training(folder, "runs", settings=hard)
    assert np.array_equal(image, Source(strong, 0).validation()[0])
    assert truth["mask"].mean() > 0.1


# The network of a stage


@pytest.mark.usefixtures("light")
def test_rate_rises_and_falls(folder):
    settings = changed(SMOKE, "recipe.rbc.best", epochs=(20, 2), steps=10)
    at = training(folder, "runs", settings=settings)
    model = build(at)

    def rates(steps):
        prepare(model, at, 0)
        for step in steps:
            model.optimizer.iterations.assign(step)
            yield float(model.optimizer.learning_rate)

    rising, falling = list(rates(range(11))), list(rates(range(10, 201)))
    assert np.all(np.diff(rising) > 0) and np.all(np.diff(falling) < 0)
    assert rising[0] == 0 and np.isclose(rising[-1], 1e-3) and falling[-1] <= 1.1e-5
    at = training(folder, "runs", recipe="as_paper")
    assert set(rates(range(10))) == {np.float32(1e-4)}


@pytest.mark.parametrize("network", MODELS)
def test_half_precision_is_for_arithmetic_alone(folder, network):
    settings = changed(SMOKE, f"train.{network}", precision="mixed_bfloat16")
    model = build(training(folder, "runs", "rbc", network, settings=settings))
    assert keras.config.dtype_policy().name == "float32"
    assert {str(w.dtype) for w in model.weights} == {"float32"} == {o.dtype for o in model.outputs}
    assert "bfloat16" in {layer.compute_dtype for layer in model.layers}


def test_an_encoder_that_is_not_there(folder):
    settings = changed(SMOKE, "train.segnet", encoder_weights="nowhere/vgg16.h5")
    with pytest.raises(IntegrityError, match="nowhere/vgg16.h5: no such weights"):
        train(training(folder, "runs", "rbc", "segnet", settings=settings))


# A whole training, and one that is killed twice


@dataclasses.dataclass
class Record:
    "A training, and what was seen of it."

    training: Training
    made: Path
    epochs: list  # Progress and arrays by group, an epoch
    read: set[str]  # Names of the images


@pytest.fixture(scope="module")
def whole(folder) -> Record:
    "A red cells' network, trained in two stages without interruption."
    at, epochs, read = training(folder, "whole"), [], set()
    write, smear = module.write_checkpoint, module.read_smear

    def watched(path, *arguments):
        write(path, *arguments)
        epochs.append(read_checkpoint(path, at.key))

    def reads(data, name, *arguments):
        read.add(name)
        return smear(data, name, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_checkpoint", watched)
        patch.setattr(module, "read_smear", reads)
        return Record(at, train(at), epochs, read)


def test_a_trained_model_says_what_it_is(whole):
    card, history = read_card(whole.made), rows(whole.made)
    assert sorted(path.name for path in whole.made.iterdir()) == KEPT
    assert card["weights_sha256"] == sha256(whole.made / "weights.npz")
    what = [card[key] for key in ("cell", "network", "recipe", "profile", "seed")]
    assert what == ["rbc", "do_unet", "best", "smoke", 0]
    assert card["images"] == {"large": ["Syn001_1", "Syn002_0"], "train": ["Syn001_1", "Syn002_0"]}
    assert card["validation"] == ["Syn004_0"] and card["key"] == whole.training.key
    assert card["data"]["fingerprint"] == whole.training.data.fingerprint and card["commit"]
    assert list(zip(history["stage"], history["epoch"])) == [
        ("large", 1), ("large", 2), ("train", 1), ("train", 2)
    ]  # fmt: skip
    last = history[history["stage"] == "train"]
    assert card["best"]["epoch"] == last.loc[last["score"].idxmax(), "epoch"]
    assert np.isfinite(history.drop(columns="stage").to_numpy()).all()
    dice = (history["val_mask_soft_dice"] + history["val_edge_soft_dice"]) / 2
    assert np.allclose(history["score"], dice, atol=1e-5)
    used = card["settings"]
    assert used["recipe"]["epochs"] == [2, 2] and used["augment"]["paste"] == 0.3


def test_test_images_are_never_looked_at(whole):
    assert whole.read == {"Syn001_1", "Syn002_0", "Syn004_0"}
    assert "Syn003_1" in names(whole.training.data, "rbc", "test")


def test_the_second_stage_freezes_the_mask_head(whole):
    model = build(whole.training)
    head = {
        n: [i for i, w in enumerate(model.weights) if w.path.startswith(f"{n}/")]
        for n in OUTPUTS["rbc"]
    }
    (_, first), (_, second), (_, third), (_, fourth) = whole.epochs
    best = first if whole.epochs[1][0].best == whole.epochs[0][0].best else second

    def moved(before, after, output):
        return [not np.array_equal(before["model"][i], after["model"][i]) for i in head[output]]

    assert moved(first, second, "mask") == moved(first, second, "edge") == [True, True]
    for before, after in ((best, third), (third, fourth)):
        assert moved(before, after, "mask") == [False, False]
        assert moved(before, after, "edge") == [True, True]
        assert not np.array_equal(before["model"][0], after["model"][0])


def test_a_stage_begins_and_ends_with_the_best_weights(whole):
    for number, (state, arrays) in enumerate(whole.epochs):
        stage = [s for s, _ in whole.epochs[: number + 1] if s.stage == state.stage]
        scores = [row["score"] for row in state.history[-len(stage) :]]
        assert state.best == max(scores)
        best = whole.epochs[number + 1 - len(scores) + int(np.argmax(scores))][1]["model"]
        assert all(map(np.array_equal, arrays["best"], best))
    half = [w.astype(np.float16) for w in whole.epochs[-1][1]["best"]]
    assert all(map(np.array_equal, weights_of(whole.made / "weights.npz"), half))


def killed(folder: Path, where: str, number: int) -> None:
    "A training in a process of its own, which gets SIGKILL."
    done = subprocess.run(
        [sys.executable, __file__, folder, where, str(number)],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_killed_in_each_stage_it_ends_with_the_same_weights(folder, straight):
    at = training(folder, "killed")
    checkpoint = at.folder / "checkpoint.npz"
    killed(folder, "step", 3)
    state, _ = read_checkpoint(checkpoint, at.key)
    assert (state.stage, state.epoch) == (0, 1) and len(rows(at.folder)) == 1
    assert load_is_refused(at.folder)
    killed(folder, "write", 3)
    state, _ = read_checkpoint(checkpoint, at.key)
    assert (state.stage, state.epoch) == (1, 1) and len(rows(at.folder)) == 3
    assert len(list(at.folder.glob(".checkpoint.*"))) == 1  # Half of the fourth epoch
    made = train(at)
    pd.testing.assert_frame_equal(rows(made), rows(straight), check_exact=True)
    assert sha256(made / "weights.npz") == sha256(straight / "weights.npz")
    assert sorted(path.name for path in made.iterdir()) == KEPT
    for key in ("key", "weights_sha256", "epochs", "images", "validation", "settings"):
        assert read_card(made)[key] == read_card(straight)[key], key


def load_is_refused(made: Path) -> bool:
    with pytest.raises(IntegrityError, match="no trained model"):
        load_segmenter("rbc", SMOKE, made)
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_step(folder: str, number: int) -> None:
    with small_network():
        train(training(folder, "killed"), Deadly(number, die))


def die_in_a_write(folder: str, number: int) -> None:
    "When half of the checkpoint is on the disk."
    real, left = np.savez, [number]

    def savez(path, **arrays):
        real(path, **arrays)
        left[0] -= 1
        if left[0] == 0:
            os.truncate(path, path.stat().st_size // 2)
            die()

    np.savez = savez
    with small_network():
        train(training(folder, "killed"))


# Seeds, faults


@pytest.fixture(scope="module")
def straight(folder) -> Path:
    "A small network, trained without any fault."
    with small_network():
        return train(training(folder, "straight"))


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_another_seed_other_weights(folder, straight):
    other = train(training(folder, "seed 1", seed=1))
    checksums = [read_card(each)["weights_sha256"] for each in (straight, other)]
    assert checksums[0] != checksums[1] == sha256(other / "weights.npz")
    assert straight.name != other.name


@pytest.mark.usefixtures("light")
def test_a_network_with_one_output(folder):
    made = train(training(folder, "one output", "wbc"))
    history = rows(made)
    assert set(history["stage"]) == {"train"} and len(history) == 2
    assert np.array_equal(history["score"], history["val_mask_soft_dice"])
    assert read_card(made)["weights_sha256"] == load_segmenter("wbc", SMOKE, made).checksum


@pytest.mark.usefixtures("light")
def test_goes_on_with_the_network_of_another_recipe(folder, straight, monkeypatch):
    at, began = training(folder, "goes on", recipe="refined"), []
    real = module.prepare

    def prepares(model, training, stage):
        if training.recipe == "refined":
            began.append([np.asarray(w) for w in model.weights])
        real(model, training, stage)

    monkeypatch.setattr(module, "prepare", prepares)
    made = train(at)
    before = at.start.folder
    assert sha256(before / "weights.npz") == sha256(straight / "weights.npz")
    assert len(began) == 1 and all(
        map(np.array_equal, began[0], weights_of(before / "weights.npz"))
    )
    history = rows(made)
    assert not np.array_equal(history["score"], history["val_edge_soft_dice"])
    assert np.array_equal(history["score"], -history["val_loss"])
    assert read_card(made)["best"]["epoch"] == history.loc[history["val_loss"].idxmin(), "epoch"]
    other = changed(at.settings, "recipe.rbc.best", rate=2e-3)
    assert dataclasses.replace(at, settings=other).key != at.key


@pytest.fixture(scope="module")
def after_one_epoch(folder, tmp_path_factory) -> Path:
    "The folder of runs of a small network that was stopped in its second epoch."
    place = tmp_path_factory.mktemp("stopped")
    (place / "data").symlink_to(folder / "data")
    with small_network(), pytest.raises(KeyboardInterrupt):
        train(training(place, "runs"), Deadly(3, stop))
    return place


@pytest.fixture
def stopped(after_one_epoch, tmp_path, light) -> Training:
    "A copy of that, to be spoilt."
    shutil.copytree(after_one_epoch, tmp_path, symlinks=True, dirs_exist_ok=True)
    return training(tmp_path, "runs")


def spoil_a_batch(monkeypatch):
    "The loss of the second epoch is not a number."
    real = Source.batches

    def batches(self, epoch):
        for image, truth in real(self, epoch):
            yield image * np.float32(np.nan), truth

    monkeypatch.setattr(Source, "batches", batches)


def spoil_the_weights(monkeypatch):
    "Its losses are numbers, but what Adam makes of the last one is not."
    real, left = module._Keeper.on_train_batch_end, [2]

    def ends(self, batch, logs=None):
        real(self, batch, logs)
        left[0] -= 1
        if left[0] == 0:
            kernel = self.model.weights[0]
            kernel.assign(np.full(kernel.shape, np.nan, np.float32))

    monkeypatch.setattr(module._Keeper, "on_train_batch_end", ends)


@pytest.mark.parametrize(
    ("spoil", "what"), [(spoil_a_batch, "loss is"), (spoil_the_weights, "weights are")]
)
def test_not_a_number_stops_and_the_last_epoch_is_kept(stopped, straight, spoil, what):
    before = state_of(stopped.folder)
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch)
        with pytest.raises(
            RunError, match=f"^The {what} not a number in epoch 2; .*Lower the rate"
        ):
            train(stopped)
    assert state_of(stopped.folder) == before
    state, arrays = read_checkpoint(stopped.folder / "checkpoint.npz", stopped.key)
    assert (state.stage, state.epoch) == (0, 1)
    assert all(np.isfinite(w).all() for w in (*arrays["model"], *arrays["best"]))
    if spoil is spoil_a_batch:
        assert sha256(train(stopped) / "weights.npz") == sha256(straight / "weights.npz")


def test_a_damaged_checkpoint_is_told_and_never_gone_on_from(stopped):
    path = stopped.folder / "checkpoint.npz"
    body = path.read_bytes()
    for share in (0, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(body[: int(share * len(body))])
        with pytest.raises(IntegrityError, match="damaged.*Delete it to train anew") as error:
            train(stopped)
        assert str(path) in str(error.value) and error.value.exit_code == 3
    path.write_bytes(body)
    state, arrays = read_checkpoint(path, stopped.key)
    for place in range(0, len(body), len(body) // 150):
        flipped = bytearray(body)
        flipped[place] ^= 64
        path.write_bytes(flipped)
        with contextlib.suppress(IntegrityError):
            again, others = read_checkpoint(path, stopped.key)
            assert again == state
            for group in arrays:  # A name that is damaged loses its array: see below
                lost = len(others[group]) < len(arrays[group])
                assert lost or all(map(np.array_equal, arrays[group], others[group])), place


def test_a_checkpoint_without_some_arrays_is_damaged(stopped):
    path = stopped.folder / "checkpoint.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    for lost in ("model000", "optimizer000", "progress"):
        np.savez(path, **{name: array for name, array in arrays.items() if name != lost})
        with pytest.raises(IntegrityError, match="damaged checkpoint.*Delete it to train anew"):
            train(stopped)


def other_settings(at: Training) -> list[Training]:
    settings = [
        changed(at.settings, "recipe.rbc.best", rate=2e-3),
        changed(at.settings, "augment.best", skip=0.25),
        changed(at.settings, "train.do_unet", batch=3),
        changed(at.settings, "preprocess", clahe_clip=3.0),
    ]
    return [dataclasses.replace(at, settings=each) for each in settings]


def state_of(folder: Path) -> dict:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}


def test_other_settings_never_go_on_from_a_checkpoint(stopped):
    before = state_of(stopped.folder)
    for other in other_settings(stopped):
        assert other.folder == stopped.folder and other.key != stopped.key
        with pytest.raises(SettingsError, match="other settings or data. Move that folder away"):
            train(other)
    assert state_of(stopped.folder) == before
    same = changed(stopped.settings, "recipe.rbc.model_a", rate=2e-3)
    assert dataclasses.replace(stopped, settings=same).key == stopped.key


def test_what_is_done_is_not_done_again(straight, folder, monkeypatch):
    at, before = training(folder, "straight"), state_of(straight)
    monkeypatch.setattr(module, "build", None)
    assert train(at) == straight and state_of(straight) == before
    for other in other_settings(at):
        with pytest.raises(SettingsError, match="other settings or data. Move that folder away"):
            train(other)
    assert state_of(straight) == before
    (straight / "checkpoint.npz").write_bytes(b"killed before it was removed")
    train(at)
    assert state_of(straight) == before


def test_killed_after_the_last_epoch(stopped, straight, monkeypatch):
    "Weights without a card are no trained model."
    real = module.write_json
    with monkeypatch.context() as patch:
        patch.setattr(
            module,
            "write_json",
            lambda path, text: stop() if "card" in path.name else real(path, text),
        )
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert (stopped.folder / "weights.npz").exists() and load_is_refused(stopped.folder)
    monkeypatch.setattr(module, "_learn", None)
    assert sha256(train(stopped) / "weights.npz") == sha256(straight / "weights.npz")
    assert sorted(path.name for path in stopped.folder.iterdir()) == KEPT


def test_a_damaged_card_is_told(straight, tmp_path, folder):
    shutil.copytree(folder / "straight", tmp_path / "straight")
    (tmp_path / "data").symlink_to(folder / "data")
    at = training(tmp_path, "straight")
    card = (at.folder / "card.json").read_bytes()
    for damaged in (card[:-3], b"", b"[]", b"{}"):
        (at.folder / "card.json").write_bytes(damaged)
        with pytest.raises(IntegrityError, match="card.json"):
            train(at)


# Weights as they are kept


def test_weights_round_trip(tmp_path):
    model, twin = do_unet(), do_unet()
    write_weights(model, tmp_path / "weights.npz")
    assert (tmp_path / "weights.npz").stat().st_size < 2.2 * model.count_params()
    assert all(array.dtype == np.float16 for array in weights_of(tmp_path / "weights.npz"))
    assert read_weights(twin, tmp_path / "weights.npz") is twin
    for ours, theirs in zip(model.weights, twin.weights):
        assert str(theirs.dtype) == "float32"
        np.testing.assert_allclose(np.asarray(theirs), np.asarray(ours), rtol=2**-11, atol=1e-7)
    first = sha256(tmp_path / "weights.npz")
    write_weights(twin, tmp_path / "weights.npz")
    assert sha256(tmp_path / "weights.npz") == first
    kernel = twin.weights[0]
    for value in (1e5, np.nan):
        kernel.assign(np.full(kernel.shape, value, np.float32))
        with pytest.raises(IntegrityError, match="not finite in float16"):
            write_weights(twin, tmp_path / "weights.npz")
    assert sha256(tmp_path / "weights.npz") == first


class Evil:
    "Touches a file when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_are_no_weights(tmp_path):
    model, path, run = small(), tmp_path / "weights.npz", tmp_path / "run"
    write_weights(model, path)
    body, before = path.read_bytes(), [np.asarray(w).astype(np.float16) for w in model.weights]

    def refused(what="not weights that can be read"):
        with pytest.raises(IntegrityError, match=what) as error:
            read_weights(model, path)
        assert str(path) in str(error.value) and error.value.exit_code == 3
        assert not run.exists()
        return True

    for share in (0, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(body[: int(share * len(body))])
        assert refused()
    path.write_text("These are no weights.")
    assert refused()
    path.write_bytes(pickle.dumps(Evil(run)))
    assert refused()
    np.savez(path, **{"000": np.array([Evil(run)], object)})
    assert refused()
    with open(path, "wb") as file:
        np.save(file, before[0])
    assert refused()
    path.unlink()
    assert refused()
    for others in (small(("mask",)), do_unet()):
        write_weights(others, path)
        assert refused("another network than functional.* with 2 outputs")
    for place in range(0, len(body), 7):
        flipped = bytearray(body)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with contextlib.suppress(IntegrityError):
            read_weights(model, path)
            assert all(map(np.array_equal, before, model.weights)), place


def test_a_trained_model_is_loaded_by_its_folder(whole, tmp_path):
    smear = read_smear(whole.training.data, "Syn003_1")
    segmenter = load_segmenter("rbc", SMOKE, whole.made)
    maps = segmenter(smear.image)
    assert (
        segmenter.checksum == sha256(whole.made / "weights.npz") and segmenter.network == "do_unet"
    )
    assert maps.mask.shape == maps.edge.shape == smear.image.shape[:2]
    with pytest.raises(IntegrityError, match="trained for rbc, not for wbc"):
        load_segmenter("wbc", SMOKE, whole.made)
    for name in ("card.json", "weights.npz"):
        (tmp_path / name).write_bytes((whole.made / name).read_bytes())
    right, body = segmenter.checksum, bytearray((tmp_path / "weights.npz").read_bytes())
    body[len(body) // 2] ^= 1
    for wrong in (bytes(body), bytes(body[:-1]), b""):
        (tmp_path / "weights.npz").write_bytes(wrong)
        found = sha256(tmp_path / "weights.npz")
        with pytest.raises(IntegrityError, match=f"{found}, expected {right}") as error:
            load_segmenter("rbc", SMOKE, tmp_path)
        assert error.value.exit_code == 3
    (tmp_path / "weights.npz").unlink()
    assert load_is_refused(tmp_path)


# The other backend


def settled(model: keras.Model, image: np.ndarray) -> keras.Model:
    "The model, its batch normalisation with the statistics of an image, as after training."
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(image, training=True)
    return model


def maps_of(folder: Path) -> dict[str, np.ndarray]:
    "What DO-U-Nets say of a synthetic smear."
    image = read_smear(DataSet(folder / "data"), "Syn003_1").image
    model = read_weights(do_unet(), folder / "random.npz")
    segmenters = {"random": Segmenter("rbc", "do_unet", "random", "", model, SMOKE)}
    if (SMOKE.paths.authors / "weights" / "rbc.h5").exists():
        segmenters["authors"] = load_segmenter("rbc", SMOKE, "authors")
    made = {name: segmenter(image) for name, segmenter in segmenters.items()}
    return {
        f"{name} {plane}": getattr(made[name], plane) for name in made for plane in ("mask", "edge")
    }


def steps_of(folder: Path) -> dict[str, np.ndarray]:
    "The loss and the weights of a small network after each of a few steps, its mask head frozen."
    at = training(folder, "steps")
    with small_network():
        model = build(at)
    with np.load(folder / "small.npz") as file:
        model.set_weights([file[name] for name in sorted(file.files)])
    prepare(model, at, 1)
    found = {}
    for number, (image, truth) in enumerate(islice(Source(at, 1).batches(0), 3)):
        found[f"loss {number}"] = np.asarray(model.train_on_batch(image, list(truth)))[0]
        # The gradient of the first bias is rounding alone: the normalisation behind it takes it away
        found |= {
            f"step {number}, {i}": np.asarray(w) for i, w in enumerate(model.weights) if i != 1
        }
    return found


def trained_here(folder: Path, runs: str) -> dict[str, np.ndarray]:
    "A small network of two outputs after two stages, and one of one output."
    with small_network():
        made = {"small": train(training(folder, runs)), "wbc": train(training(folder, runs, "wbc"))}
    return {
        f"trained {name} {column}": rows(folder)[column].to_numpy()
        for name, folder in made.items()
        for column in ("loss", "score")
    }


@pytest.mark.slow
def test_trains_and_maps_alike_on_the_other_backend(folder):
    keras.utils.set_random_seed(3)
    image = read_smear(DataSet(folder / "data"), "Syn003_1").image[None] / np.float32(127.5) - 1
    write_weights(settled(do_unet(), image[:, :212, :212]), folder / "random.npz")
    np.savez(folder / "small.npz", *(np.asarray(w) for w in small().weights))
    there = numbers_elsewhere(__file__, folder)
    here = maps_of(folder) | steps_of(folder)
    for name in here:
        apart = np.abs(here[name] - there.pop(name)).max()
        assert apart < 1e-4, f"{name}: {apart}"
    assert all(here[f"random {plane}"].std() > 0.02 for plane in ("mask", "edge"))
    assert {len(there.pop(f"trained small {column}")) for column in ("loss", "score")} == {4}
    assert {len(there.pop(f"trained wbc {column}")) for column in ("loss", "score")} == {2}
    assert not there


if __name__ == "__main__":
    place, *what = sys.argv[1:]
    module.VALIDATION_CHIPS = 8
    if what:
        {"step": die_in_a_step, "write": die_in_a_write}[what[0]](place, int(what[1]))
    else:
        place = Path(place)
        write_numbers(maps_of(place) | steps_of(place) | trained_here(place, "elsewhere"), place)

"The command as people use it: exit codes, sentences, tables and overlays."

import csv
import dataclasses
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image, ImageOps

import bloodcount
from bloodcount import batch, cli, fetch
from bloodcount.errors import IntegrityError
from bloodcount.images import read_image
from bloodcount.segmentation import Maps, cut
from bloodcount.settings import PROJECT, load_settings
from bloodcount.synthetic import synthetic_smear

COMMAND = Path(sys.executable).with_name("bloodcount")
# Nine red cells, dark all over and apart from each other: any threshold finds them.
SMEAR = synthetic_smear(seed=7, shape=(200, 260), rbc=9, wbc=0, plt=0, overlap=0, pallor=0)


def by_darkness(image: np.ndarray) -> Maps:
    "A segmenter that needs no network, and is sure: cells absorb green light."
    mask = cut(1 - image[..., 1].astype(np.float32) / 255, "otsu").astype(np.float32)
    return Maps(mask, cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3))))


@pytest.fixture
def run(monkeypatch, capsys):
    "Runs the command in this process with that segmenter: exit code, stdout, lines of stderr."
    monkeypatch.setattr(cli, "load_segmenters", lambda cells, *_: dict.fromkeys(cells, by_darkness))
    return lambda *arguments: in_process(capsys, *arguments)


def in_process(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return stop.value.code, said.out, said.err.splitlines()


def rows(out: Path) -> list[dict]:
    with open(out / "counts.csv", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == batch.COUNTS
        return list(reader)


def save(path: Path, pixels=SMEAR.image, **options) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def jpeg(pixels=SMEAR.image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


# The command itself


def test_help_and_version_load_nothing_heavy():
    for option, said in (("--help", "Usage: bloodcount"), ("--version", bloodcount.__version__)):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", COMMAND, option],
            check=True,
            capture_output=True,
            text=True,
        )
        assert said in done.stdout
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "bloodcount.cli" in loaded
        assert not loaded & {"tensorflow", "keras", "pandas", "skimage", "cv2", "numpy"}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--method", "watershd"], "--method watershd: no such name. Did you mean 'watershed'?"),
        (["--cell", "rcb"], "--cell rcb: no such name. Did you mean 'rbc'?"),
        (["--profile", "smok"], "There is no profile 'smok'. Did you mean 'smoke'?"),
    ],
)
def test_wrong_names_are_one_sentence(run, tmp_path, arguments, sentence):
    code, _, errors = run("count", save(tmp_path / "a.png"), "-o", tmp_path / "out", *arguments)
    assert (code, errors) == (2, [sentence])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["count", "a.png"], ["count", "-o", "out"], ["count", "a.png", "--metod", "x"], ["cuont"]],
)
def test_bad_usage(run, arguments):
    code, _, errors = run(*arguments)
    assert code == 2 and errors[-1].startswith("Error: ")


def test_a_mistake_in_the_code_is_one_line_too(run, monkeypatch, tmp_path):
    def broken(*_):
        raise TypeError("of no use\nto anybody")

    monkeypatch.setattr(batch, "count_files", broken)
    code, _, errors = run("count", "a.png", "-o", tmp_path)
    assert code == 1 and len(errors) == 1 and "TypeError: of no use to anybody" in errors[0]


# Counting


def test_tables_and_overlays(run, tmp_path):
    image = save(tmp_path / "a.png")
    code, said, errors = run(
        "count", image, "-o", tmp_path / "out", "--cell", "rbc", "--method", "all"
    )
    assert (code, errors) == (0, [])
    table = rows(tmp_path / "out")
    assert [row["method"] for row in table] == ["cht", "ccl", "watershed", "edt"]
    assert {(row["status"], row["width"], row["height"], row["profile"]) for row in table} == {
        ("ok", "260", "200", "paper")
    }
    counted = {row["method"]: int(row["count"]) for row in table}
    assert counted["ccl"] == 9
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert list(cells) == batch.FOUND
    assert cells.groupby("method").size().to_dict() == {m: n for m, n in counted.items() if n}
    for row in table:
        assert read_image(tmp_path / "out" / row["overlay"]).shape == SMEAR.image.shape
        assert row["count"] in said


def test_each_cell_type_has_the_method_of_the_settings(run, tmp_path):
    run("count", save(tmp_path / "a.png"), "-o", tmp_path / "out")
    chosen = load_settings().method
    assert {row["cell"]: row["method"] for row in rows(tmp_path / "out")} == dataclasses.asdict(
        chosen
    )


def test_bad_images_among_good_ones(run, tmp_path):
    save(tmp_path / "first.png")
    for share in (10, 50, 90):
        whole = jpeg()
        (tmp_path / f"cut{share}.jpg").write_bytes(whole[: len(whole) * share // 100])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "junk.tif").write_bytes(b"II*\0" + b"\xff" * 200)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    save(tmp_path / "last.png")
    reasons = {
        "cut10.jpg": "truncated",
        "cut50.jpg": "truncated",
        "cut90.jpg": "truncated",
        "empty.png": "not an image that can be read",
        "text.jpg": "not an image that can be read",
        "junk.tif": "junk.tif: ",
        "folder": "a folder; name the images in it",
        "fifo.png": "not a file",
        "none.png": "no such file",
    }
    paths = [tmp_path / name for name in ("first.png", *reasons, "last.png")]
    code, _, errors = run(
        "count", *paths, "-o", tmp_path / "out", "--cell", "rbc", "--method", "ccl"
    )
    assert code == 1
    assert errors[-1] == "9 of 11 images could not be counted." and len(errors) == 10
    table = rows(tmp_path / "out")
    assert [row["image"] for row in table] == [str(path) for path in paths]
    for row, (name, reason), line in zip(table[1:-1], reasons.items(), errors):
        assert row["status"] == "error" and row["count"] == row["overlay"] == ""
        assert reason in row["error"] and row["error"] == line and str(tmp_path / name) in line
    assert [row["count"] for row in (table[0], table[-1])] == ["9", "9"]


def test_all_bad_leaves_tables_with_a_header(run, tmp_path):
    code, *_ = run("count", tmp_path / "none.png", "-o", tmp_path / "out", "--cell", "rbc")
    assert code == 1 and len(rows(tmp_path / "out")) == 1
    assert (tmp_path / "out" / "cells.csv").read_text() == ",".join(batch.FOUND) + "\n"
    assert not (tmp_path / "out" / "overlays").exists()


def test_a_long_list_is_shown_in_part(run, tmp_path):
    paths = [tmp_path / f"none{n}.png" for n in range(33)]
    code, said, _ = run("count", *paths, "-o", tmp_path, "--cell", "rbc")
    assert code == 1 and len(rows(tmp_path)) == 33
    assert "none29.png" in said and "none30.png" not in said and "and 3 more, in counts.csv" in said


def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    code = "import sys; from bloodcount.cli import count_file; print(count_file(sys.argv[1], {}, {}, None).error)"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "fifo"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"{tmp_path / 'fifo'}: not a file; pass an image.\n"


def test_names(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        "a/field.png",
        "b/field.png",
        "b/Field.JPG",
        "=1+1.png",
        "Größe µm 血.png",
        "field-2.png",
    ]
    for name in names:
        save(Path(name))
    long = save(Path("x" * 240 + ".png"))
    bytes_only = save(Path(os.fsdecode(b"caf\xe9.png")))
    twice = ["a/../b/field.png", "./=1+1.png"]
    code, _, errors = run(
        "count", *names, *twice, long, bytes_only, "-o", "out", "--cell", "rbc", "--method", "ccl"
    )
    assert (code, errors) == (0, [])
    table = rows(Path("out"))
    shown = [name if name[0] != "=" else f"'{name}" for name in names]
    assert [row["image"] for row in table] == [*shown, str(long), "caf\\udce9.png"]
    overlays = [row["overlay"] for row in table]
    assert all(Path("out", overlay).is_file() for overlay in overlays)
    assert (
        len({overlay.casefold() for overlay in overlays})
        == len(list(Path("out/overlays").iterdir()))
        == 8
    )
    assert (
        overlays[0] == "overlays/field_rbc_ccl.png"
        and overlays[4] == "overlays/Größe µm 血_rbc_ccl.png"
    )
    for table in ("out/counts.csv", "out/cells.csv"):
        with open(table, encoding="utf-8", newline="") as file:
            assert not [
                text for row in csv.reader(file) for text in row if text.startswith(tuple("=+-@"))
            ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(run, tmp_path, orientation):
    "The picture is stored turned, with a tag that turns it back."
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    upright = Image.fromarray(SMEAR.image)
    exif = upright.getexif()
    exif[0x0112] = undo
    upright.info["exif"] = exif.tobytes()
    stored = ImageOps.exif_transpose(upright)
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
    code, *_ = run("count", tmp_path / "a.jpg", "-o", tmp_path, "--cell", "rbc", "--method", "ccl")
    (row,) = rows(tmp_path)
    assert code == 0 and row["count"] == "9" and (row["width"], row["height"]) == ("260", "200")
    drawn = read_image(tmp_path / row["overlay"]).astype(int)
    unchanged = np.abs(drawn - SMEAR.image).max(axis=2) < 12
    assert drawn.shape == SMEAR.image.shape and unchanged.mean() > 0.7


def test_bit_depths(run, tmp_path):
    sixteen = SMEAR.image.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "8.tif", SMEAR.image, photometric="rgb")
    tifffile.imwrite(tmp_path / "16.tif", sixteen, photometric="rgb")
    tifffile.imwrite(tmp_path / "12 in 16.tif", sixteen >> 4, photometric="rgb")
    tifffile.imwrite(
        tmp_path / "float.tif", (SMEAR.image / 255).astype(np.float32), photometric="rgb"
    )
    run("count", *tmp_path.glob("*.tif"), "-o", tmp_path, "--cell", "rbc", "--method", "ccl")
    counts = [int(row["count"]) for row in rows(tmp_path)]
    assert len(counts) == 4 and all(abs(n - 9) <= 1 for n in counts)


def test_colour_modes(run, tmp_path):
    picture = Image.fromarray(SMEAR.image)
    picture.quantize(64).save(tmp_path / "P.png")
    for mode in ("RGBA", "L", "LA"):
        picture.convert(mode).save(tmp_path / f"{mode}.png")
    for mode in ("CMYK", "L"):
        picture.convert(mode).save(tmp_path / f"{mode}.jpg", quality=95)
    paths = sorted([*tmp_path.glob("*.png"), *tmp_path.glob("*.jpg")])
    code, _, errors = run("count", *paths, "-o", tmp_path, "--cell", "rbc", "--method", "ccl")
    assert code == 0
    table = rows(tmp_path)
    assert {Path(row["image"]).name: int(row["count"]) for row in table} == {
        path.name: 9 for path in paths
    }
    warned = [row["warnings"] for row in table if row["warnings"]]
    assert warned == errors and len(warned) == 3
    assert all("a grey image; white cells and platelets need colour" in text for text in warned)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (20, 20)])
def test_tiny_and_empty_fields(run, tmp_path, shape):
    for name, value in (("black", 0), ("white", 255)):
        save(tmp_path / f"{name}.png", np.full((*shape, 3), value, np.uint8))
    paths = [tmp_path / "black.png", tmp_path / "white.png"]
    code, _, errors = run("count", *paths, "-o", tmp_path, "--method", "all")
    assert (code, errors) == (0, [])
    assert {row["status"] for row in rows(tmp_path)} == {"ok"}


# What stops a run


def test_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    for out, reason in (
        (tmp_path / "taken", "not a folder"),
        (tmp_path / "taken" / "x", "Not a directory"),
    ):
        code, _, errors = run("count", save(tmp_path / "a.png"), "-o", out)
        assert (code, errors) == (1, [f"{out}: results cannot be written there ({reason})."])


def test_full_disk_leaves_what_was_there(run, tmp_path):
    image = save(tmp_path / "a.png")
    command = ("count", image, "-o", tmp_path / "out", "--cell", "rbc", "--method", "ccl")
    run(*command)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        code, _, errors = run(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    place = tmp_path / "out" / "overlays" / "a_rbc_ccl.png"
    assert (code, errors) == (1, [f"{place}: cannot be written (File too large)."])
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.*")} == before


def stopping(error):
    "A segmenter that does its work once."
    images = []

    def segmenter(image):
        images.append(image)
        if len(images) > 1:
            raise error
        return by_darkness(image)

    return segmenter


def test_weights_that_yield_nan_stop_everything(run, tmp_path, monkeypatch):
    segmenter = stopping(IntegrityError("The weights of rbc yield NaN."))
    monkeypatch.setattr(cli, "load_segmenters", lambda *_: {"rbc": segmenter})
    paths = [save(tmp_path / f"{n}.png") for n in range(3)]
    code, _, errors = run("count", *paths, "-o", tmp_path / "out", "--cell", "rbc")
    assert (code, errors) == (3, ["The weights of rbc yield NaN."])
    assert not (tmp_path / "out" / "counts.csv").exists()


def test_settings_that_cannot_work_stop_everything(run, tmp_path, monkeypatch):
    no_edge = {"rbc": lambda image: Maps(by_darkness(image).mask)}
    monkeypatch.setattr(cli, "load_segmenters", lambda *_: no_edge)
    code, _, errors = run(
        "count", save(tmp_path / "a.png"), "-o", tmp_path, "--cell", "rbc", "--method", "ccl"
    )
    assert code == 2 and len(errors) == 1 and "needs an edge map" in errors[0]


def test_interrupt_keeps_what_is_done(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "load_segmenters", lambda *_: {"rbc": stopping(KeyboardInterrupt())})
    paths = [save(tmp_path / f"{n}.png") for n in range(3)]
    code, _, errors = run("count", *paths, "-o", tmp_path / "out", "--cell", "rbc")
    assert (code, errors) == (130, ["Interrupted: 1 of 3 images are counted."])
    assert [row["image"] for row in rows(tmp_path / "out")] == [str(paths[0])]


def test_a_segmenter_that_fails_on_one_image(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        cli, "load_segmenters", lambda *_: {"rbc": stopping(ValueError("odd\nshape"))}
    )
    paths = [save(tmp_path / f"{n}.png") for n in range(2)]
    code, _, errors = run("count", *paths, "-o", tmp_path, "--cell", "rbc")
    assert code == 1 and errors[0] == f"{paths[1]}: could not be counted (ValueError: odd shape)."
    assert [row["status"] for row in rows(tmp_path)] == ["ok", "error"]


# The authors' weights


@pytest.fixture
def settings_of(monkeypatch):
    "Makes the command look for the authors' folder, for data and for runs, somewhere else."

    def set_paths(**paths):
        def moved(*names):
            settings = load_settings(*names)
            return dataclasses.replace(settings, paths=dataclasses.replace(settings.paths, **paths))

        monkeypatch.setattr(cli, "load_settings", moved)

    return set_paths


def test_missing_weights(capsys, settings_of, tmp_path):
    settings_of(authors=tmp_path / "authors")
    image = save(tmp_path / "a.png")
    code, _, errors = in_process(
        capsys, "count", image, "-o", tmp_path / "out", "--weights", "authors"
    )
    assert code == 3 and len(errors) == 1
    assert str(tmp_path / "authors" / "weights" / "rbc.h5") in errors[0]
    assert "Run `bloodcount data authors`" in errors[0]


def test_damaged_weights(capsys, settings_of, tmp_path, authors_folder):
    weights = bytearray((authors_folder / "weights" / "plt.h5").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "plt.h5").write_bytes(weights)
    settings_of(authors=tmp_path)
    command = ("count", save(tmp_path / "a.png"), "-o", tmp_path / "out", "--weights", "authors")
    code, _, errors = in_process(capsys, *command, "--cell", "plt")
    assert code == 3 and len(errors) == 1
    assert (
        fetch.MEMBERS["weights/plt.h5"][1] in errors[0] and str(tmp_path / "weights") in errors[0]
    )


def test_unknown_weights(capsys, tmp_path):
    image = save(tmp_path / "a.png")
    code, _, errors = in_process(capsys, "count", image, "-o", tmp_path, "--weights", "author")
    assert code == 2 and errors[0].endswith("Did you mean 'authors'?") and len(errors) == 1


def test_segnet_has_no_weights_that_ship(run, tmp_path):
    code, _, errors = run(
        "count", save(tmp_path / "a.png"), "-o", tmp_path / "out", "--weights", "segnet"
    )
    assert code == 2 and len(errors) == 1 and "`bloodcount train --network segnet`" in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model(run, tmp_path):
    image = save(tmp_path / "a.png")
    command = ("count", image, "-o", tmp_path / "out", "--weights", tmp_path)
    assert run(*command)[0] == 2
    (tmp_path / "card.json").write_text("{}")
    code, _, errors = run(*command)
    assert code == 3 and len(errors) == 1 and str(tmp_path / "card.json") in errors[0]
    assert not (tmp_path / "out").exists()


def test_the_real_thing(tmp_path, authors_folder):
    "The installed command with the authors' networks, in its own process."
    smear = synthetic_smear(seed=2, shape=(320, 416), rbc=16, wbc=1, plt=3, overlap=0)
    whole = save(tmp_path / "whole.png", smear.image)
    (tmp_path / "cut.jpg").write_bytes(jpeg(smear.image)[:9000])
    done = subprocess.run(
        [COMMAND, "count", whole, tmp_path / "cut.jpg", "-o", "out", "--weights", "authors"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    first, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert (
        "cut.jpg: damaged or truncated" in first and last == "1 of 2 images could not be counted."
    )
    table = rows(tmp_path / "out")
    assert [row["status"] for row in table] == ["ok"] * 3 + ["error"] * 3
    counted = {row["cell"]: int(row["count"]) for row in table[:3]}
    assert abs(counted["rbc"] - 16) <= 2 and counted["wbc"] == 1 and abs(counted["plt"] - 3) <= 1
    for row in table:
        assert row["weights"] == "authors"
        assert row["weights_sha256"] == fetch.MEMBERS[f"weights/{row['cell']}.h5"][1]


# The other commands


@pytest.mark.parametrize(
    "environment",
    [{"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}, {"TF_ENABLE_ONEDNN_OPTS": "0"}],
    ids=["one thread", "without oneDNN"],
)
def test_threads_and_onednn_move_a_count_by_one_at_most(tmp_path, environment):
    save(tmp_path / "a.png", synthetic_smear(seed=5, shape=(420, 520), rbc=22, overlap=0.2).image)
    counted = []
    for name, more in (("here", {}), ("elsewhere", environment)):
        command = [COMMAND, "count", "a.png", "-o", name, "--cell", "rbc", "--method", "all"]
        done = subprocess.run(
            [*command, "--weights", "bloodcount"],
            cwd=tmp_path,
            env={**os.environ, **more},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        counted.append({row["method"]: int(row["count"]) for row in rows(tmp_path / name)})
    here, elsewhere = counted
    assert len(here) == 4 and max(here.values()) > 10
    assert all(abs(here[method] - elsewhere[method]) <= 1 for method in here), counted


def test_sample(run, tmp_path):
    code, said, _ = run("data", "sample", tmp_path / "sample", "--profile", "smoke")
    assert (code, said) == (0, f"synthetic sample (4 smears): {tmp_path / 'sample'}\n")
    code, _, errors = run("data", "sample", tmp_path / "sample", "--profile", "smoke")
    assert code == 2 and errors == [
        f"{tmp_path / 'sample'} exists; name a folder that is not there yet."
    ]
    images = sorted((tmp_path / "sample" / "images").iterdir())
    code, *_ = run("count", *images, "-o", tmp_path / "out", "--cell", "rbc")
    assert code == 0 and len(rows(tmp_path / "out")) == 4


def test_check(run, tmp_path, monkeypatch):
    assert run("data", "check", tmp_path / "none")[0] == 2
    code, said, errors = run("data", "check", tmp_path)
    assert code == 1 and "missing images/Im001_1.jpg" in said and len(said.splitlines()) == 21
    assert errors == [
        f"{tmp_path}: {len(fetch.registered())} files are missing; run `bloodcount data fetch --accept-terms`."
    ]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "Im001_1.jpg").write_text("damaged")
    monkeypatch.setenv("BLOODCOUNT_DATA", str(tmp_path))
    code, _, errors = run("data", "check")
    assert code == 3 and len(errors) == 1 and "images/Im001_1.jpg has the checksum" in errors[0]
    monkeypatch.setattr(
        fetch, "registered", lambda: {"images/x": fetch.sha256(PROJECT / "LICENSE")}
    )
    (tmp_path / "images" / "x").write_bytes((PROJECT / "LICENSE").read_bytes())
    code, said, _ = run("data", "check")
    assert (code, said) == (0, f"extra images/Im001_1.jpg\n{tmp_path} is complete.\n")


def test_fetch_asks_for_the_terms(run, tmp_path):
    code, said, errors = run("data", "fetch", "--to", tmp_path / "data")
    assert code == 2 and "research and teaching" in said
    assert errors == ["Nothing is downloaded before you accept these terms: add --accept-terms."]
    assert not (tmp_path / "data").exists()


def test_authors_from_a_wheel(run, settings_of, tmp_path):
    settings_of(authors=tmp_path / "authors")
    (tmp_path / fetch.WHEEL).write_text("another package")
    code, said, errors = run("data", "authors", "--wheel", tmp_path / fetch.WHEEL)
    assert code == 3 and len(errors) == 1 and fetch.WHEEL_SHA256 in errors[0]
    assert len(said.splitlines()) == 1 and not (tmp_path / "authors").exists()


def test_reproduce_hands_on_what_it_is_told(run, monkeypatch):
    told = []
    paper = SimpleNamespace(
        reproduce=lambda *arguments: told.append(arguments) or 1, list_notebooks=lambda: "01_data"
    )
    monkeypatch.setattr(bloodcount, "paper", paper, raising=False)
    assert run("reproduce", "--list")[:2] == (0, "01_data\n")
    assert run("reproduce")[0] == 1
    assert (
        run("reproduce", "--profile", "smoke", "--only", "01_data", "--only", "02", "--publish")[0]
        == 1
    )
    assert told == [("paper", None, False), ("smoke", ["01_data", "02"], True)]
    assert run("reproduce", "--profile", "papr")[::2] == (
        2,
        ["There is no profile 'papr'. Did you mean 'paper'?"],
    )


# Training, tuning, the page


def test_train_then_count(capsys, settings_of, tmp_path):
    "A smoke training; its folder is then the weights, for its own cell type."
    settings_of(runs=tmp_path / "runs")
    code, said, _ = in_process(capsys, "train", "--cell", "plt", "--profile", "smoke")
    assert code == 0
    first, stage, *_ = said.splitlines()
    assert first.startswith("do_unet for plt by recipe best, profile smoke, seed 0, on synthetic")
    assert "train: 2 images, 2 epochs of 2 steps of 2 chips" in stage
    (card,) = (tmp_path / "runs").rglob("card.json")
    scores = pd.read_csv(card.parent / "scores.csv")
    assert str(card.parent) in said and "On the test images:" in said
    test = scores[(scores["images"] == "test") & (scores["quantity"] == "count_accuracy")]
    assert len(test) and all(method in said for method in test["method"])
    image = save(tmp_path / "a.png")
    code, *_ = in_process(
        capsys, "count", image, "-o", tmp_path, "--weights", card.parent, "--profile", "smoke"
    )
    (row,) = rows(tmp_path)
    assert (code, row["cell"], row["weights"]) == (0, "plt", str(card.parent))
    assert row["weights_sha256"] == json.loads(card.read_text())["weights_sha256"]


def test_an_interrupted_training_says_what_is_kept(capsys, settings_of, tmp_path, monkeypatch):
    settings_of(runs=tmp_path)
    monkeypatch.setattr("bloodcount.trained.train_model", stopping_at_once)
    code, _, errors = in_process(capsys, "train", "--cell", "wbc", "--profile", "smoke")
    assert code == 130 and errors[-1].startswith("Interrupted: the epochs so far are kept in ")
    assert errors[-1].endswith("trained; the same command goes on.")


def stopping_at_once(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["train", "--cell", "all"], "--cell all: no such name. Known: plt, rbc, wbc."),
        (["train", "--cell", "rbc", "--network", "unet"], "Did you mean 'do_unet'?"),
        (["train", "--cell", "wbc", "--recipe", "model_a"], "Known: as_paper, best, refined."),
        (["train", "--cell", "rbc", "--profile", "latop"], "Did you mean 'laptop'?"),
        (["tune", "--cell", "rcb"], "Did you mean 'rbc'?"),
        (["tune", "--cell", "rbc", "--method", "edf"], "Did you mean 'edt'?"),
        (["tune", "--cell", "rbc", "--weights", "segnte"], "Did you mean 'segnet'?"),
        (["report", "--html", "page.html", "--profile", "papre"], "Did you mean 'paper'?"),
    ],
)
def test_wrong_names_of_other_commands(run, arguments, sentence):
    code, _, errors = run(*arguments)
    assert code == 2 and len(errors) == 1 and errors[0].endswith(sentence)


@pytest.mark.parametrize(
    "arguments", [["train"], ["train", "--cell", "rbc", "--seed", "-1"], ["tune"], ["report"]]
)
def test_bad_usage_of_other_commands(run, arguments):
    code, _, errors = run(*arguments)
    assert code == 2 and errors[-1].startswith("Error: ")


def test_tune_hands_on_what_it_is_told(run, monkeypatch):
    told = []
    monkeypatch.setattr("bloodcount.tune.tune_settings", lambda *told_: told.append(told_) or "[x]")
    assert run("tune", "--cell", "rbc")[:2] == (0, "[x]\n")
    more = ("--weights", "authors", "--method", "cht", "--images", "12", "--profile", "smoke")
    run("tune", "--cell", "WBC", *more)
    (first, *defaults), (second, *named) = told
    assert defaults == ["rbc", None, "bloodcount", None]
    assert named == ["wbc", ["cht"], "authors", 12]
    assert (first.profile, first.weights) == ("paper", "bloodcount")
    assert (second.profile, second.weights) == ("smoke", "authors")


def test_report_hands_on_what_it_is_told(run, monkeypatch, tmp_path):
    told = []
    page = SimpleNamespace(html_report=lambda *told_: told.append(told_))
    monkeypatch.setitem(sys.modules, "bloodcount.paper", page)
    path = tmp_path / "page.html"
    assert run("report", "--html", path, "--profile", "smoke")[:2] == (0, f"{path} is written.\n")
    assert told == [("smoke", path)]

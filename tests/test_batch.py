"Folders of images: what is found, what is written, and that nothing is lost when it is stopped."

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from fake_finder import Darkness
from PIL import Image, ImageOps

from bloodcount import batch, cli, picture
from bloodcount.batch import STORE, Output, count_files, count_folder, find_images
from bloodcount.blocks import enough_memory, in_blocks
from bloodcount.errors import InputError, IntegrityError, RunError, SettingsError
from bloodcount.exports import read_labels, write_labels
from bloodcount.images import read_image
from bloodcount.picture import CountPlan, count
from bloodcount.results import COUNTS, FOUND, by_rule
from bloodcount.synthetic import synthetic_smear

# Nine red cells, dark all over and apart from each other: any threshold finds them.
SMEAR = synthetic_smear(seed=7, shape=(200, 260), rbc=9, wbc=0, plt=0, overlap=0, pallor=0)
MAIN = ["-c", "from bloodcount.start import main; main()"]
FAKE = [sys.executable, str(Path(__file__).with_name("fake_finder.py"))]


@pytest.fixture
def run(monkeypatch, capsys):
    "Runs the command in this process, with a finder that needs no network: exit code, stdout, lines of stderr."
    monkeypatch.setattr(batch, "finder_of", lambda plan: Darkness())

    def command(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return stop.value.code, said.out, said.err.splitlines()

    return command


def save(path: Path, pixels=SMEAR.image, **options) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def smears(folder: Path, n: int, suffix: str = "png") -> list[Path]:
    return [save(folder / f"{i:03d}.{suffix}") for i in range(n)]


def rows(out: Path) -> list[dict]:
    with open(out / "counts.csv", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COUNTS
        return list(reader)


def images_done(out: Path) -> set[str]:
    return (
        {Path(row["image"]).name for row in rows(out)} if (out / "counts.csv").exists() else set()
    )


# What is found


def test_folders_patterns_and_what_is_left_out(tmp_path):
    for name in (
        "a.png",
        "b.JPG",
        "sub/c.tif",
        "._a.png",
        "Thumbs.db",
        "notes.txt",
        ".hidden/d.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in (f"out/{STORE}/names.json", "out/overlays/a.jpg", "out/labels/a_rbc.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()

    def names(*paths, **options):
        found, notes = find_images([str(path) for path in paths], **options)
        return [str(Path(p).relative_to(tmp_path)) for p in found], notes

    found, notes = names(tmp_path)
    assert found == ["a.png", "b.JPG"]
    assert len(notes) == 2 and "1 file is no image" in notes[0] and "-r takes them" in notes[1]
    assert names(tmp_path, recursive=True)[0] == ["a.png", "b.JPG", "sub/c.tif"]
    assert names(tmp_path / "*.png")[0] == ["a.png"]
    found, notes = names(tmp_path / "a.png", tmp_path / "sub" / ".." / "a.png", tmp_path / "*.png")
    assert found == ["a.png"] and len(notes) == 2 and all("given twice" in note for note in notes)
    for nothing in (tmp_path / "out", tmp_path / "*.gif"):
        with pytest.raises(InputError):
            names(nothing)


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    smears(tmp_path, 1)
    smears(tmp_path / "closed", 1)
    look = os.scandir

    def closed(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", folder)
        return look(folder)

    monkeypatch.setattr(os, "scandir", closed)
    found, notes = find_images([str(tmp_path)], recursive=True)
    assert len(found) == 1
    assert notes == [f"{tmp_path / 'closed'}: Permission denied; it is left out."]


def test_a_list_on_standard_input(run, tmp_path, monkeypatch):
    paths = smears(tmp_path / "in", 2)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in paths)))
    assert run("count", "-", "-o", tmp_path / "out")[0] == 0
    assert images_done(tmp_path / "out") == {"000.png", "001.png"}


def test_inputs_are_looked_at_before_a_network_is_loaded(tmp_path):
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *MAIN, "count", tmp_path / "empty", "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "There is no image to count." in done.stderr
    assert "tensorflow" not in done.stderr
    assert not (tmp_path / "out").exists()


# What is written


def test_tables_overlays_and_labels(run, tmp_path):
    image = save(tmp_path / "a.png")
    code, said, errors = run("count", image, "-o", tmp_path / "out", "--pixel-size", 0.1)
    assert (code, errors) == (0, [])
    table = rows(tmp_path / "out")
    assert [(r["cell"], r["count"], r["status"]) for r in table] == [
        (cell, "9", "ok") for cell in ("rbc", "wbc", "plt")
    ]
    assert {(r["count_low"], r["count_high"]) for r in table} == {("4.1", "17.1")}
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert list(cells) == FOUND and len(cells) == 27 and cells["id"].is_unique
    assert cells["area_um"].to_numpy() == pytest.approx(cells["area"].to_numpy() / 100, abs=1e-3)
    assert cells["circularity"].between(0.7, 1).all()
    assert {r["overlay"] for r in table} == {"overlays/a.jpg"}
    assert read_image(tmp_path / "out" / "overlays" / "a.jpg").shape == SMEAR.image.shape
    for row in table:
        labels = read_labels(tmp_path / "out" / row["labels"])
        area = cells[cells["cell"] == row["cell"]]["area"]
        assert np.bincount(labels.ravel())[1:].tolist() == area.tolist()
    assert "red cells: 9 in 1 field" in said and "for ±4 % count 2392 more cells" in said
    assert "WBC:RBC 1 " in said


def test_both_ways_to_name_cells(run, tmp_path):
    image = save(tmp_path / "a.png")
    for number, options in enumerate((["--cell", "rbc,wbc"], ["--cell", "rbc", "--cell", "wbc"])):
        run("count", image, "-o", tmp_path / str(number), *options)
        assert [r["cell"] for r in rows(tmp_path / str(number))] == ["rbc", "wbc"]


@pytest.mark.parametrize("kind", ["png", "jpg", "none"])
def test_overlays_of_each_kind(run, tmp_path, kind):
    run("count", save(tmp_path / "a.png"), "-o", tmp_path / "out", "--overlays", kind)
    found = [p.name for p in tmp_path.glob("out/overlays/*")]
    assert found == ([] if kind == "none" else [f"a.{kind}"])


def test_json_for_pipes(run, tmp_path):
    options = ("--json", "--pool", "folder", "--roi", "--geojson", "--coco")
    for slide in "AB":
        smears(tmp_path / "in" / slide, 2)
    code, said, errors = run("count", tmp_path / "in", "-r", "-o", tmp_path / "out", *options)
    told = json.loads(said)
    assert code == 0 and len(told["counts"]) == 12
    assert [t["count"] for t in told["totals"]] == [18] * 6
    assert {Path(t["pool"]).name for t in told["totals"]} == {"A", "B"}
    for place in ("rois", "geojson", "coco"):
        assert len(list((tmp_path / "out" / place).iterdir())) == 4


def test_a_name_that_is_not_utf8(run, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    save(Path(path))
    code, out, _ = run("count", tmp_path, "-o", tmp_path / "out", "--json")
    assert code == 0 and json.loads(out)["counts"][0]["image"].endswith("caf\\udce9.png")


def test_the_border_rule_makes_parts_add_up_to_the_whole():
    whole = synthetic_smear(
        seed=3, shape=(400, 520), rbc=30, wbc=0, plt=0, overlap=0, touching=0, pallor=0, whole=False
    )
    finder = Darkness(cells=("rbc",))
    parts = [
        np.ascontiguousarray(p) for half in np.vsplit(whole.image, 2) for p in np.hsplit(half, 2)
    ]
    counts = {}
    for rule in ("include", "exclude", "count-two-sides"):
        one = count(whole.image, "rbc", finder, border=rule).counts["rbc"]
        counts[rule] = one, sum(count(p, "rbc", finder, border=rule).counts["rbc"] for p in parts)
    assert counts["include"][1] > counts["include"][0] > counts["exclude"][1]
    assert abs(counts["count-two-sides"][1] - counts["count-two-sides"][0]) <= 1
    labels = by_rule(finder(whole.image)["rbc"], "exclude").labels
    assert not np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]).any()


def test_blocks_of_a_large_picture_give_the_cells_of_the_whole():
    image = synthetic_smear(
        seed=9, shape=(700, 900), rbc=60, wbc=0, plt=0, overlap=0, pallor=0
    ).image
    finder, told = Darkness(cells=("rbc",)), []
    whole = finder(image)["rbc"]
    parts = in_blocks(finder, image, lambda *done: told.append(done), side=256, margin=120)["rbc"]
    assert len(parts) == len(whole) and told[-1] == (12, 12)
    assert ((parts.labels > 0) == (whole.labels > 0)).all()
    assert sorted(np.bincount(parts.labels.ravel())[1:]) == sorted(whole.area)


# Images that cannot be counted


def _broken(folder) -> dict[str, str]:
    "Eight files that cannot be counted, and what is to be said of each."
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(SMEAR.image).save(buffer, "JPEG", quality=95)
    for share in (10, 50, 90):
        whole = buffer.getvalue()
        (folder / f"cut{share}.jpg").write_bytes(whole[: len(whole) * share // 100])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "junk.tif").write_bytes(b"II*\0" + b"\xff" * 200)
    os.mkfifo(folder / "fifo.png")
    return {
        "cut10.jpg": "truncated",
        "cut50.jpg": "truncated",
        "cut90.jpg": "truncated",
        "empty.png": "",
        "text.jpg": "not an image that can be read",
        "junk.tif": "",
        "fifo.png": "not a file",
        "none.png": "no such file",
    }


def test_forty_bad_images_among_two_hundred(run, tmp_path):
    good, paths, reasons = [], [], {}
    for number in range(5):
        folder = tmp_path / f"slide {number}"
        reasons |= {folder / name: reason for name, reason in _broken(folder).items()}
        good += [folder / f"field{i}.png" for i in range(32)]
    save(good[0])
    for path in good[1:]:
        path.write_bytes(good[0].read_bytes())
    paths = [*good[:80], *reasons, *good[80:]]
    code, _, errors = run(
        "count", *paths, "-o", tmp_path / "out", "--cell", "rbc", "--overlays", "none"
    )
    assert code == 1
    assert errors[-1] == "40 of 200 images could not be counted." and not any(
        "Traceback" in e for e in errors
    )
    table = {Path(row["image"]): row for row in rows(tmp_path / "out")}
    assert len(table) == 200
    for path, reason in reasons.items():
        row = table[path]
        assert row["status"] == "error" and row["count"] == row["overlay"] == ""
        assert reason in row["reason"] and path.name in row["reason"] and row["reason"] in errors
    assert {table[path]["count"] for path in good} == {"9"}


def test_all_bad_leaves_tables_with_a_header(run, tmp_path):
    code, *_ = run("count", tmp_path / "none.png", "-o", tmp_path / "out", "--cell", "rbc")
    assert code == 1 and len(rows(tmp_path / "out")) == 1
    assert (tmp_path / "out" / "cells.csv").read_text() == ",".join(FOUND) + "\n"
    assert not (tmp_path / "out" / "overlays").exists()


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
    long, odd = save(Path("x" * 240 + ".png")), save(Path(os.fsdecode(b"caf\xe9.png")))
    code, _, errors = run("count", *names, long, odd, "-o", "out", "--cell", "rbc")
    assert (code, errors) == (0, [])
    table = rows(Path("out"))
    shown = [name if name[0] != "=" else f"'{name}" for name in names]
    assert {row["image"] for row in table} == {*shown, str(long), "caf\\udce9.png"}
    overlays = [row["overlay"] for row in table]
    assert all(Path("out", overlay).is_file() for overlay in overlays)
    assert len({o.casefold() for o in overlays}) == len(list(Path("out/overlays").iterdir())) == 8
    for name in ("out/counts.csv", "out/cells.csv"):
        with open(name, encoding="utf-8", newline="") as file:
            texts = [text for row in csv.reader(file) for text in row]
        assert not [text for text in texts if text.startswith(tuple("=+-@"))]


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
    code, *_ = run("count", tmp_path / "a.jpg", "-o", tmp_path, "--cell", "rbc")
    (row,) = rows(tmp_path)
    assert code == 0 and row["count"] == "9" and (row["width"], row["height"]) == ("260", "200")
    drawn = read_image(tmp_path / row["overlay"]).astype(int)
    unchanged = np.abs(drawn - SMEAR.image).max(axis=2) < 20
    assert drawn.shape == SMEAR.image.shape and unchanged.mean() > 0.6


# Runs into one folder


class Counting(Darkness):
    "How often it was asked stands in a list."

    asked: list = []

    def __call__(self, image):
        self.asked.append(image.shape)
        return super().__call__(image)


def test_the_same_command_does_nothing_twice_and_renews_what_changed(tmp_path):
    paths, out, finder = smears(tmp_path / "in", 3), tmp_path / "out", Counting()
    finder.asked.clear()
    first = count_folder(tmp_path / "in", out, finder=finder)
    again = count_folder(tmp_path / "in", out, finder=finder)
    assert len(finder.asked) == 3 and first.equals(again)
    save(paths[1], np.ascontiguousarray(SMEAR.image[:, :130]))
    changed = count_folder(tmp_path / "in", out, finder=finder)
    assert len(finder.asked) == 4 and len(changed) == len(rows(out)) == 9
    assert changed.set_index(["image", "cell"]).loc[(str(paths[1]), "rbc"), "width"] == 130


def test_other_cells_and_settings_add_their_rows(tmp_path):
    (path,), out = smears(tmp_path / "in", 1), tmp_path / "out"
    for cell in ("rbc", "wbc"):
        count_folder(path, out, [cell], finder=Darkness())
    assert [r["cell"] for r in rows(out)] == ["rbc", "wbc"]
    assert [p.name for p in (out / "overlays").iterdir()] == ["000.jpg"]
    count_folder(path, out, ["rbc"], finder=Darkness(), border="exclude")
    assert len(rows(out)) == 3 and len({r["settings"] for r in rows(out)}) == 2
    files = {p.relative_to(out).as_posix() for p in out.glob("*/*.*") if p.parent.name != STORE}
    assert files == {r[key] for r in rows(out) for key in ("overlay", "labels")}


def test_an_overlay_does_not_outlive_its_row(tmp_path):
    (path,), out = smears(tmp_path / "in", 1), tmp_path / "out"
    count_folder(path, out, finder=Darkness())
    path.write_text("no picture any more")
    count_folder(path, out, finder=Darkness())
    assert {r["status"] for r in rows(out)} == {"error"}
    assert not list((out / "overlays").iterdir()) + list((out / "labels").iterdir())


def test_overwrite_starts_anew_and_spares_other_files(run, tmp_path):
    out = tmp_path / "out"
    run("count", *smears(tmp_path / "in", 2), "-o", out)
    (out / "overlays" / "mine.jpg").touch()
    run("count", tmp_path / "in" / "000.png", "-o", out, "--overwrite")
    assert images_done(out) == {"000.png"}
    assert {p.name for p in (out / "overlays").iterdir()} == {"000.jpg", "mine.jpg"}


def test_a_damaged_record_is_made_again(run, tmp_path):
    out = tmp_path / "out"
    run("count", *smears(tmp_path / "in", 2), "-o", out)
    whole = (out / "counts.csv").read_bytes()
    for more in ((), ("--overwrite",)):
        next((out / STORE).glob("of-*.json")).write_text("")  # As after a power cut
        assert run("count", tmp_path / "in", "-o", out, *more)[0] == 0
        assert (out / "counts.csv").read_bytes() == whole
    (out / STORE / "names.json").write_text("")
    code, _, errors = run("count", tmp_path / "in", "-o", out)
    assert code == 1 and "names.json: damaged. Delete it" in errors[-1]


def test_a_table_of_another_program_is_not_replaced(run, tmp_path):
    (tmp_path / "counts.csv").write_text("mine")
    code, _, errors = run("count", save(tmp_path / "a.png"), "-o", tmp_path)
    assert code == 1 and len(errors) == 1 and "pass --overwrite" in errors[0]
    assert (tmp_path / "counts.csv").read_text() == "mine"
    assert run("count", tmp_path / "a.png", "-o", tmp_path, "--overwrite")[0] == 0


def test_two_at_a_time_are_as_one_after_the_other(tmp_path):
    smears(tmp_path / "in", 5)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    one = count_folder(tmp_path / "in", tmp_path / "one", finder=Darkness())
    two = count_folder(tmp_path / "in", tmp_path / "two", finder=Darkness(), jobs=2)
    assert one.equals(two)
    assert (tmp_path / "one" / "cells.csv").read_bytes() == (
        tmp_path / "two" / "cells.csv"
    ).read_bytes()


def test_python_and_command_line_give_the_same(run, tmp_path):
    (path,), fake = smears(tmp_path / "in", 1), Darkness()
    run("count", path, "-o", tmp_path / "out")
    result = count(path, finder=fake)
    folder = count_folder(path, tmp_path / "other", finder=fake)
    told = {r["cell"]: int(r["count"]) for r in rows(tmp_path / "out")}
    assert result.counts == told == folder.set_index("cell")["count"].to_dict()
    assert result.status == "ok" and len(result.table) == sum(told.values())
    assert "<table" in result._repr_html_() and "data:image/jpeg" in result._repr_html_()
    assert (
        count(Image.open(path), finder=fake).counts
        == count(SMEAR.image, finder=fake).counts
        == told
    )


# What stops a run


class Failing(Darkness):
    "Counts one image, and fails at the next."

    def __init__(self, error):
        super().__init__()
        object.__setattr__(self, "left", [error, None])

    def __call__(self, image):
        error = self.left.pop()
        if error is not None:
            raise error
        return super().__call__(image)


@pytest.mark.parametrize(
    "error, code, said",
    [
        (IntegrityError("The weights of rbc yield NaN."), 3, "The weights of rbc yield NaN."),
        (
            KeyboardInterrupt(),
            130,
            "Interrupted. 1 of 2 images are done; the same command goes on.",
        ),
    ],
)
def test_what_was_done_before_a_stop_is_kept(run, tmp_path, monkeypatch, error, code, said):
    monkeypatch.setattr(batch, "finder_of", lambda plan: Failing(error))
    done = run("count", *smears(tmp_path / "in", 2), "-o", tmp_path / "out", "--cell", "rbc")
    assert (done[0], done[2]) == (code, [said])
    assert images_done(tmp_path / "out") == {"000.png"}


def test_a_finder_that_fails_on_one_image(run, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "finder_of", lambda plan: Failing(ValueError("odd\nshape")))
    paths = smears(tmp_path / "in", 2)
    code, _, errors = run("count", *paths, "-o", tmp_path / "out", "--cell", "rbc")
    assert code == 1 and errors[0] == f"{paths[1]}: could not be counted (ValueError: odd shape)."
    assert [r["status"] for r in rows(tmp_path / "out")] == ["ok", "error"]


def test_a_picture_that_is_enlarged_for_a_network_needs_more_memory(monkeypatch):
    free = type("Memory", (), {"available": 2_000_000_000})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    enough_memory(5_000_000)
    with pytest.raises(InputError, match="5 megapixels need about .* GB of memory"):
        enough_memory(5_000_000, zoom=4.0)


def test_no_memory_is_a_sentence(run, tmp_path, monkeypatch):
    error = type("ResourceExhaustedError", (Exception,), {})("OOM " * 2000)
    monkeypatch.setattr(batch, "finder_of", lambda plan: Failing(error))
    _, _, errors = run(
        "count", *smears(tmp_path / "in", 2), "-o", tmp_path / "out", "--cell", "rbc"
    )
    assert errors[0].endswith("there is not enough memory to count it.")


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    for out, reason in (
        (tmp_path / "taken", "not a folder"),
        (tmp_path / "taken" / "x", "Not a directory"),
    ):
        code, _, errors = run("count", save(tmp_path / "a.png"), "-o", out)
        assert (code, errors) == (1, [f"{out}: results cannot be written there ({reason})."])


def started(folder: Path, out: Path, *options: str, pause: float = 0.3) -> subprocess.Popen:
    "The command in a process of its own."
    return subprocess.Popen(
        [*FAKE, "count", folder, "-o", out, *options],
        env={**os.environ, "PAUSE": str(pause)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_killed_run_keeps_all_finished_rows_and_goes_on(tmp_path, number):
    smears(tmp_path / "in", 8)
    out = tmp_path / "out"
    process = started(tmp_path / "in", out)
    wait_for(lambda: len(images_done(out)) >= 3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    done = images_done(out)
    assert 3 <= len(done) < 8
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number and len(errors.splitlines()) == 1
        assert f"{len(done)} of 8 images are done" in errors
    for row in rows(out):
        assert row["count"] == "9" and read_image(out / row["overlay"]).shape == SMEAR.image.shape
        assert read_labels(out / row["labels"]).max() == 9
    last = started(tmp_path / "in", out, pause=0)
    said, errors = last.communicate(timeout=60)
    assert last.returncode == 0, errors
    assert len(images_done(out)) == 8 and len(pd.read_csv(out / "cells.csv")) == 8 * 27


def test_two_processes_lose_nothing(tmp_path):
    for side in "ab":
        smears(tmp_path / side, 6)
    both = [started(tmp_path / side, tmp_path / "out", pause=0.02) for side in "ab"]
    assert [process.wait(timeout=60) for process in both] == [0, 0], [p.communicate() for p in both]
    table = rows(tmp_path / "out")
    assert len(table) == 36 and len({row["image"] for row in table}) == 12
    assert (
        len({row["overlay"] for row in table})
        == 12
        == len(list((tmp_path / "out/overlays").iterdir()))
    )
    assert len(pd.read_csv(tmp_path / "out" / "cells.csv")) == 36 * 9


@pytest.mark.slow
def test_a_cluster_of_which_a_worker_is_killed(tmp_path):
    distributed = pytest.importorskip("distributed")
    smears(tmp_path / "in", 12)
    paths, _ = find_images([str(tmp_path / "in")])
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        pids, killed = client.run(os.getpid), []

        def kill_one():
            time.sleep(1)
            killed.append(min(pids.values()))
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        output = Output(tmp_path / "out")
        address = cluster.scheduler_address
        counts = count_files(paths, [CountPlan()], output, dask=address, finder=Darkness(0.4))
        killer.join()
    assert killed and len(counts) == 36 and set(counts["status"]) == {"ok"}
    assert len(rows(tmp_path / "out")) == 36


@pytest.fixture
def small_disk(tmp_path):
    "A disk of its own, of 700 kB."
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no disk may be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_keeps_all_finished_rows(run, tmp_path, small_disk):
    smears(tmp_path / "in", 30)
    out = small_disk / "out"
    code, _, errors = run("count", tmp_path / "in", "-o", out)
    assert code == 1 and len(errors) == 1 and "No space left on device" in errors[0]
    table, done = rows(out), images_done(out)
    assert 1 <= len(done) < 30 and len(table) == 3 * len(done)
    for row in table:
        assert read_image(out / row["overlay"]).shape == SMEAR.image.shape
        assert read_labels(out / row["labels"]).max() == 9
    assert not list(out.rglob("*.part*"))
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert run("count", tmp_path / "in", "-o", out)[0] == 0
    assert len(images_done(out)) == 30


def test_a_refusing_disk_is_one_sentence(tmp_path):
    (path,) = smears(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overlays").write_text("in the way")
    with pytest.raises(RunError, match="overlays"):
        count_files([str(path)], [CountPlan()], Output(tmp_path / "out"), finder=Darkness())


def test_sixteen_bits_and_floats_count_as_eight(run, tmp_path):
    sixteen = SMEAR.image.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "8.tif", SMEAR.image, photometric="rgb")
    tifffile.imwrite(tmp_path / "16.tif", sixteen, photometric="rgb")
    tifffile.imwrite(
        tmp_path / "float.tif", (SMEAR.image / 255).astype(np.float32), photometric="rgb"
    )
    run("count", tmp_path, "-o", tmp_path / "out", "--cell", "rbc")
    counts = [int(row["count"]) for row in rows(tmp_path / "out")]
    assert len(counts) == 3 and all(abs(n - 9) <= 1 for n in counts)


def test_an_image_is_read_and_mapped_once_for_all_methods(monkeypatch, tmp_path):
    "By several plans, and the rows and the files are those of one plan after the other."
    from bloodcount import picture, segmentation
    from bloodcount.settings import METHODS

    smears(tmp_path / "in", 2)
    paths, _ = find_images([str(tmp_path / "in")])
    plans = [CountPlan(("rbc",), method=name) for name in list(METHODS)[:4]]
    apart = [count_files(paths, [plan], Output(tmp_path / "apart")) for plan in plans]
    read, mapped, look_at, call = [], [], picture.look_at, segmentation.Segmenter.__call__
    monkeypatch.setattr(picture, "look_at", lambda *what: read.append(what) or look_at(*what))
    monkeypatch.setattr(
        segmentation.Segmenter,
        "__call__",
        lambda self, image: mapped.append(1) or call(self, image),
    )
    together = count_files(paths, plans, Output(tmp_path / "together"))
    assert len(read) == len(mapped) == 2
    assert together.equals(pd.concat(apart, ignore_index=True)) and len(together) == 8
    assert together["method"].nunique() == 4
    count_files(paths, plans, Output(tmp_path / "together"))
    assert len(read) == 2, "something was done again"


def test_an_overlay_stays_while_another_cell_type_names_it(tmp_path, monkeypatch):
    # As with weights that have a name: the settings are those of all cell types
    for module in (batch, picture):
        monkeypatch.setattr(module, "settings_name", lambda plan, finder: "0123456789ab")
    path, out, finder = save(tmp_path / "a.png"), tmp_path / "out", Darkness()
    count_folder(path, out, ("rbc", "wbc"), finder=finder)
    count_folder(path, out, ("rbc",), finder=finder, overlays="PNG")
    assert len(rows(out)) == 2
    named = {row["cell"]: row["overlay"] for row in rows(out)}
    assert all((out / overlay).exists() for overlay in named.values())


def test_names_may_be_written_in_any_case():
    assert CountPlan(border="Exclude", method="CHT").border == "exclude"
    assert Output(Path("out"), "PNG").overlays == "png"
    assert CountPlan("RBC").cells == CountPlan(["Rbc", "rbc"]).cells == ("rbc",)
    assert Output(Path("out"), exports="ROI").exports == ("roi",)
    with pytest.raises(SettingsError, match="exports qupath: no such name"):
        Output(Path("out"), exports=["qupath"])


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "a.tif").mkdir()
    (tmp_path / "a.tif" / "b").touch()
    with pytest.raises(RunError, match="a.tif: cannot be written"):
        write_labels(tmp_path / "a.tif", np.zeros((4, 4), np.int32))


# What a later run must not harm


@pytest.fixture
def same_settings(monkeypatch):
    "As the package's own networks, the finder has the same settings whichever cells are asked for."
    for module in (batch, picture):
        monkeypatch.setattr(module, "settings_name", lambda plan, finder: "of-all-cells")


def test_an_image_that_is_gone_keeps_its_results(run, same_settings, tmp_path):
    (path,), out = smears(tmp_path / "in", 1), tmp_path / "out"
    run("count", path, "-o", out, "--roi")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".json"}
    path.rename(tmp_path / "away.png")
    code, said, errors = run("count", path, "-o", out, "--roi", "--cell", "rbc")
    assert code == 1 and "error" in said and "no such file" in errors[0]
    assert "What was counted before is kept." in " ".join(errors)
    assert {p: p.read_bytes() for p in before} == before
    (tmp_path / "away.png").rename(path)
    assert run("count", path, "-o", out)[0] == 0


def test_exports_stay_and_show_every_cell_type(same_settings, tmp_path):
    (path,), out = smears(tmp_path / "in", 1), tmp_path / "out"
    count_folder(path, out, ["rbc"], exports=["geojson"], overlays="png", finder=Darkness())
    count_folder(path, out, ["wbc"], exports=["roi"], overlays="none", finder=Darkness())
    assert {f.name for f in out.iterdir() if f.is_dir()} >= {"geojson", "rois", "overlays"}
    told = json.loads((out / "geojson" / "000.geojson").read_text())
    kinds = {f["properties"]["classification"]["name"] for f in told["features"]}
    assert kinds == {"red cells", "white cells"}
    assert (out / "overlays" / "000.png").exists() and (out / "rois" / "000.zip").exists()
    (out / "labels" / "000_rbc.tif").unlink()
    count_folder(path, out, ["rbc", "wbc"], overlays="none", finder=Darkness())
    assert (out / "labels" / "000_rbc.tif").exists()


def test_images_of_one_name_are_told_apart(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        save(folder / "a.png")
        monkeypatch.chdir(folder)
        counts = count_folder("a.png", tmp_path / "out", ["rbc"], finder=Darkness())
        assert counts["image"].tolist() == ["a.png"]
    told = pd.read_csv(tmp_path / "out" / "counts.csv")["image"].tolist()
    assert told == [str(folder / "a.png") for folder in folders]
    assert set(pd.read_csv(tmp_path / "out" / "cells.csv")["image"]) == set(told)
    monkeypatch.chdir(tmp_path)
    counts = count_folder(["first", "second"], "out", ["rbc"], finder=Darkness())
    assert counts["image"].tolist() == ["first/a.png", "second/a.png"]


def test_counts_of_other_bytes_are_marked(same_settings, tmp_path):
    (path,), out = smears(tmp_path / "in", 1), tmp_path / "out"
    count_folder(path, out, ["rbc", "wbc"], finder=Darkness())
    save(path, SMEAR.image[:, ::-1])
    count_folder(path, out, ["rbc"], finder=Darkness())
    told = pd.read_csv(out / "counts.csv").set_index("cell")
    assert told.loc["rbc", "status"] == "ok" and told.loc["wbc", "status"] == "doubtful"
    assert told.loc["wbc", "reason"].startswith("The file was another one")
    count_folder(path, out, ["rbc", "wbc"], finder=Darkness())
    told = pd.read_csv(out / "counts.csv")
    assert told["status"].tolist() == ["ok", "ok"] and told["sha256"].nunique() == 1


def test_a_pattern_leaves_our_own_pictures_out(tmp_path):
    (path,), out = smears(tmp_path / "in", 1), tmp_path / "in" / "counted"
    count_folder(path, out, ["rbc"], finder=Darkness())
    assert find_images([str(tmp_path / "**" / "*.*g")])[0] == [str(path)]


def test_a_method_named_twice_counts_once(run, tmp_path):
    (path,) = smears(tmp_path / "in", 1)
    twice = ("--method", "edt,EDT", "--method", "edt")
    said = run("count", path, "-o", tmp_path / "out", "--cell", "rbc", *twice)[1]
    assert "red cells: 9 in 1 field" in said


def test_threads_are_not_for_a_cluster(run, tmp_path):
    (path,) = smears(tmp_path / "in", 1)
    code, _, errors = run("count", path, "-o", tmp_path, "--dask", "a:1", "--jobs", 2)
    assert code == 2 and "leave one out" in errors[-1]

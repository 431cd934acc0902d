"""settings.ini: whatever is wrong with it is one sentence that names section, key and remedy."""

import configparser
import dataclasses
import gc
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bloodcount.errors import SettingsError
from bloodcount.settings import CELLS, METHODS, PROFILES, PROJECT, SECTIONS, Settings, load_settings
from bloodcount.source import code_digest, digest

KEYS = {name: [f.name for f in dataclasses.fields(kind)] for name, kind in SECTIONS.items()}
FIELDS = [(name, key) for name, keys in KEYS.items() for key in keys]
OVERRIDES = [
    ("sample:smoke", "height"),
    ("segment:smoke", "tile"),
    ("count.rbc.cht:laptop", "dp"),
    ("recipe.rbc.best:laptop", "rate"),
    ("threshold.wbc:segnet", "mask"),
]

each_field = pytest.mark.parametrize(("section", "key"), FIELDS)
each_section = pytest.mark.parametrize("section", SECTIONS)


@pytest.fixture
def ini():
    "The project's own settings, to be changed."
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(PROJECT / "settings.ini", encoding="utf-8")
    return parser


@pytest.fixture
def refused(ini, tmp_path):
    "Write the changed settings, load them, and return the sentence that refuses them."

    def refused(profile="paper"):
        with open(tmp_path / "settings.ini", "w", encoding="utf-8") as file:
            ini.write(file)
        with pytest.raises(SettingsError) as error:
            load_settings(profile, path=tmp_path / "settings.ini")
        assert "\n" not in str(error.value) and str(error.value).endswith((".", "?"))
        return str(error.value)

    return refused


@pytest.mark.parametrize("profile", PROFILES)
def test_the_projects_own_file_is_right(profile):
    settings = load_settings(profile)
    assert settings.profile == profile
    assert all(folder.is_absolute() for folder in dataclasses.astuple(settings.paths))
    assert set(settings.threshold) == set(CELLS)
    assert set(settings.count) == {*CELLS, "rbc_mask"}
    assert all(set(settings.count[cell]) == set(METHODS) for cell in CELLS)


def test_sections_and_fields_agree():
    parents = {name.partition(".")[0] for name in SECTIONS}
    assert parents == {f.name for f in dataclasses.fields(Settings)} - {"profile", "weights"}


@each_field
def test_a_key_too_many(ini, refused, section, key):
    ini[section][f"{key}x"] = ini[section][key]
    says = refused()
    assert f"[{section}]" in says and f"{key + 'x'!r}" in says and f"Did you mean {key!r}?" in says


@each_field
def test_a_mistyped_key(ini, refused, section, key):
    typo = f"{key[:-1]}z" if len(key) > 2 else f"{key}z"
    ini[section][typo] = ini[section].pop(key)
    says = refused()
    assert f"[{section}]" in says and repr(typo) in says and repr(key) in says


@each_field
def test_a_missing_key(ini, refused, section, key):
    del ini[section][key]
    says = refused()
    assert f"[{section}] lacks the key {key!r}" in says


@each_field
def test_a_bad_value(ini, refused, section, key):
    names_a_file = section == "paths" or key == "encoder_weights"
    for value in ("", "many")[: 1 if names_a_file else 2]:
        ini[section][key] = value
        assert f"[{section}] {key} = {value}: " in refused()


@each_section
def test_a_missing_section(ini, refused, section):
    ini.remove_section(section)
    assert f"no section [{section}]" in refused()


@each_section
def test_a_mistyped_section(ini, refused, section):
    ini[f"{section}s"] = ini[section]
    ini.remove_section(section)
    assert f"[{section}s]. Did you mean {section!r}?" in refused()


@each_section
@pytest.mark.parametrize(("typo", "right"), [("smok", "smoke"), ("author", "authors")])
def test_a_mistyped_profile_in_a_section(ini, refused, section, typo, right):
    ini[f"{section}:{typo}"] = {}
    says = refused()
    assert f"[{section}:{typo}]" in says and repr(right) in says


def test_a_profile_needs_a_name(ini, refused):
    ini["sample:"] = {}
    assert "[sample:]" in refused()


@pytest.mark.parametrize("section", ["DEFAULTS", "(none)", "count", "count.rbc", "Sample"])
def test_a_section_of_no_use(ini, refused, section):
    ini[section] = {"tile": "188"}
    assert f"[{section}]" in refused()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("section", "key"), OVERRIDES)
def test_what_is_wrong_for_one_profile_stops_all(ini, refused, profile, section, key):
    ini[section] = {key: "many"}
    assert f"[{section}] {key} = many: " in refused(profile)
    ini[section] = {f"{key}x": "2"}
    says = refused(profile)
    assert f"[{section}]" in says and f"{key + 'x'!r}" in says and f"Did you mean {key!r}?" in says


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("preprocess", "clahe_clip", ["0", "-1", "nan", "inf"]),
        ("preprocess", "clahe_grid", ["0", "1.5"]),
        ("grid", "pad", ["-1"]),
        ("grid", "output_size", ["0"]),
        ("segment", "tile", ["98", "184", "350", "-1084", "1084.5"]),
        ("augment.best", "scale", ["0, 1", "1.5, 0.6", "1", "nan, 1"]),
        ("augment.as_paper", "quality", ["0.5, 1.2", "-0.1, 1", "1, 0.5"]),
        ("augment.best", "skip", ["-0.1", "1.5"]),
        ("augment.best", "object_area", ["0", "5.5"]),
        ("augment.best", "paste", ["-1", "inf"]),
        ("augment.whites", "drawn", ["-1", "1.5"]),
        ("train.do_unet", "input_size", ["0", "188.5"]),
        ("train.do_unet", "batch", ["0"]),
        ("train.segnet", "precision", ["float16", "bfloat16"]),
        ("recipe.rbc.best", "augment", ["none", "Best"]),
        ("recipe.wbc.best", "zoom", ["0", "-1", "inf"]),
        ("recipe.rbc.refined", "start", ["", "refined", "as_paper"]),
        ("recipe.rbc.refined", "judge", ["", "best", "Dice"]),
        ("recipe.rbc.best", "loss", ["bce+dice", "MSE"]),
        ("recipe.rbc.best", "loss_weights", ["1", "0.5, 1.5", "0.5, 0.5, 0.5", "-1, 1"]),
        ("recipe.rbc.best", "stages", ["big, train", "test", "train, train"]),
        ("recipe.rbc.best", "epochs", ["60", "60, 0", "60, 400, 10", "60; 400"]),
        ("recipe.wbc.best", "epochs", ["30, 30"]),
        ("recipe.plt.best", "steps", ["0"]),
        ("recipe.plt.best", "rate", ["0", "-0.001", "nan"]),
        ("recipe.plt.best", "schedule", ["linear"]),
        ("recipe.wbc.best", "validation", ["0"]),
        ("threshold.rbc", "mask", ["0", "1", "1.5", "-0.5", "Otsu", "nan", "0,5"]),
        ("threshold.plt", "edge", ["0", "1", "ostu"]),
        ("count.rbc.cht", "source", ["Edge", "mask minus edge", "mask,edge"]),
        ("count.rbc.cht", "min_area", ["-1"]),
        ("count.rbc.cht", "dp", ["0.5", "nan", "inf"]),
        ("count.rbc.cht", "min_distance", ["0", "3.3"]),
        ("count.rbc.cht", "radius", ["29", "29, 56, 70", "0, 56", "56, 29", "29 - 56", "29,"]),
        ("count.rbc.cht", "votes", ["0", "inf"]),
        ("count.wbc.cht", "canny", ["0"]),
        ("count.wbc.ccl", "min_area", ["-1", "1e3.5"]),
        ("count.plt.watershed", "smooth", ["-0.1", "nan"]),
        ("count.plt.watershed", "min_height", ["-1", "inf"]),
        ("count.plt.watershed", "at_least_one", ["perhaps", "2"]),
        ("count.plt.edt", "exclude_border", ["perhaps", "2"]),
        ("method", "rbc", ["CHT", "hough"]),
        ("evaluate", "bootstrap", ["0"]),
        ("evaluate", "confidence", ["0", "1", "95"]),
        ("evaluate", "iou", ["0.5, 0.95", "0.95, 0.5, 0.05", "0.5, 0.95, 0", "0.5, 1.5, 0.05"]),
        ("sample", "smears", ["1"]),
        ("sample", "height", ["127"]),
        ("reproduce", "timeout", ["0", "-60"]),
    ],
)
def test_values_out_of_range(ini, refused, section, key, values):
    for value in values:
        ini[section][key] = value
        assert f"[{section}] {key} = {value}: " in refused(), value


def test_what_would_be_right_is_told(ini, refused):
    ini["threshold.rbc"]["mask"] = "Otsu"
    assert "'otsu'" in refused()
    ini["threshold.rbc"]["mask"] = "0.5"
    ini["method"]["plt"] = "watershd"
    assert "'watershed'" in refused()


def written(ini: configparser.ConfigParser, path: Path) -> Path:
    with open(path, "w", encoding="utf-8") as file:
        ini.write(file)
    return path


def test_a_profile_changes_what_it_names_and_nothing_else(ini, tmp_path):
    before = written(ini, tmp_path / "before.ini")
    ini["count.rbc.cht:laptop"] = {"votes": "21", "radius": "30, 57"}
    after = written(ini, tmp_path / "after.ini")
    assert load_settings("paper", "authors", after) == load_settings("paper", "authors", before)
    plain, laptop = (load_settings("laptop", "authors", path) for path in (before, after))
    changed = laptop.count["rbc"]["cht"]
    assert (changed.votes, changed.radius) == (21, (30, 57))
    assert dataclasses.replace(changed, votes=20, radius=(29, 56)) == plain.count["rbc"]["cht"]
    assert dataclasses.replace(laptop, count=plain.count) == plain


def test_profiles_differ_only_in_training_and_sizes():
    paper, laptop, smoke = map(load_settings, PROFILES)
    trained = {"profile": "paper", "train": paper.train, "recipe": paper.recipe}
    assert dataclasses.replace(laptop, **trained) == paper
    sizes = {"segment": paper.segment, "sample": paper.sample}
    assert dataclasses.replace(smoke, **trained, **sizes) == paper


def test_weights_change_what_they_name_after_the_profile(ini, tmp_path):
    before = written(ini, tmp_path / "before.ini")
    ini["count.rbc.cht:laptop"] = {"votes": "21", "dp": "1.5"}
    ini["count.rbc.cht:authors"] = {"votes": "22"}
    after = written(ini, tmp_path / "after.ini")
    for profile, weights, votes, dp in (
        ("paper", "bloodcount", 20, 1.0),
        ("paper", "authors", 22, 1.0),
        ("laptop", "segnet", 21, 1.5),
        ("laptop", "authors", 22, 1.5),
    ):
        settings = load_settings(profile, weights, after)
        changed = settings.count["rbc"]["cht"]
        assert (settings.weights, changed.votes, changed.dp) == (weights, votes, dp)
        plain = load_settings(profile, weights, before)
        assert dataclasses.replace(changed, votes=20, dp=1.0) == plain.count["rbc"]["cht"]
        assert dataclasses.replace(settings, count=plain.count) == plain


def test_relative_folders_start_at_the_file(ini, tmp_path):
    ini["paths"].update(data="elsewhere/all", runs="/somewhere/runs", figures="~/figures")
    with open(tmp_path / "settings.ini", "w", encoding="utf-8") as file:
        ini.write(file)
    paths = load_settings("smoke", path=tmp_path / "settings.ini").paths
    assert paths.data == tmp_path / "elsewhere" / "all" and paths.runs == Path("/somewhere/runs")
    assert paths.figures == Path.home() / "figures"


def test_no_such_profile():
    with pytest.raises(SettingsError, match="'papr'.*Did you mean 'paper'"):
        load_settings("papr")


def test_no_such_weights():
    with pytest.raises(SettingsError, match="'author'.*Did you mean 'authors'"):
        load_settings("paper", "author")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (b"\ntile = 1084\n", b"\ntile = 1084\ntile = 588\n", r"'tile'.*'segment'"),
        (b"\n[segment]\n", b"\n[grid]\n", r"'grid'"),
        (b"\ntile = 1084\n", b"\ntile\n", r"tile"),
        (b"\n[paths]\n", b"\n", r"section"),
        (b"# Every setting", "# Größe der Zelle".encode("latin-1"), r"utf-8"),
        (b"\ntile = 1084\n", b"\ntile = 1084\x00\n", r"\[segment\] tile"),
    ],
    ids=["key twice", "section twice", "no value", "no section", "not UTF-8", "zero byte"],
)
def test_a_file_that_is_no_settings_file(tmp_path, before, after, says):
    text = (PROJECT / "settings.ini").read_bytes()
    assert text.count(before) == 1
    (tmp_path / "settings.ini").write_bytes(text.replace(before, after))
    with pytest.raises(SettingsError, match=says) as error:
        load_settings("smoke", path=tmp_path / "settings.ini")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.ini", tmp_path):
        with pytest.raises(SettingsError, match=str(path)):
            load_settings("smoke", path=path)


def test_a_windows_editor_changes_nothing(tmp_path):
    text = (PROJECT / "settings.ini").read_bytes()
    shutil.copy(PROJECT / "settings.ini", tmp_path / "ours.ini")
    (tmp_path / "theirs.ini").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    ours, theirs = (load_settings("smoke", path=tmp_path / f"{n}.ini") for n in ("ours", "theirs"))
    assert ours == theirs


@each_field
def test_every_value_shows_in_the_digest(section, key):
    settings = load_settings("paper")
    node = settings
    for part in section.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    before, old = digest(settings), getattr(node, key)
    assert digest(load_settings("paper")) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(node, key, old)
    object.__setattr__(node, key, (old,))
    assert digest(settings) != before


def test_digest_depends_on_order_and_code():
    assert digest(1, 2) != digest(2, 1) and digest("1") != digest(1)
    assert code_digest("errors", "files") != code_digest("files", "errors")
    assert len({code_digest(), code_digest("errors"), code_digest("settings")}) == 3


def test_code_is_named_by_two_threads_at_once():
    def let_others_run(*_):
        time.sleep(1e-6)

    gc.callbacks.append(let_others_run)  # Between the nodes of a tree, where the parser is confused
    try:
        with ThreadPoolExecutor(2) as pool:
            assert len(set(pool.map(lambda _: code_digest("report"), range(4)))) == 1
    finally:
        gc.callbacks.remove(let_others_run)

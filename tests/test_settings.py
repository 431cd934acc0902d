"""settings.ini: whatever is wrong with it is one sentence that names section, key and remedy."""

import configparser
import dataclasses
import shutil
from pathlib import Path

import pytest

from bloodcount import settings as module
from bloodcount.errors import SettingsError
from bloodcount.settings import CELLS, METHODS, NEEDED, NETWORKS, PROFILES, PROJECT, load_settings
from bloodcount.source import digest


def read_ini() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(PROJECT / "settings.ini", encoding="utf-8")
    return parser


# Of each kind of section, one that is like no other and so holds all of its keys.
KINDS = {
    module._kind(name).__name__: name
    for name in reversed(read_ini().sections())
    if ":" not in name and "like" not in read_ini()[name]
}

each_kind = pytest.mark.parametrize("section", KINDS.values(), ids=list(KINDS))


def keys(section: str) -> list[str]:
    return [field.name for field in dataclasses.fields(module._kind(section))]


@pytest.fixture
def ini():
    "The project's own settings, to be changed."
    return read_ini()


@pytest.fixture
def refused(ini, tmp_path):
    "Write the changed settings, load them, and return the sentence that refuses them."

    def refused(profile="paper"):
        path = written(ini, tmp_path / "settings.ini")
        with pytest.raises(SettingsError) as error:
            load_settings(profile, path)
        assert "\n" not in str(error.value) and str(error.value).endswith((".", "?"))
        return str(error.value)

    return refused


def written(ini: configparser.ConfigParser, path: Path) -> Path:
    with open(path, "w", encoding="utf-8") as file:
        ini.write(file)
    return path


@pytest.mark.parametrize("profile", PROFILES)
def test_the_projects_own_file_is_right(profile):
    settings = load_settings(profile)
    assert settings.profile == profile
    assert all(folder.is_absolute() for folder in dataclasses.astuple(settings.paths))
    assert set(settings.published) == set(settings.train) == set(settings.segment) == set(NETWORKS)
    for by_cell in settings.published.values():
        assert set(by_cell) == set(settings.recipe) == set(CELLS)
        for how in by_cell.values():
            assert how.method in how.count and set(how.count) <= set(METHODS)


def test_every_kind_is_tried():
    kinds = {*module.SINGLE.values(), *METHODS.values()}
    kinds |= {module.Segment, module.Augment, module.Train, module.Recipe, module.Thresholds}
    kinds |= {module.StarBatches}
    assert set(KINDS) == {kind.__name__ for kind in kinds}
    fields = {field.name for field in dataclasses.fields(module.Settings)}
    assert {name.partition(".")[0] for name in KINDS.values()} - {"threshold", "count", "method"} == (
        fields - {"profile", "published"}
    )  # fmt: skip


# Kind by kind, each of its keys


@each_kind
def test_a_key_too_many_or_mistyped(ini, refused, section):
    for key in keys(section):
        for lost in (False, True):
            values = dict(ini[section])
            typo = f"{key[:-1]}z" if lost and len(key) > 2 else f"{key}x"
            ini[section][typo] = ini[section][key]
            if lost:
                del ini[section][key]
            says = refused()
            assert f"[{section}]" in says and repr(typo) in says and repr(key) in says
            ini[section] = values


@each_kind
def test_a_missing_key(ini, refused, section):
    for key in keys(section):
        value = ini[section].pop(key)
        assert f"[{section}] lacks the key {key!r}" in refused()
        ini[section][key] = value


@each_kind
def test_a_bad_value(ini, refused, section):
    for key in keys(section):
        before, any_text = ini[section][key], section == "paths" or key == "encoder_weights"
        for value in ("", "many")[: 1 if any_text else 2]:
            ini[section][key] = value
            assert f"[{section}] {key} = {value}: " in refused()
        ini[section][key] = before


@each_kind
def test_a_section_that_is_missing_or_mistyped(ini, refused, section):
    values = dict(ini[section])
    ini.remove_section(section)
    says = refused()
    assert section not in NEEDED or f"no section [{section}]" in says
    ini[f"{section}s" if section in NEEDED else f"x{section}"] = values
    assert "settings.ini has an unknown section [" in refused() or "Did you mean" in refused()


@each_kind
def test_a_mistyped_profile_or_network(ini, refused, section):
    typos = [("smok", "smoke")]
    if section.startswith(("threshold.", "count.")):
        typos.append(("segnt", "segnet"))
    for typo, right in typos:
        ini[f"{section}:{typo}"] = {}
        says = refused()
        assert f"[{section}:{typo}]" in says and repr(right) in says
        ini.remove_section(f"{section}:{typo}")


@pytest.mark.parametrize(
    "title", ["count.rbc.cht:segnet_3x3", "recipe.rbc.best:segnet", "paths:do_unet"]
)
def test_a_network_where_nothing_reads_it_is_refused(ini, refused, title):
    ini[title] = {}
    assert f"[{title}]: no such profile" in refused()


@each_kind
def test_what_is_wrong_for_one_profile_stops_all(ini, refused, section):
    key = keys(section)[-1]
    value = "many" if key not in ("figures", "encoder_weights") else ""
    title = f"{section}:laptop"
    for profile in PROFILES:
        ini[title] = {key: value}
        assert f"[{title}] {key} = {value}: " in refused(profile)
        ini[title] = {f"{key}x": "2"}
        says = refused(profile)
        assert f"[{title}]" in says and f"{key + 'x'!r}" in says and repr(key) in says


@each_kind
def test_every_value_shows_in_the_digest(section):
    for key in keys(section):
        settings = load_settings("paper")
        node = settings
        first, *rest = section.split(".")
        if first in ("threshold", "count"):
            how = settings.published["do_unet"][rest[0]]
            node = how.threshold if first == "threshold" else how.count[rest[1]]
        elif first == "method":
            node, key = settings.published["do_unet"][key], "method"
        else:
            for part in section.split("."):
                node = node[part] if isinstance(node, dict) else getattr(node, part)
        before, old = digest(settings), getattr(node, key)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(node, key, old)
        object.__setattr__(node, key, (old,))
        assert digest(settings) != before


# Names of sections


def test_a_profile_needs_a_name(ini, refused):
    ini["sample:"] = {}
    assert "[sample:]" in refused()


@pytest.mark.parametrize("section", ["DEFAULTS", "(none)", "count", "count.rbc", "Sample"])
def test_a_section_of_no_use(ini, refused, section):
    ini[section] = {"tile": "188"}
    assert f"[{section}]" in refused()


# Sections that are like others


def test_a_section_takes_what_the_other_says(ini, tmp_path):
    ini["recipe.rbc.mine"] = {"like": "best", "steps": "7"}
    ini["recipe.rbc.mine:laptop"] = {"rate": "0.5"}
    path = written(ini, tmp_path / "settings.ini")
    for profile in PROFILES:
        recipes = load_settings(profile, path).recipe["rbc"]
        rate = 0.5 if profile == "laptop" else recipes["best"].rate
        assert recipes["mine"] == dataclasses.replace(recipes["best"], steps=7, rate=rate)


@pytest.mark.parametrize(
    ("like", "says"),
    [
        ("bset", "like = bset: no such section"),
        ("mine", "like = mine: no such section"),
        ("circle", "no such section"),
        ("", "lacks the key 'start'"),
    ],
)
def test_like_what_is_not_there(ini, refused, like, says):
    ini["recipe.rbc.mine"] = {"like": like}
    ini["recipe.rbc.circle"] = {"like": "mine"}
    assert "[recipe.rbc." in refused() and says in refused()


# Values


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("preprocess", "clahe_clip", ["0", "-1", "nan", "inf"]),
        ("preprocess", "clahe_grid", ["0", "1.5"]),
        ("grid", "pad", ["-1"]),
        ("grid", "output_size", ["0"]),
        ("segment.do_unet", "tile", ["98", "184", "350", "-1084", "1084.5"]),
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
        ("recipe.rbc.refined", "start", ["", "refined", "after"]),
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
        ("star.bloodcount", "epochs", ["0", "1.5"]),
        ("star.bloodcount", "cool", ["-0.1", "1.5"]),
        ("star.elsewhere", "rate", ["-1", "nan"]),
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
        ("evaluate", "iou", ["0.6, 0.9, 0.1", "0.4, 0.9, 0.1"]),
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


# Profiles and networks


def test_a_profile_changes_what_it_names_and_nothing_else(ini, tmp_path):
    before = written(ini, tmp_path / "before.ini")
    ini["count.rbc.watershed:laptop"] = {"min_distance": "21", "smooth": "1.5"}
    after = written(ini, tmp_path / "after.ini")
    assert load_settings("paper", after) == load_settings("paper", before)
    plain, laptop = (load_settings("laptop", path) for path in (before, after))
    for network in NETWORKS:
        old, new = (each.published[network]["rbc"].count["watershed"] for each in (plain, laptop))
        assert new == dataclasses.replace(old, min_distance=21, smooth=1.5)
        assert laptop.published[network]["plt"] == plain.published[network]["plt"]
    assert dataclasses.replace(laptop, published=plain.published) == plain


def test_profiles_differ_only_in_training_and_sizes():
    paper, laptop, gpu, smoke = map(load_settings, PROFILES)
    trained = {name: getattr(paper, name) for name in ("profile", "train", "recipe", "star")}
    assert dataclasses.replace(laptop, **trained) == paper
    assert dataclasses.replace(gpu, **trained) == paper
    sizes = {"segment": paper.segment, "sample": paper.sample}
    assert dataclasses.replace(smoke, **trained, **sizes) == paper


def test_a_network_changes_what_it_names_after_the_profile(ini, tmp_path):
    before = written(ini, tmp_path / "before.ini")
    ini["count.rbc.ccl:laptop"] = {"min_area": "21"}
    ini["count.rbc.ccl:segnet"] = {"min_area": "22"}
    after = written(ini, tmp_path / "after.ini")
    plain = load_settings("paper", before).published["do_unet"]["rbc"].count["ccl"].min_area
    for profile, network, area in (
        ("paper", "do_unet", plain),
        ("paper", "segnet", 22),
        ("paper", "segnet_3x3", 22),
        ("laptop", "do_unet", 21),
        ("laptop", "segnet", 22),
    ):
        published = load_settings(profile, after).published
        assert published[network]["rbc"].count["ccl"].min_area == area


def test_relative_folders_start_at_the_file(ini, tmp_path):
    ini["paths"].update(data="elsewhere/all", runs="/somewhere/runs", figures="~/figures")
    paths = load_settings("smoke", written(ini, tmp_path / "settings.ini")).paths
    assert paths.data == tmp_path / "elsewhere" / "all" and paths.runs == Path("/somewhere/runs")
    assert paths.figures == Path.home() / "figures"


def test_no_such_profile():
    with pytest.raises(SettingsError, match="'papr'.*Did you mean 'paper'"):
        load_settings("papr")


# The file


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (b"\ntile = 1084\n", b"\ntile = 1084\ntile = 588\n", r"'tile'.*'segment.do_unet'"),
        (b"\n[preprocess]\n", b"\n[grid]\n", r"'grid'"),
        (b"\ntile = 1084\n", b"\ntile\n", r"tile"),
        (b"\n[paths]\n", b"\n", r"section"),
        (b"# Every setting", "# Größe der Zelle".encode("latin-1"), r"utf-8"),
        (b"\ntile = 1084\n", b"\ntile = 1084\x00\n", r"\[segment.do_unet\] tile"),
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

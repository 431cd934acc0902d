import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bloodcount import fetch as module
from bloodcount.data import COLUMNS, DataSet, read_mask, read_smear
from bloodcount.errors import InputError, IntegrityError, RunError, SettingsError
from bloodcount.fetch import authors, check, content_sha256, fetch, packaged, registered, survey
from bloodcount.settings import PROJECT

PREFIX = f"/someone/smears/{'a' * 40}/"
FILES = {
    "images/Disc_0.jpg": "full/Disc_0.jpg",
    "masks/rbc/Disc_0.png": "mask/Disc_0.jpg",
    "edges/rbc/Disc_0.png": "edge/Disc_0.jpg",
    "polygons/rbc/Disc_0.json": "outlines/Disc_0.json",
}
OUTLINE = [[12, 20], [24, 8], [36, 20], [24, 32]]


def jpeg(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def published():
    "The bodies that the publisher serves, by path in its repository."
    distance = np.hypot(*np.mgrid[-20:20, -24:24])
    disc, ring = distance < 12, abs(distance - 12) < 1.5
    about = {"image_name": "Disc_0.jpg", "image_height": 40, "image_width": 48}
    cell = {"shape": 5, "vertices": [{"x": x, "y": y} for x, y in OUTLINE], "object_label": "cell"}
    return {
        "full/Disc_0.jpg": jpeg(np.dstack([disc * np.uint8(200)] * 3)),
        "mask/Disc_0.jpg": jpeg(disc * np.uint8(255), quality=40),
        "edge/Disc_0.jpg": jpeg(ring * np.uint8(255), quality=40),
        "outlines/Disc_0.json": json.dumps({"image_information": about, "markup": [cell]}).encode(),
    }


@pytest.fixture
def registry(tmp_path, published):
    "A registry of four files, its checksums computed here from first principles."
    grey = {k: np.asarray(Image.open(io.BytesIO(v))) for k, v in published.items() if ".jpg" in k}
    content = {
        path: b"40x48:" + np.packbits(grey[source].ravel() > 127).tobytes()
        for path, source in FILES.items()
        if path.endswith(".png")
    }
    ours = f'{{"height":40,"image":"Disc_0","polygons":[{OUTLINE}],"width":48}}'.replace(" ", "")
    content["polygons/rbc/Disc_0.json"] = ours.encode()
    rows = [
        {
            "path": path,
            "repository": "someone/smears",
            "commit": "a" * 40,
            "source_path": source,
            "source_sha256": hashlib.sha256(published[source]).hexdigest(),
            "sha256": hashlib.sha256(content.get(path, published[source])).hexdigest(),
        }
        for path, source in FILES.items()
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "discs.csv", index=False)
    row = {"image": "Disc_0", "width": 48, "height": 40, "rbc_mask": 1, "rbc_edge": 1}
    row |= {"rbc_polygons": 1, "rbc_split": "test", "rbc_count": 1}
    pd.DataFrame([row], columns=COLUMNS).to_csv(tmp_path / "discs-index.csv", index=False)
    return tmp_path / "discs.csv"


@pytest.fixture
def server(published, monkeypatch):
    "A publisher on this machine; `faults[path]` yields what goes wrong with each request for it."

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.removeprefix(PREFIX)
            http.asked.append(path)
            fault = next(http.faults.get(path, iter(())), None)
            if fault == "silent":
                http.silent.set()
                http.over.wait(20)
            if isinstance(fault, int):
                return self.send_error(fault)
            body = published[path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fault == "short":
                body = body[: len(body) // 2]
            self.wfile.write(body[::-1] if fault == "wrong" else body)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):
            "A client that gave up is part of the test."

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as http:
        http.asked, http.faults = [], {}
        http.silent, http.over = threading.Event(), threading.Event()
        http.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield http
        http.over.set()
        http.shutdown()


@pytest.fixture
def get(server, registry, tmp_path):
    "Fetch from that server into tmp_path/all, without long pauses."

    def get(**options):
        options = {"accept_terms": True, "base": server.url, "attempts": 3, "pause": 0.0} | options
        return fetch(tmp_path / "all", registry=registry, **options)

    return get


def test_a_fetched_folder_is_a_data_set(get, registry, server, tmp_path, published, capsys):
    assert get() == [*FILES, "index.csv"]
    assert server.asked == list(FILES.values())
    assert "ICIP" in capsys.readouterr().out
    folder = tmp_path / "all"
    assert (folder / "images/Disc_0.jpg").read_bytes() == published["full/Disc_0.jpg"]
    assert Image.open(folder / "masks/rbc/Disc_0.png").mode == "1"
    smear = read_smear(DataSet(folder), "Disc_0")
    grey = np.asarray(Image.open(io.BytesIO(published["mask/Disc_0.jpg"])))
    assert np.array_equal(smear.masks["rbc"], grey > 127)
    assert smear.polygons["rbc"][0].tolist() == [[y, x] for x, y in OUTLINE]
    assert smear.counts == {"rbc": 1} and smear.splits == {"rbc": "test"}
    assert check(folder, registered(registry)).empty
    assert get() == [] and len(server.asked) == len(FILES)


def test_the_terms_come_first(get, server, tmp_path, capsys):
    with pytest.raises(SettingsError, match="--accept-terms"):
        get(accept_terms=False)
    assert "research and teaching only" in capsys.readouterr().out
    assert server.asked == [] and not (tmp_path / "all").exists()


@pytest.mark.parametrize("faults", [[500], [503, 429], ["short"], ["wrong"], ["silent"]])
def test_what_passes_is_tried_again(get, server, faults):
    server.faults["mask/Disc_0.jpg"] = iter(faults)
    assert len(get(timeout=0.3)) == 5
    assert server.asked.count("mask/Disc_0.jpg") == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "asked", "error", "says"),
    [
        (404, 1, RunError, "404 Not Found"),
        (500, 3, RunError, "500 Internal"),
        ("short", 3, RunError, "broke off"),
        ("silent", 3, RunError, "no answer in time"),
        ("wrong", 3, IntegrityError, "has the checksum"),
    ],
)
def test_what_stays_wrong_is_told_and_the_old_file_stays(
    get, server, tmp_path, fault, asked, error, says
):
    old = tmp_path / "all/images/Disc_0.jpg"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"an older version")
    server.faults["full/Disc_0.jpg"] = repeat(fault)
    with pytest.raises(error, match=f"full/Disc_0.jpg.* {says}.*0 of 5 .*again.*BLOODCOUNT_DATA"):
        get(timeout=0.3)
    assert server.asked == ["full/Disc_0.jpg"] * asked
    assert [(p.name, p.read_bytes()) for p in old.parent.iterdir()] == [
        (old.name, b"an older version")
    ]


def test_a_wrong_body_is_named_with_both_checksums(get, server, published):
    server.faults["full/Disc_0.jpg"] = repeat("wrong")
    body = published["full/Disc_0.jpg"]
    sums = [hashlib.sha256(b).hexdigest() for b in (body[::-1], body)]
    with pytest.raises(IntegrityError, match=f"{sums[0]} and should have {sums[1]}"):
        get()


def test_a_mask_that_comes_out_otherwise_does_not_replace_the_old_one(get, registry, tmp_path):
    get()
    mask = tmp_path / "all/masks/rbc/Disc_0.png"
    right = content_sha256(mask)
    Image.new("1", (48, 40)).save(mask)
    old = mask.read_bytes()
    registry.write_text(registry.read_text().replace(right, "0" * 64))
    with pytest.raises(
        IntegrityError, match=f"masks/rbc/Disc_0.png, .*{right} .*{'0' * 64}.*Pillow"
    ):
        get()
    assert mask.read_bytes() == old and len(list(mask.parent.iterdir())) == 1


def test_pauses_double(server, registry, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.faults["full/Disc_0.jpg"] = repeat(503)
    with pytest.raises(RunError):
        fetch(tmp_path / "all", True, base=server.url, registry=registry)
    assert pauses == [0, 1, 2, 4, 8]


def test_a_killed_fetch_goes_on_where_it_was(get, registry, server, tmp_path):
    server.faults["edge/Disc_0.jpg"] = iter(["silent"])
    code = (
        "import pathlib, sys; from bloodcount.fetch import fetch; "
        "fetch(sys.argv[1], True, base=sys.argv[2], registry=pathlib.Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, tmp_path / "all", server.url, registry]
    with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}) as process:
        assert server.silent.wait(60)
        process.kill()
    there = {p.relative_to(tmp_path / "all").as_posix() for p in (tmp_path / "all").rglob("*.*")}
    assert there == {"images/Disc_0.jpg", "masks/rbc/Disc_0.png"}
    server.asked.clear()
    assert get() == ["edges/rbc/Disc_0.png", "polygons/rbc/Disc_0.json", "index.csv"]
    assert server.asked == ["edge/Disc_0.jpg", "outlines/Disc_0.json"]


def test_a_refused_file_stops_the_fetch_and_says_how_far_it_came(get, server, tmp_path):
    server.faults["edge/Disc_0.jpg"] = iter([404])
    with pytest.raises(RunError, match="2 of 5 files"):
        get()
    assert not (tmp_path / "all/index.csv").exists()
    assert len(get()) == 3


def test_without_a_connection_it_says_what_to_do(get, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(RunError, match="no connection.*data/README.md.*BLOODCOUNT_DATA"):
        get()


def test_another_server_by_environment(get, server, monkeypatch):
    monkeypatch.setenv("BLOODCOUNT_SOURCE", f"{server.url}/")
    assert len(get(base=None)) == 5


@pytest.mark.parametrize("path", [*FILES, "index.csv"])
def test_a_flipped_byte_is_named_with_both_checksums(get, registry, server, tmp_path, path):
    get()
    file = tmp_path / "all" / path
    before = content_sha256(file)
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)
    assert content_sha256(file) != before
    with pytest.raises(IntegrityError, match=f"{path} .*{content_sha256(file)} .*{before}"):
        check(tmp_path / "all", registered(registry))
    assert get() == [path]
    assert check(tmp_path / "all", registered(registry)).empty


def test_no_flipped_byte_of_a_mask_escapes(tmp_path):
    path = tmp_path / "mask.png"
    mask = np.random.default_rng(0).random((16, 24)) < 0.3
    Image.fromarray(mask).save(path)
    body, right = path.read_bytes(), content_sha256(path)
    for i in range(len(body)):
        path.write_bytes(body[:i] + bytes([body[i] ^ 1]) + body[i + 1 :])
        if content_sha256(path) == right:
            assert np.array_equal(read_mask(path), mask)


def test_a_subset_says_what_is_missing(get, registry, tmp_path):
    get()
    folder = tmp_path / "all"
    (folder / "edges/rbc/Disc_0.png").unlink()
    (folder / "images/Other_0.jpg").write_bytes(b"")
    (folder / "README.md").write_text("Beside the data anything may stand.")
    report = check(folder, registered(registry))
    found = [("edges/rbc/Disc_0.png", "missing"), ("images/Other_0.jpg", "extra")]
    assert list(zip(report["path"], report["problem"])) == found
    with pytest.raises(InputError, match="no such folder"):
        check(tmp_path / "none")


def test_content_does_not_depend_on_compression_or_layout(tmp_path):
    mask = np.random.default_rng(1).random((64, 80)) < 0.5
    for level in (0, 9):
        Image.fromarray(mask).save(tmp_path / f"{level}.png", compress_level=level)
    for indent in (None, 4):
        (tmp_path / f"{indent}.json").write_text(json.dumps({"b": [1, 2], "a": 3}, indent=indent))
    for name, end in (("unix", b"\n"), ("dos", b"\r\n")):
        (tmp_path / f"{name}.csv").write_bytes(b"image,width" + end + b"Disc_0,48" + end)
    for one, other in (("0.png", "9.png"), ("None.json", "4.json"), ("unix.csv", "dos.csv")):
        assert content_sha256(tmp_path / one) == content_sha256(tmp_path / other)


def test_the_registry_covers_the_index():
    index = pd.read_csv(PROJECT / "data/all-idb1-index.csv")
    marked = {f"images/{name}.jpg" for name in index["image"]} | {"index.csv"}
    for column, place in (
        ("rbc_mask", "masks/rbc/{}.png"),
        ("wbc_mask", "masks/wbc/{}.png"),
        ("plt_mask", "masks/plt/{}.png"),
        ("rbc_edge", "edges/rbc/{}.png"),
        ("rbc_polygons", "polygons/rbc/{}.json"),
    ):
        marked |= {place.format(name) for name in index["image"][index[column] == 1]}
    assert set(registered()) == marked and len(marked) == 449


def test_the_real_folder_passes():
    named = Path(os.environ.get("BLOODCOUNT_DATA", PROJECT.parent / "shared/all-idb1"))
    if not (named / "index.csv").exists():
        pytest.skip("ALL-IDB1 is not here; BLOODCOUNT_DATA names its folder")
    assert (check(named)["problem"] != "missing").all()


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A wheel of the authors' layout with other contents, and members that point outside."
    contents = {path: path.encode() for path in module.MEMBERS}
    with zipfile.ZipFile(tmp_path / module.WHEEL, "w") as archive:
        for path, (member, _) in module.MEMBERS.items():
            archive.writestr(member, contents[path])
        for hostile in ("../evil.txt", "/tmp/evil.txt", "cbc-1.1.0.data/scripts/cbc"):
            archive.writestr(hostile, "not wanted")
        link = zipfile.ZipInfo("cbc/link.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../../evil.txt")
    members = {
        path: (member, hashlib.sha256(contents[path]).hexdigest())
        for path, (member, _) in module.MEMBERS.items()
    }
    monkeypatch.setattr(module, "MEMBERS", members)
    wheel = tmp_path / module.WHEEL
    monkeypatch.setattr(module, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return wheel


def test_only_named_members_are_unpacked_once(package, tmp_path):
    folder = tmp_path / "authors"
    there = sorted([*module.MEMBERS, "index.csv"])
    assert sorted(authors(folder, wheel=package)) == there
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert found == there and not (tmp_path / "evil.txt").exists()
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert authors(folder) == [] and check(folder, packaged()).empty
    index = DataSet(folder).index.loc["Im037_0"]
    assert index[["rbc_count", "wbc_count", "plt_count"]].tolist() == [105, 1, 6]
    assert index[["rbc_mask", "wbc_mask", "plt_mask", "rbc_edge", "rbc_polygons"]].sum() == 0
    assert pd.isna(index["plt_mask_components"])
    assert list(DataSet(folder).index.reset_index().columns) == COLUMNS


def test_unpacking_goes_on_from_a_wheel_placed_by_hand(package, tmp_path):
    folder = tmp_path / "authors"
    authors(folder, wheel=package)
    (folder / "weights/plt.h5").unlink()
    (folder / "weights/rbc.h5").write_bytes(b"cut")
    assert set(survey(folder, packaged())["problem"]) == {"missing", "changed"}
    with pytest.raises(RunError, match=f"pip could not .*By hand: put {module.WHEEL} into"):
        authors(folder)
    assert (folder / "weights/rbc.h5").read_bytes() == b"cut"
    package.rename(folder / module.WHEEL)
    assert authors(folder) == ["weights/rbc.h5", "weights/plt.h5"]


def test_another_wheel_is_refused(package, tmp_path):
    package.write_bytes(package.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match=f"has the checksum .*{module.WHEEL_SHA256}"):
        authors(tmp_path / "authors", wheel=package)
    with pytest.raises(InputError, match="no such file"):
        authors(tmp_path / "authors", wheel=tmp_path / "none.whl")
    assert not (tmp_path / "authors").exists()


def test_the_authors_package_from_the_registry(tmp_path):
    try:
        authors(tmp_path)
    except RunError as error:
        pytest.skip(f"needs a package registry: {error}")
    assert check(tmp_path, packaged()).empty
    smear = read_smear(DataSet(tmp_path), "Im037_0")
    assert smear.image.shape == (652, 1226, 3) and smear.masks == {}
    assert smear.counts == {"rbc": 105, "wbc": 1, "plt": 6}
    assert content_sha256(tmp_path / "images/Im037_0.jpg") == registered()["images/Im037_0.jpg"]

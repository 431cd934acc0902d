"What is dear to compute is computed once, and a damaged file is made anew."

import pytest

from bloodcount import cache
from bloodcount.cache import kept_json


def test_made_once(tmp_path):
    made = []
    for _ in range(2):
        assert kept_json(tmp_path / "deep" / "a.json", lambda: made.append(1) or {"n": 3}) == {
            "n": 3
        }
    assert made == [1]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_file_is_made_anew(tmp_path, body):
    path = tmp_path / "a.json"
    path.write_bytes(body)
    assert kept_json(path, lambda: [1]) == [1] and path.read_text() == "[1]"


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        kept_json(tmp_path / "a.json", lambda: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_other_libraries_compute_anew(monkeypatch):
    before = cache.computed_by.__wrapped__("tiles")
    assert cache.computed_by.__wrapped__("tiles") == before
    monkeypatch.setattr(cache, "versions", lambda packages: {"numpy": "0.0"})
    assert cache.computed_by.__wrapped__("tiles") != before

"A run: what is kept of it, and how its images are taken in turn."

import dataclasses
import threading
import time

import pytest

from bloodcount.errors import InputError
from bloodcount.settings import load_settings
from bloodcount.studies import protocol


@pytest.fixture
def run(tmp_path) -> protocol.Run:
    "A run on three synthetic smears, the last for testing."
    settings = load_settings("smoke")
    sample = dataclasses.replace(settings.sample, smears=3, height=200, width=240)
    paths = dataclasses.replace(settings.paths, runs=tmp_path / "runs")
    settings = dataclasses.replace(settings, sample=sample, paths=paths)
    return protocol.Run(settings, protocol.sample_data(settings), "bloodcount", 0, tmp_path)


def test_rows_are_made_once_and_anew_for_what_has_changed(run):
    made = []

    def rows(about: tuple) -> list[dict]:
        return protocol.kept_rows(
            run, "test", about, lambda: made.append(about) or [{"n": len(made)}]
        )

    assert rows((1, "a")) == rows((1, "a")) == [{"n": 1}]
    assert rows((2, "a")) == [{"n": 2}] and made == [(1, "a"), (2, "a")]


def test_images_are_taken_two_at_a_time_in_order_until_one_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOODCOUNT_PROGRESS", str(tmp_path / "bar"))
    both, seen = threading.Barrier(2, timeout=20), []

    def make(number):
        seen.append(number)
        both.wait()  # Passed only where two are under way
        time.sleep(0.2 * (number % 2 == 0))
        return 10 * number

    assert protocol.two_at_a_time(make, range(6), "numbers") == [0, 10, 20, 30, 40, 50]
    assert sorted(seen) == list(range(6)) and "6/6" in (tmp_path / "bar").read_text()

    def fail(number):
        seen.append(number)
        time.sleep(0.1)
        if number == 1:
            raise InputError("Im002_1.jpg is torn.")

    seen.clear()
    with pytest.raises(InputError, match="torn"):
        protocol.two_at_a_time(fail, range(50), "numbers")
    assert len(seen) < 10, "the others are not begun"

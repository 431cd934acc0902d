"""What several test files share."""

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bloodcount.data import DataSet
from bloodcount.errors import RunError
from bloodcount.fetch import authors
from bloodcount.settings import PROJECT, load_settings
from bloodcount.studies.protocol import Run, sample_data

ROOT = Path(__file__).parent.parent
# The files that take longest, the longest first: two at once end together only if these begin first.
LONGEST = ("test_reproduce", "test_lessons", "test_retrain", "test_training", "test_segnet")


def pytest_sessionstart():
    "A script's background job ignores SIGINT, and so would all that the tests start and interrupt."
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    "The folder of ALL-IDB1; without it, the tests that ask for it are skipped."
    named = os.environ.get("BLOODCOUNT_DATA")
    beside = [ROOT / "data" / "all-idb1", ROOT.parent / "shared" / "all-idb1"]
    folders = [Path(named)] if named else beside
    for folder in folders:
        if (folder / "index.csv").is_file():
            return folder.resolve()
    pytest.skip(f"ALL-IDB1 is not here: no index.csv in {' or '.join(map(str, folders))}")


@pytest.fixture(scope="session")
def authors_folder() -> Path:
    "The folder of the authors' weights, fetched if need be; skips the tests that ask for it offline."
    folder = load_settings().paths.authors
    try:
        authors(folder)
    except RunError as error:
        pytest.skip(f"The authors' weights are not here: {error}")
    return folder


@pytest.fixture
def sample_run(tmp_path) -> Callable[..., Run]:
    "Makes a run on a few small synthetic smears, every third for testing."

    def make(smears: int = 3, weights: str = "authors", bootstrap: int = 2000) -> Run:
        settings = load_settings("smoke")
        settings = dataclasses.replace(
            settings,
            sample=dataclasses.replace(settings.sample, smears=smears, height=200, width=240),
            paths=dataclasses.replace(settings.paths, runs=tmp_path / "runs"),
            evaluate=dataclasses.replace(settings.evaluate, bootstrap=bootstrap),
        )
        return Run(settings, sample_data(settings), weights, 0, tmp_path)

    return make


@pytest.fixture
def index_run(tmp_path) -> Run:
    "A run of the paper's profile on the data set's index alone."
    shutil.copy(PROJECT / "data" / "all-idb1-index.csv", tmp_path / "index.csv")
    return Run(load_settings("paper"), DataSet(tmp_path), "bloodcount", 0, tmp_path)

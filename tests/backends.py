"The same test file on the other backend, in a process of its own."

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bloodcount.networks import keras

OTHER = "tensorflow" if keras.backend.backend() == "jax" else "jax"


def numbers_elsewhere(script: str, folder: Path) -> dict[str, np.ndarray]:
    "What a test file writes to numbers.npz in `folder` when run on the other backend, on the CPU."
    if importlib.util.find_spec(OTHER) is None:
        pytest.skip(f"{OTHER} is not installed: nothing to compare {keras.backend.backend()} with")
    done = subprocess.run(
        [sys.executable, script, folder],
        env={**os.environ, "KERAS_BACKEND": OTHER, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "numbers.npz") as file:
        assert str(file["backend"]) == OTHER
        return {name: file[name] for name in file.files if name != "backend"}


def write_numbers(numbers: dict[str, np.ndarray], folder: str) -> None:
    np.savez(Path(folder) / "numbers.npz", backend=keras.backend.backend(), **numbers)

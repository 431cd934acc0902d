"""Segment and count red cells, white cells and platelets in images of blood smears."""

from importlib import import_module
from typing import Any

from . import source as _source  # noqa: F401 the code is named as it is now, before anybody edits it

__version__ = "0.1.0"

# What `import bloodcount as bc` offers, and the module that it comes from; loaded when it is first asked for.
_DOOR = {
    "COUNTERS": "counting",
    "balanced": "balance",
    "count": "picture",
    "count_folder": "batch",
    "load_model": "models",
    "read_image": "images",
    "show": "drawing",
    "synthetic_smear": "synthetic",
}
__all__ = sorted(_DOOR)


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module 'bloodcount' has no attribute {name!r}")
    return getattr(import_module(f".{_DOOR[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOOR])

"""The label images on which bloodcount and stardist are compared, and stardist's scores of them.

Run it where stardist is installed (it is no dependency of bloodcount) to write stardist_golden.json anew:
    pip install stardist && python tests/stardist_golden.py
"""

import hashlib
import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_suffix(".json")
SHAPE = (160, 200)
THRESHOLDS = (0.1, 0.3, 0.5, 0.6, 0.75, 0.9)
# Seed, true discs, those missed and those invented, how far the others move, px.
CASES = {
    "apart": (1, 12, 0, 0, 1.0),
    "crowded": (2, 60, 5, 8, 3.0),
    "far off": (12, 60, 0, 0, 12.0),
    "few found": (4, 30, 25, 2, 2.0),
    "too many": (5, 10, 1, 40, 2.0),
    "nothing there": (6, 0, 0, 7, 0.0),
    "nothing found": (7, 7, 7, 0, 0.0),
    "nothing at all": (8, 0, 0, 0, 0.0),
}


def label_pair(
    seed: int, n: int, missed: int, invented: int, move: float
) -> tuple[np.ndarray, np.ndarray]:
    "True and predicted label image, discs painted over each other, numbers permuted and with gaps."
    rng = np.random.default_rng(seed)
    row, col = np.indices(SHAPE)

    def paint(discs: np.ndarray) -> np.ndarray:
        labels = np.zeros(SHAPE, np.int32)
        for number, (r, c, radius) in zip(3 * rng.permutation(len(discs)) + 1, discs):
            labels[(row - r) ** 2 + (col - c) ** 2 <= radius**2] = number
        return labels

    def some(k: int) -> np.ndarray:
        return rng.uniform((0, 0, 6), (*SHAPE, 14), (k, 3))

    truth, extra = some(n), some(invented)
    found = truth[missed:] + rng.normal(0, 1, (n - missed, 3)) * (move, move, move / 4)
    return paint(truth), paint(np.concatenate([found, extra]))


def checksum(labels: np.ndarray) -> str:
    return hashlib.sha256(labels.astype("<i4").tobytes()).hexdigest()[:16]


def main() -> None:
    from importlib.metadata import version

    from stardist.matching import matching, matching_dataset

    def rows(scores: tuple) -> list[dict]:
        return [
            {k: v if k == "criterion" else float(v) for k, v in s._asdict().items()} for s in scores
        ]

    pairs = {name: label_pair(*case) for name, case in CASES.items()}
    pooled = matching_dataset(*zip(*pairs.values()), thresh=THRESHOLDS, show_progress=False)
    golden = {
        "versions": {name: version(name) for name in ("stardist", "numpy", "scipy")},
        "labels": {name: [checksum(x) for x in pair] for name, pair in pairs.items()},
        "matching": {
            name: rows(matching(*pair, thresh=THRESHOLDS)) for name, pair in pairs.items()
        },
        "matching_dataset": rows(pooled),
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()

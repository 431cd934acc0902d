"""How long each counter takes on a field of 5 megapixels: python benchmarks/count.py"""

import argparse
import os
import platform
import statistics
import time

import cv2
import numpy as np
import skimage

from bloodcount.counting import count
from bloodcount.segmentation import Maps, truth_maps
from bloodcount.settings import Counting, load_settings
from bloodcount.synthetic import synthetic_smear

SHAPE = (1944, 2592)


def soft(mask: np.ndarray, sigma: float) -> np.ndarray:
    "A mask as a network sees it: blurred, never quite 0 or 1, with some noise."
    noise = np.random.default_rng(0).normal(0, 0.01, mask.shape).astype(np.float32)
    return np.clip(0.98 * cv2.GaussianBlur(mask, (0, 0), sigma) + 0.01 + noise, 0, 1)


def field() -> dict[str, Maps]:
    "The maps of a field with 600 red cells, 10 white cells and 40 platelets."
    smear = synthetic_smear(seed=0, shape=SHAPE, rbc=600, wbc=10, plt=40, overlap=0.3)
    truth = {cell: truth_maps(smear, cell) for cell in smear.masks}
    return {
        cell: Maps(soft(maps.mask, 1.5), None if maps.edge is None else soft(maps.edge, 1.5))
        for cell, maps in truth.items()
    }


def seconds(maps: Maps, counting: Counting, method: str, repeats: int) -> tuple[float, int]:
    "The median time of a count, s, and the count."
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        cells = count(maps, counting, method)
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many runs")
    repeats = parser.parse_args().repeats
    published, maps = load_settings("paper").published["do_unet"], field()
    print(f"{SHAPE[0]} x {SHAPE[1]} px, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"OpenCV {cv2.__version__}, scikit-image {skimage.__version__}, median of {repeats}\n")  # fmt: skip
    print("| cell | method | s | times CCL | count |\n|---|---|---|---|---|")
    for cell in maps:
        counting = published[cell]
        times = {m: seconds(maps[cell], counting, m, repeats) for m in counting.count}
        for method, (duration, n) in times.items():
            print(
                f"| {cell} | {method} | {duration:.2f} | {duration / times['ccl'][0]:.1f} | {n} |"
            )


if __name__ == "__main__":
    main()

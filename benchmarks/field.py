"""From the image of a field of 5 megapixels to its cells, by the star network and by the paper's networks: python benchmarks/field.py"""

import argparse
import os
import platform
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from bloodcount.models import load_finder
from bloodcount.scale import AnyScale
from bloodcount.settings import CELLS, SECOND
from bloodcount.stars import load_fast_stars, load_stars
from bloodcount.synthetic import synthetic_smear

SHAPE = (1944, 2592)
FINDERS = {
    "star network, size found by itself": lambda: AnyScale(load_fast_stars(SECOND)),
    "the same by Keras in bfloat16": lambda: AnyScale(load_stars(SECOND, "mixed_bfloat16")),
    "the same by Keras in float32": lambda: AnyScale(load_stars(SECOND)),
    "the paper's DO-U-Nets, each by its own method": load_finder,
}


def measured(name: str, repeats: int) -> tuple[float, float, dict[str, int]]:
    "Seconds a field once all is loaded, peak memory of the process in GB, and the counts."
    image = synthetic_smear(seed=0, shape=SHAPE, rbc=600, wbc=10, plt=40, overlap=0.3).image
    find, times = FINDERS[name](), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        cells = find(image)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return statistics.median(times[1:]), peak, {cell: len(cells[cell]) for cell in CELLS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many runs")
    repeats = parser.parse_args().repeats
    print(f"{SHAPE[0]} x {SHAPE[1]} px, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"median of {repeats} after a first\n")  # fmt: skip
    print("| found by | s | times the first | peak, GB | rbc | wbc | plt |\n|---|---|---|---|---|---|---|")
    first = 0.0
    for name in FINDERS:  # Each in a process of its own, so that the memory is its own
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds, peak, counts = pool.submit(measured, name, repeats).result()
        first = first or seconds
        numbers = " | ".join(str(counts[cell]) for cell in CELLS)
        print(f"| {name} | {seconds:.2f} | {seconds / first:.1f} | {peak:.1f} | {numbers} |")


if __name__ == "__main__":
    main()

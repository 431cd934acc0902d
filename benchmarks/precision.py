"""What arithmetic changes: our DO-U-Nets by Keras in float32, by Keras in bfloat16 and by OpenVINO, on every image that is counted: python benchmarks/precision.py OUT.csv"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd

from bloodcount.counting import count
from bloodcount.data import read_smear
from bloodcount.engines import engine_version
from bloodcount.files import write_csv
from bloodcount.segmentation import Maps, Segmenter, load_segmenter
from bloodcount.settings import CELLS
from bloodcount.studies.protocol import Run, counted_images, progress, start

# Ways of one network, the first of which the others are held against; as settings of the section segment.do_unet.
WAYS = {
    "Keras, float32": {"precision": "float32", "engine": "keras"},
    "Keras, bfloat16": {"precision": "mixed_bfloat16", "engine": "keras"},
    "OpenVINO": {"precision": "float32", "engine": "openvino"},
}


def segmenters(run: Run, cell: str) -> dict[str, Segmenter]:
    "One network for each way."
    plain = run.settings.segment["do_unet"]
    changed = {way: dataclasses.replace(plain, **how) for way, how in WAYS.items()}
    return {
        way: load_segmenter(
            cell,
            dataclasses.replace(run.settings, segment=run.settings.segment | {"do_unet": section}),
        )
        for way, section in changed.items()
    }


def differences(maps: Maps, others: Maps) -> np.ndarray:
    "Absolute differences of all probabilities."
    planes = zip((maps.mask, maps.edge), (others.mask, others.edge))
    return np.concatenate([np.abs(a - b).ravel() for a, b in planes if a is not None])


def rows_of(run: Run, cell: str, name: str, ways: dict[str, Segmenter]) -> list[dict]:
    "One image: seconds, differences from the first way, and the count of each method, by each way."
    smear, counting, rows, first = read_smear(run.data, name, (cell,)), run.how(cell), [], None
    for way, segmenter in ways.items():
        began = time.perf_counter()
        maps = segmenter(smear.image)
        seconds = time.perf_counter() - began
        first = first or maps
        off = differences(first, maps)
        counts = {method: len(count(maps, counting, method)) for method in counting.count}
        about = {"cell": cell, "image": name, "way": way, "engine": engine_version(segmenter.engine)}
        measured = {"seconds": round(seconds, 2), "largest": float(off.max()), "mean": float(off.mean())}
        rows.append(about | measured | counts)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the table; images that it has are not done again")
    out = parser.parse_args().out
    run = start("paper")
    rows = pd.read_csv(out).to_dict("records") if out.exists() else []
    done = {(row["cell"], row["image"]) for row in rows}
    for cell in CELLS:
        images = [name for name in counted_images(run, cell) if (cell, name) not in done]
        if not images:
            continue
        ways = segmenters(run, cell)
        warm = read_smear(run.data, images[0], (cell,)).image
        for segmenter in ways.values():
            segmenter(warm)
        for name in progress(images, cell):
            rows += rows_of(run, cell, name, ways)
            write_csv(out, pd.DataFrame(rows), float_format="%.6g")


if __name__ == "__main__":
    main()

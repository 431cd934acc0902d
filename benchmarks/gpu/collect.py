"""Pack what was trained into archives that can be sent: python benchmarks/gpu/collect.py RUNS STARS OUT [SENT]

SegNet's weights (59 MB each) stay behind; its masks go. Of a training that is not done, the best epoch so far goes.
What the list SENT names is not sent again; what is sent now is added to it.
"""

import sys
import tarfile
from pathlib import Path

import numpy as np

ARCHIVE, ARCHIVES = 15_500_000, 7  # Bytes, and how many at most
INTERMEDIATE = "wbc-do_unet-best", "plt-do_unet-best", "segnet-best", "segnet-half-"


def best_so_far(folder: Path) -> None:
    "Write the best epoch of an unfinished training as float16."
    checkpoint = folder / "checkpoint.npz"
    if not checkpoint.exists() or "segnet" in folder.name:
        return
    with np.load(checkpoint) as kept:
        best = [kept[name].astype(np.float16) for name in kept.files if name.startswith("best")]
    np.savez_compressed(folder / "unfinished.npz", **{f"{i:03}": a for i, a in enumerate(best)})


def main(runs: Path, stars: Path, out: Path, sent: Path) -> None:
    for folder in runs.glob("*/trained/*"):
        try:
            best_so_far(folder)
        except Exception as error:  # noqa: BLE001 one damaged file must not keep back the others
            print(folder.name, error)
    told = set(sent.read_text().splitlines()) if sent.exists() else set()
    files = [path for root in (stars, runs) for path in sorted(root.rglob("*")) if path.is_file()]
    files = [
        path
        for path in files
        if path.name not in ("checkpoint.npz", "part.npz") and ".part." not in path.name
    ]
    files = [path for path in files if not ("segnet" in str(path) and path.suffix == ".npz")]
    again = {".csv", ".log", ".json"}  # Small, and they grow
    files = [path for path in files if str(path) not in told or path.suffix in again]

    def order(path: Path) -> tuple:
        name = str(path)
        return (
            path.suffix not in again,
            "stars" not in name,
            any(i in name for i in INTERMEDIATE),
            path.suffix != ".npz",
            name,
        )

    files.sort(key=order)
    groups, sizes = [], []
    for path in files:
        size = path.stat().st_size + 1024
        for i, held in enumerate(sizes):
            if held + size < ARCHIVE:
                groups[i].append(path)
                sizes[i] += size
                break
        else:
            if len(groups) == ARCHIVES or sum(sizes) + size > 60_000_000:
                print("left out:", path)
                continue
            groups.append([path])
            sizes.append(size)
    for number, group in enumerate(groups):
        with tarfile.open(out / f"part{number}.tar", "w") as archive:
            for path in group:
                archive.add(path, arcname=str(path).lstrip("/"))
                told.add(str(path))
    sent.write_text("\n".join(sorted(told)))
    print(f"{len(files)} files, archives of {sizes} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), Path(sys.argv[4] if len(sys.argv) > 4 else "/tmp/sent.txt"))

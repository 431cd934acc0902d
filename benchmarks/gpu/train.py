"""Train the networks of the paper's tables on a GPU, several at once: python benchmarks/gpu/train.py OUT --until 540

Each is `bloodcount.training.train` in a process of its own, with the profile `gpu`; those that go on with another
follow it in the same process. A SegNet's masks of all images are made at once, for its weights are too large to send.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# Chains in the order of their worth: cell, network, recipes, seed
CHAINS = [
    ("rbc", "segnet", ("half",), 0),
    ("rbc", "do_unet", ("best", "refined"), 0),
    ("rbc", "do_unet", ("model_b",), 0),
    ("rbc", "do_unet", ("model_a",), 0),
    ("plt", "segnet", ("best",), 0),
    ("wbc", "segnet", ("best",), 0),
    ("rbc", "do_unet", ("model_b",), 1),
    ("rbc", "do_unet", ("model_a",), 1),
    ("rbc", "do_unet", ("model_b",), 2),
    ("rbc", "do_unet", ("model_a",), 2),
    ("wbc", "do_unet", ("best", "refined"), 0),
    ("plt", "do_unet", ("best", "refined"), 0),
    ("rbc", "do_unet", ("as_paper",), 0),
]


def train_chain(out: Path, chain: tuple, profile: str) -> None:
    "Train one network after the other; of a SegNet, keep the masks."
    import dataclasses

    from bloodcount.data import real_data
    from bloodcount.settings import load_settings
    from bloodcount.training import Training, train

    cell, network, recipes, seed = chain
    settings = load_settings(profile)
    settings = dataclasses.replace(settings, paths=dataclasses.replace(settings.paths, runs=out))
    data = real_data(settings)
    for recipe in recipes:
        began = time.perf_counter()
        folder = train(Training(settings, data, cell, network, recipe, seed))
        print(f"{folder.name}: trained in {time.perf_counter() - began:.0f} s", flush=True)
        if network == "segnet":
            keep_masks(folder, settings, data, cell)
            print(f"{folder.name}: masks after {time.perf_counter() - began:.0f} s", flush=True)


def keep_masks(folder: Path, settings, data, cell: str) -> None:
    "What the network says of every image that is scored, with few grey levels, beside its card."
    from concurrent.futures import ThreadPoolExecutor

    from bloodcount.data import read_smear
    from bloodcount.segmentation import load_segmenter, write_masks
    from bloodcount.studies.protocol import Run, counted_images

    segmenter = load_segmenter(cell, settings, str(folder))
    run = Run(settings, data, str(folder), 0, folder)

    def keep(name: str) -> None:
        write_masks(folder, name, segmenter(read_smear(data, name, (cell,)).image))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(keep, counted_images(run, cell)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--until", type=float, default=540, help="seconds after which nothing is begun"
    )
    parser.add_argument("--at-once", type=int, default=5)
    parser.add_argument("--profile", default="gpu")
    parser.add_argument("--chain", help="one chain, as JSON; for this script's own use")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.chain:
        train_chain(options.out, json.loads(options.chain), options.profile)
        return
    began, waiting, running, failed = time.monotonic(), list(CHAINS), {}, 0
    while waiting or running:
        for name, (process, start) in list(running.items()):
            if process.poll() is not None:
                failed += process.returncode != 0
                print(
                    f"{time.monotonic() - began:.0f} s: {name} ended with {process.returncode} after {time.monotonic() - start:.0f} s",
                    flush=True,
                )
                del running[name]
        if time.monotonic() - began > options.until or failed > 3:
            waiting = []
        while waiting and len(running) < options.at_once:
            chain = waiting.pop(0)
            name = "-".join([*chain[:2], *chain[2], str(chain[3])])
            command = [
                sys.executable,
                __file__,
                str(options.out),
                "--profile",
                options.profile,
                "--chain",
                json.dumps(chain),
            ]
            log = open(options.out / f"{name}.log", "w")  # noqa: SIM115 the process writes it
            environment = os.environ | {
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                "TQDM_DISABLE": "1",
            }
            running[name] = (
                subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment),
                time.monotonic(),
            )
            print(f"{time.monotonic() - began:.0f} s: {name} begins", flush=True)
        time.sleep(0.5)
    print("all done", flush=True)


if __name__ == "__main__":
    main()

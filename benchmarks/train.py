"""Whether training ever waits for its chips, and what a step costs: python benchmarks/train.py"""

import argparse
import itertools
import os
import platform
import time

import numpy as np

from bloodcount.augment import chips, field
from bloodcount.cache import device
from bloodcount.networks import MODELS, OUTPUTS, keras
from bloodcount.settings import PROFILES, load_settings
from bloodcount.synthetic import synthetic_smear
from bloodcount.training import Training, build, prepare


def drawn_per_second(profile: str, network: str, recipe: str, workers: int, batches: int) -> float:
    "Chips that are drawn a second."
    settings = load_settings(profile)
    train, size = settings.train[network], settings.train[network].input_size
    fields = [field(synthetic_smear(i, (972, 1296), rbc=150, overlap=0.3), "rbc") for i in range(2)]
    sides = size, size - 2 * MODELS[network].crop
    drawn = chips(fields, train.batch, 0, settings.augment[recipe], sides, workers=workers)
    next(drawn)
    began = time.perf_counter()
    for _ in itertools.islice(drawn, batches):
        pass
    return batches * train.batch / (time.perf_counter() - began)


def operations(model: keras.Model) -> float:
    "Floating-point operations of a training step for one chip: forward, and twice that backward."
    total = 0
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Conv2DTranspose)):
            transposed = isinstance(layer, keras.layers.Conv2DTranspose)
            side = layer.input.shape[1] if transposed else layer.output.shape[1]
            total += 2 * np.prod(layer.kernel.shape) * side**2
    return 3.0 * total


def step(profile: str, network: str, repeats: int) -> tuple[float, float]:
    "Seconds of a training step, and the operations of its batch."
    training = Training(load_settings(profile), None, "rbc", network, "best")
    settings = training.chosen[2]
    model = build(training)
    prepare(model, training, 0)
    size, out = (shape[1] for shape in (model.input_shape, model.outputs[0].shape))
    image = np.random.default_rng(0).random((settings.batch, size, size, 3), np.float32)
    truth = {name: np.zeros((settings.batch, out, out, 1), np.float32) for name in OUTPUTS["rbc"]}
    model.train_on_batch(image, truth)
    began = time.perf_counter()
    for _ in range(repeats):
        model.train_on_batch(image, truth)
    return (time.perf_counter() - began) / repeats, operations(model) * settings.batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="laptop")
    parser.add_argument("--repeats", type=int, default=10, help="steps, and batches, to time")
    options = parser.parse_args()
    print(f"profile {options.profile}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"Keras {keras.__version__} on {keras.backend.backend()}, {device()}\n")  # fmt: skip
    print("| network | chip, px | a step eats, chips/s | TFLOP/s | drawn by one worker, chips/s: as_paper | best | best / eaten |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for network in MODELS:
        train = load_settings(options.profile).train[network]
        if train.encoder_weights != "none":
            print(f"| {network} | {train.input_size} | needs encoder_weights | | | | |")
            continue
        seconds, work = step(options.profile, network, options.repeats)
        eaten = train.batch / seconds
        rates = [
            drawn_per_second(options.profile, network, recipe, 1, 5 * options.repeats)
            for recipe in ("as_paper", "best")
        ]
        print(f"| {network} | {train.input_size} | {eaten:.1f} | {work / seconds / 1e12:.3f} | "
              f"{rates[0]:.0f} | {rates[1]:.0f} | {rates[1] / eaten:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()

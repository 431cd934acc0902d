"""Train the star network on a GPU, by Keras on JAX: python benchmarks/gpu/stars.py OUT --seconds 540

The processors draw the chips, each in a process of its own; the card measures how far a cell reaches and learns.
The length is a time, not a number of steps: the learning rate falls to nothing when it is up.
"""

import argparse
import json
import multiprocessing
import os
import queue
import threading
import time
from pathlib import Path

import numpy as np

from bloodcount.star_training import AFTER, DEPTH, KIND_WEIGHTS, LOSS_WEIGHTS, RAYS, UNIT, WIDTH
from bloodcount.stars import GRID

SIDE = 256  # Of a chip, px
VALIDATION = tuple(
    "Im050_1 Im079_0 Im010_1 Im023_1 Im031_1 Im039_0 Im043_0 Im051_1 Im058_1 Im072_0".split()
)
# No truth; and a picture that is there twice, as Im108_0 too
LEFT_OUT = "Im024_1", "Im093_0"


def make_truth(name: str):
    "What may be learnt of one image; None if nothing may."
    import cv2

    from bloodcount.data import read_smear, real_data
    from bloodcount.errors import InputError
    from bloodcount.settings import CELLS, load_settings
    from bloodcount.star_truth import star_truth

    cv2.setNumThreads(1)
    smear = read_smear(real_data(load_settings("paper")), name)
    if smear.splits.get("rbc") == "test":
        return None
    try:
        return star_truth(smear, [cell for cell in CELLS if smear.splits.get(cell) != "test"])
    except InputError:
        return None


def draw(number: int, truths: list, seed: int, on_card: bool, out) -> None:
    "Put batches of four chips into a queue, for ever."
    import cv2
    from stardist.utils import edt_prob

    from bloodcount.star_chips import draw_chip, places, targets

    cv2.setNumThreads(1)
    rng, at = np.random.default_rng([seed, number]), [places(truth) for truth in truths]
    while True:
        parts = []
        for _ in range(4):
            chip = draw_chip(truths, at, rng, SIDE)
            coarse = chip.labels[::GRID, ::GRID]
            unknown = coarse < 0
            coarse = np.maximum(coarse, 0)
            depth = edt_prob(coarse).astype(np.float16)
            kinds = chip.kinds[coarse].astype(np.int8)
            kinds[unknown] = -1
            labels = np.maximum(chip.labels, 0).astype(np.int16)
            reach = (
                np.zeros((0,), np.float16)
                if on_card
                else targets(chip)[1][..., :RAYS].astype(np.float16)
            )
            image = np.rint(255 * np.clip(chip.image, 0, 1)).astype(np.uint8)
            parts.append((image, labels, depth, kinds, reach))
        out.put(tuple(np.stack(each) for each in zip(*parts)))


KERNEL = r"""
extern "C" __global__ void reach(const short* labels, float* out, const float* rows, const float* cols,
                                 int side, int grid, int rays, int total) {
  int t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= total) return;
  int n = side / grid, k = t % rays, j = (t / rays) % n, i = (t / rays / n) % n, b = t / rays / n / n;
  const short* plane = labels + (long long)b * side * side;
  short own = plane[i * grid * side + j * grid];
  if (own == 0) { out[t] = 0.f; return; }
  float dy = rows[k], dx = cols[k], y = 0.f, x = 0.f;
  while (true) {
    y += dy; x += dx;
    int r = (int)rintf(i * grid + y), c = (int)rintf(j * grid + x);
    if (r < 0 || r >= side || c < 0 || c >= side || plane[r * side + c] != own) {
      float back = 1.f - .5f / fmaxf(fabsf(dy), fabsf(dx));
      y -= back * dy; x -= back * dx;
      out[t] = sqrtf(x * x + y * y);
      return;
    }
  }
}
"""


def reach_on_card():
    "A function from labels (n, SIDE, SIDE) int16 to the reach (n, h, w, RAYS) as a JAX array; None without cupy."
    try:
        import cupy
        import jax

        kernel = cupy.RawKernel(KERNEL, "reach")
        turn = np.linspace(0, 2 * np.pi, RAYS, endpoint=False)
        rows, cols = (cupy.asarray(f(turn), cupy.float32) for f in (np.cos, np.sin))

        def measure(labels: np.ndarray):
            n, half = len(labels), SIDE // GRID
            out = cupy.empty((n, half, half, RAYS), cupy.float32)
            total = out.size
            kernel(
                ((total + 255) // 256,), (256,),
                (cupy.asarray(labels), out, rows, cols, np.int32(SIDE), np.int32(GRID), np.int32(RAYS), np.int32(total)),
            )  # fmt: skip
            cupy.cuda.Device().synchronize()
            return jax.numpy.array(jax.dlpack.from_dlpack(out), copy=True)

        from stardist.geometry import star_dist

        rng = np.random.default_rng(0)
        labels = np.kron(rng.integers(0, 3, (2, 16, 16)), np.ones((16, 16))).astype(np.int16)
        true = [
            star_dist(each.astype(np.int32), RAYS, mode="cpp", grid=(GRID, GRID)) for each in labels
        ]
        apart = np.abs(np.asarray(measure(labels)) - np.stack(true))
        print(
            f"reach on the card: largest difference {apart.max():.3f} px, mean {apart.mean():.5f}",
            flush=True,
        )
        return measure if apart.mean() < 0.02 else None
    except Exception as error:  # noqa: BLE001 without it, the processors measure
        print(f"reach by the processors: {error!r}", flush=True)
        return None


def network(keras, width: int = WIDTH, depth: int = DEPTH, after: int = AFTER):
    "The library's network with its layers in its order, so that the weights fit."
    from keras import layers

    from bloodcount.networks import arithmetic

    def conv(x, n):
        x = layers.Conv2D(n, 3, padding="same")(x)
        return layers.Activation("relu")(layers.BatchNormalization()(x))

    with arithmetic("mixed_bfloat16"):
        image = keras.Input((None, None, 3), name="input")
        x = image
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
        skips = []
        for level in range(depth):
            x = conv(conv(x, width * 2**level), width * 2**level)
            skips.append(x)
            x = layers.MaxPooling2D()(x)
        x = conv(conv(x, width * 2**depth), width * 2 ** (depth - 1))
        for level in reversed(range(depth)):
            x = layers.Concatenate()([layers.UpSampling2D()(x), skips[level]])
            x = conv(conv(x, width * 2**level), width * 2 ** max(0, level - 1))
        features = layers.Conv2D(after, 3, padding="same", activation="relu", name="features")(x)
        of_kind = layers.Conv2D(after, 3, padding="same", activation="relu", name="features_class")(
            x
        )
    head = {"padding": "same", "dtype": "float32"}
    outputs = [
        layers.Conv2D(1, 1, activation="sigmoid", name="prob", **head)(features),
        layers.Conv2D(RAYS, 1, name="dist", **head)(features),
        layers.Conv2D(4, 1, activation="softmax", name="prob_class", **head)(of_kind),
    ]
    return keras.Model(image, outputs)


def loss_of(found, depth, reach, kinds):
    "The library's three losses, weighted as in bloodcount.star_training."
    import jax.numpy as jnp

    middle, far, kind = found
    known = (kinds >= 0).astype(jnp.float32)[..., None]
    middle = jnp.clip(middle, 1e-7, 1 - 1e-7)
    entropy = -(depth * jnp.log(middle) + (1 - depth) * jnp.log(1 - middle))
    first = (entropy * known).sum() / jnp.maximum(known.sum(), 1)
    near = jnp.abs(reach / UNIT - far)
    second = (depth * near).mean() / (depth.mean() + 1e-7) + 1e-4 * (
        (1 - depth) * jnp.abs(far)
    ).mean()
    weight = jnp.array(KIND_WEIGHTS)
    one_hot = (kinds[..., None] == jnp.arange(4)).astype(jnp.float32)
    third = -(weight * one_hot * jnp.log(jnp.clip(kind, 1e-7, 1 - 1e-7))).sum(-1).mean()
    a, b, c = LOSS_WEIGHTS
    return a * first + b * UNIT * second + c * third, (first, second, third)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--workers", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--images", type=int, default=0, help="only so many, for a rehearsal")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    from bloodcount.data import real_data
    from bloodcount.settings import load_settings

    every = list(real_data(load_settings("paper")).index.index)
    learnt = [name for name in every if name not in (*VALIDATION, *LEFT_OUT)]
    learnt = learnt[: options.images or None]
    spawn = multiprocessing.get_context("spawn")
    os.environ["JAX_PLATFORMS"] = (
        "cpu"  # Of the processes that draw; the card is this one's, which has its backend
    )
    with spawn.Pool(options.workers) as pool:
        truths = [truth for truth in pool.map(make_truth, learnt, chunksize=1) if truth is not None]
    print(f"{len(truths)} truths after {time.perf_counter() - began:.0f} s", flush=True)

    measure = reach_on_card()
    drawn = spawn.Queue(64)
    for number in range(options.workers):
        arguments = number, truths, 11, measure is not None, drawn
        spawn.Process(target=draw, args=arguments, daemon=True).start()

    import jax
    import jax.numpy as jnp
    import keras
    import optax

    keras.utils.set_random_seed(0)
    model = network(keras)
    head = model.get_layer("dist")
    head.bias.assign(np.full(RAYS, 12.0 / UNIT, np.float32))
    optimizer = optax.chain(
        optax.clip_by_global_norm(5.0), optax.scale_by_adam(), optax.add_decayed_weights(1e-4)
    )

    def step(state, rate, image, depth, kinds, reach):
        weights, rest, moments, mean = state

        def losses(weights):
            found, after = model.stateless_call(
                weights, rest, image.astype(jnp.float32) / 255, training=True
            )
            total, parts = loss_of(
                found, depth.astype(jnp.float32)[..., None], reach.astype(jnp.float32), kinds
            )
            return total, (parts, after)

        (total, (parts, rest)), slope = jax.value_and_grad(losses, has_aux=True)(weights)
        change, moments = optimizer.update(slope, moments, weights)
        weights = [w - rate * c for w, c in zip(weights, change)]
        mean = [0.999 * m + 0.001 * w for m, w in zip(mean, weights)]
        return (weights, rest, moments, mean), jnp.stack([total, *parts])

    weights = [jnp.array(v.value) for v in model.trainable_variables]
    rest = [jnp.array(v.value) for v in model.non_trainable_variables]
    state = weights, rest, optimizer.init(weights), [w + 0 for w in weights]
    step = jax.jit(step, donate_argnums=0)

    ready = queue.Queue(8)

    def gather() -> None:
        while True:
            parts = [drawn.get() for _ in range(options.batch // 4)]
            image, labels, depth, kinds, reach = (np.concatenate(each) for each in zip(*parts))
            ready.put((image, depth, kinds, reach, labels))

    threading.Thread(target=gather, daemon=True).start()

    def keep(state) -> None:
        for variable, value in zip(model.trainable_variables, state[3]):
            variable.assign(value)
        for variable, value in zip(model.non_trainable_variables, state[1]):
            variable.assign(value)
        arrays = {f"{i:03}": np.asarray(w, np.float32) for i, w in enumerate(model.weights)}
        np.savez(options.out / "part.npz", **arrays)
        (options.out / "part.npz").rename(options.out / "stars.npz")

    done, rows, saved, start = 0, [], time.perf_counter(), time.perf_counter()
    names = [truth.name for truth in truths]
    (options.out / "stars.json").write_text(
        json.dumps({"images": names, "batch": options.batch, "rate": options.rate})
    )
    while True:
        share = (time.perf_counter() - began) / options.seconds
        if share >= 1:
            break
        image, depth, kinds, reach, labels = ready.get()
        if measure is not None:
            reach = measure(labels)
        rate = options.rate * min(1, (done + 1) / 300) * float(np.clip((1 - share) / 0.45, 0.01, 1))
        state, losses = step(state, np.float32(rate), image, depth, kinds, reach)
        done += 1
        if done in (1, 10) or done % 100 == 0:
            told = [round(float(v), 4) for v in losses]
            rows.append([done, round(time.perf_counter() - start, 1), rate, *told])
            print(*rows[-1], "waiting", ready.qsize(), flush=True)
            (options.out / "stars.csv").write_text(
                "\n".join(",".join(map(str, row)) for row in rows)
            )
        if time.perf_counter() - saved > 40:
            keep(state)
            saved = time.perf_counter()
    keep(state)
    seconds = time.perf_counter() - start
    print(
        f"{done} steps of {options.batch} chips in {seconds:.0f} s: {done * options.batch / seconds:.0f} chips/s",
        flush=True,
    )
    os._exit(0)


if __name__ == "__main__":
    main()

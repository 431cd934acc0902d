"""What the card can do: one large matrix product and one large copy, by JAX: python benchmarks/gpu/ceiling.py"""

import time

import jax
import jax.numpy as jnp


def median(function, *arguments, repeats: int = 20) -> float:
    "Median seconds of a call."
    function(*arguments).block_until_ready()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function(*arguments).block_until_ready()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


key, side = jax.random.key(0), 8192 if jax.default_backend() == "gpu" else 512
a, b = (jax.random.normal(k, (side, side), jnp.bfloat16) for k in jax.random.split(key))
product = median(jax.jit(jnp.matmul), a, b)
copied = jnp.zeros((side, side, 16), jnp.float32)
copy = median(jax.jit(lambda x: x + 1), copied)
print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}")
print(f"{side} x {side} bfloat16 product: {2 * side**3 / product / 1e12:.0f} TFLOP/s")
print(f"copy: {2 * copied.nbytes / copy / 1e12:.2f} TB/s read and written")

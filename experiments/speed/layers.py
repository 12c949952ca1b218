"""Milliseconds of one 1-bit convolution of each stage, forward and both gradients: ours, XLA's, and the limits.

    python -m experiments.speed.layers [--threads 2] [--out experiments/speed/layers.jsonl]

Ours and XLA's take turns in one process, so that a machine that slows down slows both. Medians of the rounds. Rates are
those of a convolution of floats that took so long: two operations for each product. Limits, from roofline.cc, are what
so many cores do in registers: float32 is the limit of every convolution of floats, tables that of one addition from
the first-level cache for four products.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

from bireal_jax import output
from experiments.speed.train import limit_threads

# images, size, channels in, channels out, stride: bireal20 at batch 256, bireal18 at 224 px and batch 32
LAYERS = [
    (256, 32, 16, 16, 1), (256, 32, 16, 32, 2), (256, 16, 32, 32, 1), (256, 8, 64, 64, 1),
    (32, 56, 64, 64, 1), (32, 56, 64, 128, 2), (32, 28, 128, 128, 1), (32, 14, 256, 256, 1), (32, 7, 512, 512, 1),
]  # fmt: skip
SOURCE = Path(__file__).with_name("roofline.cc")


def limits(threads) -> dict[str, float]:
    """GFLOP/s of so many cores, by float32 and by tables."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "roofline"
        subprocess.run(["g++", "-O3", "-march=native", "-std=c++17", SOURCE, "-o", binary], check=True)
        lines = subprocess.run([binary], check=True, capture_output=True, text=True).stdout.splitlines()
    peaks = {name: float(value) for name, value in map(str.split, lines)}
    return {name: threads * peaks[name] for name in ("float32", "tables")}


def functions(layer):
    """(what, ours, XLA's, arguments) of a 3x3 layer, and the products in it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bireal_jax.binary import packed, tables
    from bireal_jax.binary.conv import PLAIN, xla_conv

    n, size, cin, cout, stride = layer
    how = {"strides": (stride, stride), "padding": ((1, 1), (1, 1))}
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.choice([-1.0, 1.0], (n, size, size, cin)), jnp.float32)
    w = jnp.asarray(rng.choice([-1.0, 1.0], (3, 3, cin, cout)), jnp.float32)
    y = jax.eval_shape(partial(xla_conv, **how), x, w)
    g = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    rows = [("forward", packed.product, xla_conv, (x, w))]
    rows += [(f"by {name[3:]}", getattr(tables, name), getattr(PLAIN, name), (x, w, g)) for name in PLAIN._fields]
    made = [(what, jax.jit(partial(ours, **how)), jax.jit(partial(xla, **how)), args) for what, ours, xla, args in rows]
    return made, y.size * 9 * cin


def milliseconds(function, arguments) -> float:
    """Of one call."""
    began = time.perf_counter()
    function(*arguments).block_until_ready()
    return 1e3 * (time.perf_counter() - began)


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="append the results to this .jsonl file")
    arguments = parser.parse_args()
    limit_threads(arguments.threads)
    from bireal_jax.main import keep_freed_memory

    keep_freed_memory()
    limit = limits(arguments.threads)
    print(f"{arguments.threads} thread(s); limits in GFLOP/s:", limit)
    print(
        "| images, size, channels, stride | what | ours, ms | XLA, ms | times as fast | GFLOP/s | of float32's limit |"
    )
    print("|---|---|---|---|---|---|---|")
    for layer in LAYERS:
        made, products = functions(layer)
        n, size, cin, cout, stride = layer
        for what, ours, xla, args in made:
            milliseconds(ours, args), milliseconds(xla, args)
            pairs = [(milliseconds(ours, args), milliseconds(xla, args)) for _ in range(arguments.rounds)]
            mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
            rate = 2e-6 * products / mine
            shape = f"{n}, {size}x{size}, {cin} to {cout}, {stride}"
            share = f"{rate / limit['float32']:.1f} times"
            if what != "forward":
                share += f"; {rate / limit['tables']:.0%} of tables'"
            print(
                f"| {shape} | {what} | {mine:.2f} | {theirs:.2f} | {theirs / mine:.1f} | {rate:.0f} | {share} |",
                flush=True,
            )
            if arguments.out:
                row = {"layer": layer, "what": what, "threads": arguments.threads, "limits": limit, "pairs_ms": pairs}
                with open(arguments.out, "a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    with output.command():
        main()

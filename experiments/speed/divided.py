"""Milliseconds of a training step by how its batch is divided: one program, logical replicas, parts.

    python -m experiments.speed.divided

The steps take turns in one process, so that a machine that slows down slows all of them. Median and quartiles of the
rounds. Groups of batch norm have an eighth of the batch in all of them.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import jax

from bireal_jax import output
from experiments.speed import steps


def modes(batch) -> dict[str, dict[str, Any]]:
    """name -> arguments of `make_train_step`: groups of batch norm are batch / 8 in all."""
    return {
        "plain": {}, "deterministic": {"replica": batch // 8}, "accumulate=8": {"parts": 8}, "remat": {"remat": True},
    }  # fmt: skip


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bireal18_cifar")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    parts = partial(steps.parts, args.model, args.size, args.batch, classes=10, over=args.batch // 8)
    runs = {name: steps.runner(parts(**how)) for name, how in modes(args.batch).items()}
    for run in runs.values():
        run()
    seconds = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    plain = statistics.median(seconds["plain"])
    print(f"{args.model}, {args.size} px, batch {args.batch}, {jax.local_device_count()} x {jax.default_backend()}")
    for name, values in seconds.items():
        low, middle, high = (1e3 * v for v in statistics.quantiles(values, n=4))
        print(f"| {name} | {middle:.0f} ({low:.0f} to {high:.0f}) | {middle / plain / 1e3:.2f} |")


if __name__ == "__main__":
    with output.command():
        main()

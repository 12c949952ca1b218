"""Milliseconds of a training step by how its batch is divided: one program, logical replicas, parts.

    python -m experiments.speed.divided

The steps take turns in one process, so that a machine that slows down slows all of them. Median and quartiles of the
rounds. Groups of batch norm have an eighth of the batch in all of them.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from bireal_jax import models
from bireal_jax.binary import losses
from bireal_jax.data import Source
from bireal_jax.running import parallel
from bireal_jax.training import optim
from bireal_jax.training.step import make_state, make_train_step


def modes(batch):
    """name -> arguments of `make_train_step`: groups of batch norm are batch / 8 in all."""
    return {
        "plain": {}, "deterministic": {"replica": batch // 8}, "accumulate=8": {"parts": 8}, "remat": {"remat": True},
    }  # fmt: skip


def make(name, size, batch, arguments):
    """A function that runs one step to its end."""
    source = Source(train=(), eval=(), augment=lambda *_: {}, prepare=dict, image_shape=(size, size, 3), num_classes=10)
    devices = jax.local_device_count()
    model = models.build(name, 10, bn_over=batch // 8)
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    variables = jax.jit(model.init, compiler_options=quick)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    tx = optim.make("adam", lambda _: 1e-3, variables["params"])
    step = parallel.pmap(make_train_step(model, losses.cross_entropy, tx, source, **arguments), donate=True)
    state = parallel.replicate(make_state(variables, tx, 0, False, jnp.float32))
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (devices, batch // devices, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, (devices, batch // devices), dtype=np.int32),
        "mask": np.ones((devices, batch // devices), bool),
    }  # fmt: skip
    (data,) = parallel.prefetch([data])

    def run():
        nonlocal state
        state, value = step(state, data)
        jax.block_until_ready((state, value))

    return run


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bireal18_cifar")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    steps = {name: make(args.model, args.size, args.batch, a) for name, a in modes(args.batch).items()}
    for run in steps.values():
        run()
    seconds = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, run in steps.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    plain = statistics.median(seconds["plain"])
    print(f"{args.model}, {args.size} px, batch {args.batch}, {jax.local_device_count()} x {jax.default_backend()}")
    for name, values in seconds.items():
        low, middle, high = (1e3 * v for v in statistics.quantiles(values, n=4))
        print(f"| {name} | {middle:.0f} ({low:.0f} to {high:.0f}) | {middle / plain / 1e3:.2f} |")


if __name__ == "__main__":
    main()

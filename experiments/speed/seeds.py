"""Milliseconds of one training step of one seed: several seeds as one program against one seed after the other.

    python -m experiments.speed.seeds                            5 seeds of the digits network on two virtual devices
    python -m experiments.speed.seeds --seeds 8 --devices 0      on the accelerators that are there

Both programs take turns in one process, so that a machine that slows down slows both. A step is forward, backward and
SGD. On an accelerator, some steps are one call and gather their batches from the images that lie there; on a CPU a step
is a call, on a batch already in memory. Compilation is reported on its own.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from bireal_jax import output
from bireal_jax.main import keep_freed_memory


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bireal_tiny")
    parser.add_argument("--cifar", help="config.data.dir of CIFAR-10, instead of the digits")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=2, help="virtual CPU devices; 0: what is there")
    parser.add_argument("--steps", type=int, default=20, help="in a round, at least")
    parser.add_argument("--call_steps", default="auto", help="as config.call_steps; above 1, images lie on the devices")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="append the results to this .jsonl file")
    return parser.parse_args()


def one_seed(plan, most):
    """A call of one network, as a run of its own makes it; (call, state, what it takes, seeds)."""
    import jax

    from bireal_jax.data import batching
    from bireal_jax.running import parallel
    from bireal_jax.training import calls

    if most > 1:
        held = calls.hold(plan.source)["train"]
        training = calls.Training(plan, 0, most, held)
        inputs = training.inputs(plan.source, plan.config.batch_size, 0, 0, iter([most]), lambda: False)
        return training, parallel.replicate(plan.fresh(plan.initial(0), 0)), next(inputs), 1
    # a step on the first device; with XLA's threads it has the whole machine
    batch = next(batching.train_batches(plan.source, plan.config.batch_size, 0, 0, devices=1))
    step = jax.pmap(
        plan.train_step, parallel.AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0, devices=jax.devices()[:1]
    )
    return step, plan.fresh(plan.initial(0), 0), batch, 1


def many_seeds(plan, most, seeds):
    """A call of all networks, over all devices, as `one_seed`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bireal_jax.running import parallel
    from bireal_jax.training.seeds import Programs

    _, count = parallel.layout(seeds)
    programs = Programs(plan, count)
    variables = jax.tree.map(lambda leaf: np.stack([leaf] * count), plan.initial(0))
    state = parallel.networks(plan.fresh, count)(variables, jnp.arange(count))
    return programs.call, state, next(programs.inputs([0] * count, 0, iter([most]))), seeds


def main():
    """Prints a line each, and the ratio."""
    args = parse()
    keep_freed_memory()
    import jax

    if args.devices:
        jax.config.update("jax_num_cpu_devices", args.devices)
    from bireal_jax.config import default
    from bireal_jax.training import calls
    from bireal_jax.training.step import Plan

    c = default()
    c.update_from_flattened_dict({
        "model.name": args.model, "data.name": "digits", "data.image_size": 8, "batch_size": args.batch,
        "optim.name": "sgd", "model.dtype": args.dtype, "call_steps": args.call_steps,
        **({"data.name": "cifar10", "data.image_size": 32, "data.dir": args.cifar} if args.cifar else {}),
    })  # fmt: skip
    plan = Plan(c)
    most = calls.longest(c)
    rounds = -(-args.steps // most)
    programs = {"one after the other": one_seed(plan, most), "one program": many_seeds(plan, most, args.seeds)}
    times, compiling, states = {name: [] for name in programs}, {}, {}
    for name, (step, state, data, _) in programs.items():
        begin = time.perf_counter()
        for _ in range(3):  # the second call may compile again, for the state lies elsewhere then
            state, _ = step(state, data)
        states[name] = jax.block_until_ready(state)
        compiling[name] = time.perf_counter() - begin
    for _ in range(args.rounds):
        for name, (step, _, data, seeds) in programs.items():
            begin = time.perf_counter()
            for _ in range(rounds):
                states[name], _ = step(states[name], data)
            jax.block_until_ready(states[name])
            times[name].append(1000 * (time.perf_counter() - begin) / (rounds * most) / seeds)
    found: dict[str, Any] = {
        "model": args.model, "seeds": args.seeds, "devices": jax.local_device_count(), "cpu": platform.machine(),
        "device": jax.devices()[0].device_kind, "jax": jax.__version__, "batch": args.batch,
        "dtype": args.dtype, "rounds": args.rounds, "call_steps": most,
    }  # fmt: skip
    print(found)
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        found[name] = {"ms": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)]}
        print(f"{name:<20} {middle:6.2f} ms ({low:.2f} to {high:.2f}), compiled in {compiling[name]:.1f} s")
    first, second = (found[name]["ms"] for name in programs)
    found["speedup"] = round(first / second, 2)
    print(f"speed-up {found['speedup']}")
    if args.out:
        with open(args.out, "a") as file:
            file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    with output.command():
        main()

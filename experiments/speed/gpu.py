"""Training on one GPU: images per second, what a step consists of, memory, and how far off the memory bandwidth is.

    python -m experiments.speed.gpu --images DIR                       batches of 256, 512 and 1024 at 224 px, bfloat16
    python -m experiments.speed.gpu --batches 8 --size 32 --rounds 3 --steps 2 --peers ours torch_default   a CPU try

Bi-Real Net 18, forward, backward, Adam, against the same network in PyTorch, each in a process of its own, in turns of
--steps steps, after which the device is waited for, once, on both sides. `ours`: one batch, already on the device.
`real`: batches of JPEG files below DIR, through the data pipeline with as many worker processes as there are cores.
`torch_MODE`: compiled in that mode, loss included, channels last, bfloat16 autocast, fused Adam, cuDNN's kernels
chosen by timing (cudnn.benchmark); `torch4_MODE`: with images of 4 channels, which cuDNN need not pad as it does 3. The
best of the modes is what ours is compared with.

The parts of a step are separate programs: forward; forward and backward; all. The bandwidth limit is the bytes that the
compiled step reads and writes, as XLA counts them, divided by what a copy of 1 GiB reaches.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bireal_jax import output
from experiments.speed import train

MODES = ["default", "reduce-overhead", "max-autotune"]  # of torch.compile
TORCH = [f"torch_{mode}" for mode in MODES]
PEERS = ["ours", "real", *TORCH, *(name.replace("torch", "torch4") for name in TORCH)]
IMAGES = 256 * 1_281_167  # of 256 epochs of ImageNet
GIB = 2**30


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder with JPEG files, for the peer `real`")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--network", default="bireal18", help="of torch_bireal.ROWS; ours may be any other")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16", help="of our computation")
    parser.add_argument("--steps", type=int, default=10, help="in a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that decode")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="default: all but torch4 in two of the modes")
    parser.add_argument("--out", type=Path, help="append the results to this .jsonl file")
    parser.add_argument(
        "--whole", action="store_true", help="the step alone, without its parts, each a program to compile"
    )
    parser.add_argument("--worker", choices=[*PEERS, "parts"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.peers = arguments.peers or ["ours", *["real"] * bool(arguments.images), *TORCH, "torch4_default"]
    if "real" in arguments.peers and not arguments.images:
        parser.error("the peer real needs --images")
    if arguments.rounds < 2:
        parser.error("--rounds must be 2 or more, for quartiles")
    return arguments


def real_batches(arguments, batch):
    """Endless batches of the JPEG files, on their devices."""
    from absl import flags

    from bireal_jax.data import Source, batching
    from bireal_jax.data.folder import Files
    from bireal_jax.data.images import augment_file
    from bireal_jax.running import parallel
    from experiments.speed.input import REPEATS, SUFFIXES

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])  # Grain's worker processes ask for it
    paths = sorted(str(p) for p in arguments.images.rglob("*") if p.suffix.lower() in SUFFIXES)
    size = arguments.size
    source = Source(
        train=Files([(path, 0) for path in paths] * REPEATS), eval=(), prepare=dict, image_shape=(size, size, 3),
        num_classes=1000, augment=partial(augment_file, size=size),
    )  # fmt: skip
    return parallel.prefetch(batching.train_batches(source, batch, 0, 0, devices=1, workers=arguments.workers))


def turns(arguments, batch):
    """The side of `ours` and `real`: a function that runs one turn to its end."""
    from experiments.speed import steps

    batches = real_batches(arguments, batch) if arguments.worker == "real" else None
    return steps.runner(
        steps.parts(arguments.network, arguments.size, batch, arguments.dtype), batches, arguments.steps
    )


def torch_turns(arguments, batch):
    """The side of PyTorch."""
    peer, mode = arguments.worker.split("_")
    kind, channels = "compiled_nhwc_bf16", 4 if peer == "torch4" else 3
    return train.torch_peer(arguments.network, batch, kind, mode, arguments.size, channels, arguments.steps)


def seconds(function, *args, repeats):
    """The median time of a call, after one that compiles."""
    import jax

    jax.block_until_ready(function(*args))
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def bandwidth(repeats):
    """Bytes per second, read and written, of a copy of 1 GiB; 64 MiB on a CPU."""
    import jax
    import jax.numpy as jnp

    size = GIB if jax.default_backend() != "cpu" else GIB // 16
    return 2 * size / seconds(jax.jit(lambda x: x + 1), jnp.zeros(size // 4), repeats=repeats)


def anatomy(arguments, batch):
    """What a step of ours consists of: a dict of milliseconds, bytes and rates."""
    import jax
    import jax.numpy as jnp

    from experiments.speed import steps

    parts = steps.parts(arguments.network, arguments.size, batch, arguments.dtype)
    model, loss, step, state, data = parts
    images = jnp.asarray(data["image"][0], model.dtype) / 128 - 1
    labels = jnp.asarray(data["label"][0])

    def objective(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return jnp.mean(loss(logits, labels)), updated

    repeats = arguments.rounds
    forward = seconds(jax.jit(objective), state.params, repeats=repeats)
    both = seconds(jax.jit(jax.value_and_grad(objective, has_aux=True)), state.params, repeats=repeats)
    compiled = step.lower(state, data).compile()
    costs, copied = compiled.cost_analysis(), bandwidth(repeats)
    whole = seconds(steps.runner(parts), repeats=repeats)
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "dtype": arguments.dtype,
        "forward_ms": forward * 1e3, "backward_ms": (both - forward) * 1e3, "rest_ms": (whole - both) * 1e3,
        "step_ms": whole * 1e3, "limit_ms": costs.get("bytes accessed", 0) / copied * 1e3,
        "bandwidth_gb_s": copied / 1e9, "peak_gib": memory.get("peak_bytes_in_use", float("nan")) / GIB,
        "device": jax.devices()[0].device_kind, "jax": jax.__version__,
    }  # fmt: skip


def start(name, arguments, batch):
    """A process of one peer."""
    flags = [
        "--worker",
        name,
        "--batches",
        batch,
        "--network",
        arguments.network,
        "--size",
        arguments.size,
        "--dtype",
        arguments.dtype,
    ]
    flags += ["--steps", arguments.steps, "--rounds", arguments.rounds, "--workers", arguments.workers]
    flags += ["--images", arguments.images or ""]
    command = [sys.executable, "-m", "experiments.speed.gpu", *map(str, flags)]
    shared = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the peers live on one device
    return subprocess.Popen(command, env=shared, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def work(arguments):
    """The worker's side."""
    (batch,) = arguments.batches
    if arguments.worker == "parts":
        return print(json.dumps(anatomy(arguments, batch)))
    run = (torch_turns if arguments.worker.startswith("torch") else turns)(arguments, batch)
    for _ in sys.stdin:
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began, flush=True)


def turn(name, worker):
    """Seconds of one turn of a peer; None, with a line, where its process has ended."""
    try:
        return train.step(worker)
    except (ValueError, BrokenPipeError):
        print(f"{name}: not run, its process ended with status {worker.wait()}", flush=True)


def measure(arguments, batch):
    """One batch size: prints its rows, and returns them."""
    workers = {name: start(name, arguments, batch) for name in arguments.peers}
    workers = {name: worker for name, worker in workers.items() if turn(name, worker)}  # compiles
    for name, worker in workers.items():
        turn(name, worker)  # CUDA graphs are recorded in the second one
    rates = {name: [] for name in workers}
    for _ in range(arguments.rounds):
        for name, worker in workers.items():
            if took := turn(name, worker):
                rates[name].append(batch * arguments.steps / took)
    for worker in workers.values():
        worker.communicate()
    rates = {name: values for name, values in rates.items() if len(values) == arguments.rounds}
    for name, values in rates.items():
        low, median, high = statistics.quantiles(values, n=4)
        hours = IMAGES / median / 3600
        ratio = statistics.median(rates["ours"]) / median if "ours" in rates else float("nan")
        print(f"| {batch} | {name} | {median:.1f} | {low:.1f} to {high:.1f} | {ratio:.2f} | {hours:.1f} |", flush=True)
    row = {"network": arguments.network, "batch": batch, "size": arguments.size, "steps": arguments.steps}
    row |= {"images_per_second": rates, "dtype": arguments.dtype}
    return (
        row if arguments.whole else row | json.loads(start("parts", arguments, batch).communicate()[0].splitlines()[-1])
    )


def best(row):
    """(name, images/s) of the fastest PyTorch peer with the images that ours gets; None where none has run."""
    medians = {n: statistics.median(values) for n, values in row["images_per_second"].items() if n in TORCH}
    return max(medians.items(), key=lambda pair: pair[1], default=None)


def main():
    """The command."""
    arguments = parse()
    if arguments.worker:
        return work(arguments)
    print("| batch | peer | images/s | quartiles | ours is x times as fast | 256 epochs, hours |")
    print("|---|---|---|---|---|---|", flush=True)
    rows = [measure(arguments, batch) for batch in arguments.batches]
    for row in rows:
        if "ours" in row["images_per_second"] and (found := best(row)):
            ratio = statistics.median(row["images_per_second"]["ours"]) / found[1]
            print(f"batch {row['batch']}: ours is {ratio:.2f} times as fast as the best PyTorch, {found[0]}")
    if not arguments.whole:
        _show_parts(rows, arguments)
    if arguments.out:
        with open(arguments.out, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _show_parts(rows, arguments):
    shown = ["forward_ms", "backward_ms", "rest_ms", "step_ms", "limit_ms", "bandwidth_gb_s", "peak_gib"]
    print(f"\n{rows[0]['device']}, jax {rows[0]['jax']}, {arguments.size} px, {arguments.dtype}\n")
    print(f"| batch | {' | '.join(shown)} |\n|{'---|' * (len(shown) + 1)}")
    for row in rows:
        print(f"| {row['batch']} | {' | '.join(f'{row[name]:.2f}' for name in shown)} |")


if __name__ == "__main__":
    with output.command():
        sys.exit(main())

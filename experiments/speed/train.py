"""Seconds of one training step of Bi-Real Net 18: ours against plain PyTorch, side by side in one run.

    python -m experiments.speed.train                        224 px, batch 32, and 32 px, batch 128; one thread
    python -m experiments.speed.train --sizes 224 --batch 256 --dtype bfloat16      on a GPU

Needs torch beside the package. Every peer is a process of its own, so that neither allocator nor threads of one disturb
another; they take turns, one step at a time, so that a machine that slows down slows all of them. Medians and quartiles
over the rounds. A step is forward, backward and Adam on a batch already in memory.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

PEERS = ["ours", "eager", "eager_tuned", "compiled", "compiled_tuned", "compiled_bf16"]


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 32], help="224: ImageNet stem; 32: 3x3 stem")
    parser.add_argument("--batch", type=int, help="default: 32 at 224 px, 128 at 32 px")
    parser.add_argument("--dtype", default="float32", help="of our computation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS[:-1], help="tuned: our allocator settings")
    parser.add_argument("--out", type=Path, help="append the results to this .jsonl file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def parts(size, batch, dtype):
    """Our model, its loss, its mapped step, the state and a batch: (model, objective, step, state, data)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bireal_jax import models
    from bireal_jax.binary import losses
    from bireal_jax.data import Source
    from bireal_jax.running import parallel
    from bireal_jax.training import optim
    from bireal_jax.training.step import make_state, make_train_step

    shape = (size, size, 3)
    source = Source(train=(), eval=(), augment=lambda *_: {}, prepare=dict, image_shape=shape, num_classes=1000)
    model = models.build("bireal18" if size > 64 else "bireal18_cifar", 1000, jnp.dtype(dtype))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    tx = optim.make("adam", lambda _: 1e-3, variables["params"])
    loss = partial(losses.cross_entropy, label_smoothing=0.1)
    step = parallel.pmap(make_train_step(model, loss, tx, source), donate=True)
    state = parallel.replicate(make_state(variables, tx, 0, False, jnp.float32))
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (1, batch, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, 1000, (1, batch), dtype=np.int32), "mask": np.ones((1, batch), bool),
    }  # fmt: skip
    return model, loss, step, state, data


def ours(size, batch, dtype):
    """A function that runs one of our steps to its end."""
    import jax

    from bireal_jax.running import parallel

    _, _, step, state, data = parts(size, batch, dtype)
    (data,) = parallel.prefetch([data])

    def run():
        nonlocal state
        state, value = step(state, data)
        jax.block_until_ready((state, value))

    return run


def torch_peer(size, batch, kind):
    """A function that runs one PyTorch step to its end; kind: eager, compiled, compiled_bf16 (NHWC, autocast)."""
    import torch

    from experiments.speed.torch_bireal import BiReal18

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = kind == "compiled_bf16"
    layout = torch.channels_last if half else torch.contiguous_format
    model = BiReal18(1000, size > 64).to(device, memory_format=layout)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=layout)
    labels = torch.randint(0, 1000, (batch,), device=device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    forward = model if kind == "eager" else torch.compile(model)

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            loss = torch.nn.functional.cross_entropy(forward(images), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def measure(size, arguments):
    """Prints and returns the medians of every peer at one size."""
    batch = arguments.batch or (32 if size > 64 else 128)
    workers = {name: start(name, size, batch, arguments) for name in arguments.peers}
    for name, worker in workers.items():
        print(f"{name}: first step {step(worker):.1f} s", flush=True)
        step(worker)
    seconds = {name: [] for name in workers}
    for _ in range(arguments.rounds):
        for name, worker in workers.items():
            seconds[name].append(step(worker))
    peaks = {name: peak_memory(worker) for name, worker in workers.items()}
    for worker in workers.values():
        worker.communicate()
    row = {
        "size": size,
        "batch": batch,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "dtype": arguments.dtype,
        **machine(),
    }
    print(
        f"\n{size} px, batch {batch}, {arguments.threads} thread(s), {row['cpu']}, "
        f"jax {row['jax']}, torch {row['torch']}"
    )
    print("| peer | seconds per step | quartiles | images/s | ours is x times as fast | peak GiB |")
    print("|---|---|---|---|---|---|")
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4)
        row[name] = [round(v, 4) for v in values]
        ratio = median / statistics.median(seconds["ours"]) if "ours" in seconds else float("nan")
        row[f"{name}_peak_gib"] = peaks[name]
        figures = f"{median:.3f} | {low:.3f} to {high:.3f} | {batch / median:.1f} | {ratio:.2f} | {peaks[name]}"
        print(f"| {name} | {figures} |", flush=True)
    if arguments.out:
        with open(arguments.out, "a") as file:
            file.write(json.dumps(row) + "\n")


def machine():
    """Processor and versions."""
    import jax
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        cpu = next(
            (
                line.split(": ")[1]
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            cpu,
        )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "gpu": gpu,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
    }


def start(name, size, batch, arguments):
    """A process that runs a step of one peer for every line it reads, and answers with its seconds."""
    flags = ["--worker", name, "--sizes", str(size), "--batch", str(batch)]
    flags += ["--threads", str(arguments.threads), "--dtype", arguments.dtype]
    command = [sys.executable, "-m", "experiments.speed.train", *flags]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def step(worker):
    """Seconds of one step of a worker."""
    worker.stdin.write("go\n")
    return float(worker.stdout.readline())


def peak_memory(worker):
    """Largest resident memory of a worker so far, in GiB, all of Python and its libraries included; None off Linux."""
    status = Path(f"/proc/{worker.pid}/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 2**20, 2)


def work(arguments):
    """The worker's side."""
    if arguments.threads == 1:  # before either library starts its threads
        one = " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + one
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    name, (size,), batch = arguments.worker, arguments.sizes, arguments.batch
    if name == "ours" or name.endswith("_tuned"):
        from bireal_jax.main import keep_freed_memory  # what the command does on a CPU

        keep_freed_memory()
    if name == "ours":
        run = ours(size, batch, arguments.dtype)
    else:
        import torch

        torch.set_num_threads(arguments.threads)
        run = torch_peer(size, batch, name.removesuffix("_tuned"))
    for _ in sys.stdin:
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began, flush=True)


def main():
    """The command."""
    arguments = parse()
    if arguments.worker:
        return work(arguments)
    for size in arguments.sizes:
        measure(size, arguments)


if __name__ == "__main__":
    sys.exit(main())

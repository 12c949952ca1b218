"""Seconds of a training step: ours against the same network in plain PyTorch, side by side in one run.

    python -m experiments.speed.train --threads 1            every network of NETWORKS, on one thread

On CPUs; for GPUs there is experiments/speed/gpu.py. Needs torch beside the package. Every peer is a process of its own,
so that neither allocator nor threads of one disturb another; they take turns, one step at a time, so that a machine
that slows down slows all of them. The allocator is told to keep freed memory in all of them, as our command does on
CPUs. Medians and quartiles over the rounds. A step is forward, backward and Adam on a batch already in memory.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bireal_jax import output

# compiled: by torch.compile; nhwc: channels last; bf16: autocast
PEERS = ["ours", "eager", "compiled", "compiled_nhwc", "compiled_nhwc_bf16"]
NETWORKS = {"bireal20": (32, 256), "bireal18_cifar": (32, 128), "bireal18": (224, 32)}  # name -> (pixels, batch)


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, help="default: what NETWORKS says")
    parser.add_argument("--dtype", default="float32", help="of our computation")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: as many as there are cores")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS[:-1])
    parser.add_argument("--out", type=Path, help="append the results to this .jsonl file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def torch_peer(network, batch, kind, mode="default", size=0, channels=3, steps=1):
    """A function that runs so many PyTorch steps to their end, the device asked once.

    Args:
      network: a key of NETWORKS.
      batch: images a step.
      kind: one of PEERS.
      mode: of torch.compile.
      size: pixels of an image's side; 0: what NETWORKS says.
      channels: of the images; cuDNN pads 3 to more in every step.
      steps: of a call.
    """
    import torch

    from experiments.speed.torch_bireal import BiReal

    torch.manual_seed(0)
    cuda = torch.cuda.is_available()
    torch.backends.cudnn.benchmark = True  # shapes never change, so the fastest kernels are looked for once
    device, half, size = "cuda" if cuda else "cpu", "bf16" in kind, size or NETWORKS[network][0]
    layout = torch.channels_last if "nhwc" in kind else torch.contiguous_format
    model = BiReal(network, channels=channels).to(device, memory_format=layout)
    images = torch.randn(batch, channels, size, size, device=device).to(memory_format=layout)
    labels = torch.randint(0, 1000, (batch,), device=device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=cuda)

    def objective(images, labels):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            return torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)

    if kind != "eager":
        objective = torch.compile(objective, mode=None if mode == "default" else mode)

    def run():
        for _ in range(steps):
            if cuda:
                torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad(set_to_none=True)
            objective(images, labels).backward()
            optimizer.step()
        if cuda:
            torch.cuda.synchronize()

    return run


def measure(network, arguments):
    """Prints the medians of every peer for one network, and appends the seconds of every round to a file."""
    size, batch = NETWORKS[network]
    batch = arguments.batch or batch
    workers = {name: start(name, network, batch, arguments) for name in arguments.peers}
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
        "network": network,
        "size": size,
        "batch": batch,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "dtype": arguments.dtype,
        **machine(),
    }
    print(
        f"\n{network}, {size} px, batch {batch}, {arguments.threads} thread(s), {row['cpu']}, "
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


def start(name, network, batch, arguments):
    """A process that runs a step of one peer for every line it reads, and answers with its seconds."""
    flags = ["--worker", name, "--networks", network, "--batch", str(batch)]
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


def limit_threads(threads):
    """Leaves this process so many cores, and XLA as many threads. To be called before either library starts its own."""
    if threads == 1:
        one = " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + one
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def work(arguments):
    """The worker's side."""
    limit_threads(arguments.threads)
    name, (network,), batch = arguments.worker, arguments.networks, arguments.batch
    from bireal_jax.main import keep_freed_memory

    keep_freed_memory()
    if name == "ours":
        from experiments.speed import steps

        run = steps.runner(steps.parts(network, NETWORKS[network][0], batch, arguments.dtype))
    else:
        import torch

        torch.set_num_threads(arguments.threads)
        run = torch_peer(network, batch, name)
    for _ in sys.stdin:
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began, flush=True)


def main():
    """The command."""
    arguments = parse()
    if arguments.worker:
        return work(arguments)
    for network in arguments.networks:
        measure(network, arguments)


if __name__ == "__main__":
    with output.command():
        sys.exit(main())

"""Milliseconds of one inference of Bi-Real Net 18 at 224 px on a CPU: our runtime against the engines of others.

    pip install openvino onnxruntime onnx torch
    python -m experiments.speed.inference                    batch 1 and 8, one and two threads, all peers
    python -m experiments.speed.inference --batch 1 --threads 1 --peers ours openvino_binary

The 1-bit network itself: ours, with `precision="float32"` or "int16", and OpenVINO's 1-bit convolutions, with the
real-valued layers in float32, int8 or, where the processor has units for it, bfloat16. The ordinary ResNet of the same
shape (`peers.real_twin`), in float32 and int8: OpenVINO, onnxruntime, compiled PyTorch. Weights are random; the speed
does not depend on them.

Every peer is a process of its own with so many threads on as many cores; they take turns, so that a machine that slows
down slows all of them. A turn is some tenths of a second of inferences, of which the median counts; medians and
quartiles are over the rounds, the ratio is the median of the ratios within a round. Ours reads uint8 images; the others
get them normalized, in float32 NCHW, for free. Every peer's output is compared with the numpy reference.
"""

import argparse
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bireal_jax import output
from bireal_jax.runtime import container
from bireal_jax.shipping import to_onnx, to_openvino
from experiments.speed import peers


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn, at least")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all")
    parser.add_argument("--network", type=Path, help="packed file; default: Bi-Real Net 18 with random weights")
    parser.add_argument("--out", type=Path, help="append the results to this .jsonl file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


@dataclass
class Case:
    """What a peer has to run: `images` are uint8 [n, h, w, c], `floats` the same normalized, [n, c, h, w]."""

    path: Path
    program: container.Program
    images: np.ndarray
    floats: np.ndarray
    threads: int


def ours(case, precision):
    """Our runtime, from uint8 images."""
    from bireal_jax.runtime import load

    return partial(load(case.path, threads=case.threads, precision=precision), case.images)


def openvino(case, kind, precision="f32"):
    """OpenVINO: "binary", the 1-bit network; "mixed", its real-valued layers in int8; its twin, "real" or "int8"."""
    ov = importlib.import_module("openvino")
    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotImplementedError("this processor has no bfloat16 units")
    if kind == "int8":
        model = core.read_model(int8(case).SerializeToString())
    elif kind == "real":
        model = to_openvino.model(peers.real_twin(case.program), len(case.images), pixels=False)
    else:
        limits = {j: (a.min(), a.max()) for j, a in enumerate(case.program.run(case.images))}
        model = to_openvino.model(case.program, len(case.images), False, limits if kind == "mixed" else None)
    settings = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": case.threads,
        "ENABLE_CPU_PINNING": False, "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(case.floats))

    def run():
        request.infer()
        return request.get_output_tensor().data

    return run


def real(case):
    """The real-valued twin as an ONNX model."""
    return to_onnx.model(peers.real_twin(case.program), len(case.images), pixels=False)


def int8(case):
    """The real-valued twin in int8, the same ONNX model for every engine."""
    return peers.int8(real(case), case.floats)


def onnxruntime(case, kind):
    """onnxruntime: the real-valued twin, in float32 or int8."""
    ort = importlib.import_module("onnxruntime")
    model = int8(case) if kind == "int8" else real(case)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": case.floats})[0]


def compiled_torch(case):
    """Compiled PyTorch with frozen weights, without which it takes up to 1.7 times as long: the real-valued twin."""
    import torch
    import torch._inductor.config

    torch.set_num_threads(case.threads)
    torch._inductor.config.freezing = True
    network, images = torch.compile(peers.torch_module(peers.real_twin(case.program))), torch.from_numpy(case.floats)

    def run():
        with torch.inference_mode():
            return network(images).numpy()

    return run


# name -> function Case -> function that gives the logits
PEERS: dict[str, Callable[[Case], Callable[[], np.ndarray]]] = {
    "ours": partial(ours, precision="float32"), "ours_int16": partial(ours, precision="int16"),
    "openvino_binary": partial(openvino, kind="binary"),
    "openvino_binary_int8": partial(openvino, kind="mixed"),
    "openvino_binary_bf16": partial(openvino, kind="binary", precision="bf16"),
    "openvino_int8": partial(openvino, kind="int8"), "onnxruntime_int8": partial(onnxruntime, kind="int8"),
    "openvino_bf16": partial(openvino, kind="real", precision="bf16"),
    "openvino_float32": partial(openvino, kind="real"), "onnxruntime_float32": partial(onnxruntime, kind="float32"),
    "torch_float32": compiled_torch,
}  # fmt: skip


def work(arguments):
    """The worker's side: builds a peer, says how far off it is, then runs a turn for every line it reads."""
    name, (batch,), (threads,) = arguments.worker, arguments.batch, arguments.threads
    if hasattr(os, "sched_setaffinity"):  # before any library starts its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    logging.disable(logging.WARNING)  # onnxruntime's advice to simplify the model first; it is simple
    program = container.read(arguments.network)
    images = np.random.default_rng(0).integers(0, 256, (batch, *program.shape(0)), dtype=np.uint8)
    floats = np.ascontiguousarray(program.normalize(images).transpose(0, 3, 1, 2))
    try:
        run = PEERS[name](Case(arguments.network, program, images, floats, threads))
    except (ImportError, NotImplementedError) as error:
        return print(json.dumps({"skipped": str(error).splitlines()[0]}), flush=True)
    one_bit = name.startswith(("ours", "openvino_binary"))
    logits = (program if one_bit else peers.real_twin(program)).run(images)[-1].reshape(batch, -1)
    difference = np.abs(run() - logits).max() / np.abs(logits).max()
    print(json.dumps({"difference": float(difference)}), flush=True)
    for _ in sys.stdin:
        print(turn(run, arguments.seconds), flush=True)


def turn(run, seconds):
    """Median milliseconds of one call, over so many seconds; two calls before warm up the caches."""
    run(), run()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def start(name, batch, threads, arguments):
    """A worker, ready to take turns, and its difference from the reference; None where its library is missing."""
    flags = ["--worker", name, "--batch", str(batch), "--threads", str(threads), "--seconds", str(arguments.seconds)]
    worker = subprocess.Popen(
        [sys.executable, "-m", "experiments.speed.inference", *flags, "--network", str(arguments.network)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    answer = json.loads(read(worker) or '{"skipped": "it did not start, see above"}')
    if "skipped" in answer:
        print(f"{name} is left out: {answer['skipped']}", flush=True)
        worker.communicate()
        return None
    return worker, answer["difference"]


def read(worker):
    """The next line of a worker's answer; empty if it died."""
    return worker.stdout.readline()


def take_turn(worker):
    """Milliseconds of one turn of a worker."""
    worker.stdin.write("go\n")
    return float(read(worker))


def measure(batch, threads, arguments):
    """Prints the medians of every peer at one batch size and number of threads; appends all rounds to the file."""
    started = {name: start(name, batch, threads, arguments) for name in arguments.peers}
    workers = {name: found for name, found in started.items() if found}
    times = {name: [] for name in workers}
    for _ in range(arguments.rounds):
        for name, (worker, _) in workers.items():
            times[name].append(take_turn(worker))
            time.sleep(0.05)  # some engines' threads spin for a while after the last call
    for worker, _ in workers.values():
        worker.communicate()
    model = container.read(arguments.network).spec["model"]
    row = {
        "model": model, "batch": batch, "threads": threads, "rounds": arguments.rounds, "seconds": arguments.seconds,
        **machine(),
    }  # fmt: skip
    print(f"\n{model}, batch {batch}, {threads} thread(s) on {row['cpu']}; milliseconds")
    print("| peer | median | quartiles | best | images/s | ours is x times as fast | difference from the reference |")
    print("|---|---|---|---|---|---|---|")
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        ratios = [v / o for v, o in zip(values, times.get("ours", []), strict=False)]
        ratio, difference = f"{statistics.median(ratios):.2f}" if ratios else "", workers[name][1]
        spread = f"{low:.2f} to {high:.2f} | {min(values):.2f}"
        figures = f"{median:.2f} | {spread} | {1e3 * batch / median:.1f} | {ratio} | {difference:.1e}"
        print(f"| {name} | {figures} |", flush=True)
        row[name] = [round(v, 3) for v in values]
        row[f"{name}_difference"] = difference
    if arguments.out:
        with open(arguments.out, "a") as file:
            file.write(json.dumps(row) + "\n")


def machine():
    """Processor and versions."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = next(iter(names), cpu)
    installed = {found.name for found in importlib.metadata.distributions()}
    versions = {p: importlib.metadata.version(p) for p in ("openvino", "onnxruntime", "torch") if p in installed}
    return {"cpu": cpu, "python": platform.python_version(), **versions}


def make_network(path):
    """Writes a packed Bi-Real Net 18 with random weights; the statistics of batch norm are those of its maps."""
    import jax
    import jax.numpy as jnp

    from bireal_jax import models
    from bireal_jax.data.source import Source
    from bireal_jax.shipping import export

    model, shape, rng = models.build("bireal18", num_classes=1000), (224, 224, 3), np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def draw(path, leaf):
        if "bn" not in jax.tree_util.keystr(path):
            return leaf
        low, high = {"scale": (0.5, 1.5), "bias": (-0.5, 0.5)}[path[-1].key]
        return jnp.asarray(rng.uniform(low, high, leaf.shape), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, variables["params"])
    statistics_0 = variables["batch_stats"]
    _, seen = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(
        {"params": params, "batch_stats": statistics_0}, images
    )
    share = 0.1  # of a batch in the running statistics
    stats = jax.tree.map(lambda old, new: old + (new - old) / share, statistics_0, seen["batch_stats"])
    source = Source(train=(), eval=(), prepare=dict, image_shape=shape, num_classes=1000)
    export.write(export.program("bireal18", model, {"params": params, "batch_stats": stats}, source), path)


def main():
    """The command."""
    arguments = parse()
    if arguments.worker == "make_network":  # in a process of its own: here JAX would leave threads behind
        return make_network(arguments.network)
    if arguments.worker:
        return work(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.network:
            arguments.network = Path(folder, "bireal18.safetensors")
            command = [sys.executable, "-m", "experiments.speed.inference", "--worker", "make_network"]
            subprocess.run([*command, "--network", str(arguments.network)], check=True)
        for batch in arguments.batch:
            for threads in arguments.threads:
                measure(batch, threads, arguments)


if __name__ == "__main__":
    with output.command():
        sys.exit(main())

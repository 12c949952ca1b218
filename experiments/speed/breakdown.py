"""Where the milliseconds of a training step go on a GPU, from the profiler's trace.

    python -m experiments.speed.breakdown TRACE.json.gz           of a trace that is there, of --config.profile_steps
    python -m experiments.speed.breakdown --batch 256 --size 224  makes one of Bi-Real Net 18, and keeps it in --out

A kernel is a convolution where the operation that XLA notes beside it is one, and that says of which layer. Fused
kernels have no such note, so their place in the order counts: what lies next to the first convolution, forward before
the second one and backward behind the last gradient, is the stem and its pooling, as is what a pooling alone needs (a
window, a scatter, a fill). The rest is normalization, sign and shortcut. Kernels below 10 microseconds are small ones
wherever they lie: transposed weights, optimizer, sums.
"""

import argparse
import collections
import contextlib
import gzip
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from bireal_jax import output

SMALL = 10.0  # microseconds
PARTS = ("convolutions", "stem and pool", "normalization", "small kernels")
CONVOLUTION = re.compile(r"conv(?!ert)|gemm|dot")  # in the name of XLA's instruction
CUDNN = re.compile(
    r"fprop|dgrad|wgrad|implicit_?gemm", re.IGNORECASE
)  # in the name of a kernel that is one, noted or not
POOL = re.compile(r"reduce_window|scatter|broadcast")  # in the name of a fused kernel


def kernels(path: Path) -> list[dict[str, Any]]:
    """The kernels of the first GPU of a trace, in the order in which they ran; [] where there was none."""
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    devices = sorted(pid for pid, name in names.items() if name.startswith("/device:GPU"))
    found = [e for e in events if e.get("ph") == "X" and devices and e["pid"] == devices[0]]
    return sorted(found, key=lambda e: e["ts"])


def layer(kernel: dict[str, Any]) -> str:
    """Of a convolution "stem" or "other"; "" for other kernels, and for those in a CUDA graph, which bear no note."""
    arguments = kernel.get("args", {})
    operation = f"{arguments.get('name', '')} {arguments.get('tf_op', '')}"
    if not CONVOLUTION.search(arguments.get("hlo_op", "")) and "conv_general_dilated" not in operation:
        return ""
    return "stem" if "/stem" in operation else "other"


def breakdown(found: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Milliseconds a step of each of PARTS and of all kernels, "busy", and how many kernels a step has, "kernels".

    Args:
      found: of `kernels`.
      steps: how many were traced.
    """
    layers = [layer(kernel) for kernel in found]
    nearest: list[set[str]] = [set() for _ in found]  # the convolutions before and after each kernel
    for order in (range(len(found)), reversed(range(len(found)))):
        last = "stem"  # a trace begins and ends with the stem
        for i in order:
            last = layers[i] or last
            nearest[i].add(last)
    total: dict[str, float] = collections.defaultdict(float)
    for kernel, its, around in zip(found, layers, nearest, strict=True):
        if its:
            part = "stem and pool" if its == "stem" else "convolutions"
        elif kernel["dur"] < SMALL:
            part = "small kernels"
        else:
            part = "stem and pool" if "stem" in around or POOL.search(kernel["name"]) else "normalization"
        total[part] += kernel["dur"] / 1e3 / steps
    named = {part: round(total[part], 3) for part in PARTS}
    return named | {"busy": round(sum(total.values()), 3), "kernels": round(len(found) / steps, 1)}


def trace(network: str, size: int, batch: int, dtype: str, steps: int, out: Path) -> Path:
    """Traces so many steps, after as many that compile; the file below `out`."""
    import jax

    from experiments.speed import steps as steps_lib

    run = steps_lib.runner(steps_lib.parts(network, size, batch, dtype), steps=steps)
    run()
    with jax.profiler.trace(str(out)):
        run()
    return max(out.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trace", nargs="?", type=Path, help="a .trace.json.gz; none: make one")
    parser.add_argument("--steps", type=int, default=3, help="that are, or shall be, traced")
    parser.add_argument("--network", default="bireal18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, help="folder for the trace; default: a temporary one")
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        path = args.trace
        if path is None:
            # within a CUDA graph a convolution bears no note of its layer
            os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="
            out = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path = trace(args.network, args.size, args.batch, args.dtype, args.steps, out)
        found = kernels(path)
    if not found:
        print("no kernel of a GPU is in the trace")
        return 1
    if any(CUDNN.search(kernel["name"]) and not layer(kernel) for kernel in found):
        print("convolutions lie in CUDA graphs, where nothing says of which layer: trace without graphs, as this does")
        return 1
    print(json.dumps(breakdown(found, args.steps)))
    return 0


if __name__ == "__main__":
    with output.command():
        sys.exit(main())

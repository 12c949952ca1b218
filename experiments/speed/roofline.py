"""How far each layer of a packed network is from what one core of this CPU can do.

    python -m experiments.speed.roofline NET.safetensors [--precision int16]

A small program (roofline.cc, compiled with -march=native) measures the peak rates in registers; the network is run
on one thread in turns with it. "xor + popcount" is the rate of the usual binary kernel on this CPU; ours counts pairs
of words by full adders, or looks up where the CPU cannot count bits in vectors. Real-valued layers are counted as
direct convolutions: Winograd's algorithm halves the products of the first one, so its share can exceed 100 %.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from bireal_jax import output, runtime
from bireal_jax.runtime import container

SOURCE = Path(__file__).with_name("roofline.cc")


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("net", type=Path)
    parser.add_argument("--precision", default="float32", choices=runtime.PRECISIONS)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    net, program = runtime.load(arguments.net, precision=arguments.precision), container.read(arguments.net)
    image = np.random.default_rng(0).integers(0, 256, net.image_shape).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "roofline"
        subprocess.run(["g++", "-O3", "-march=native", "-std=c++17", SOURCE, "-o", binary], check=True)
        peaks, profiles = [], []
        for _ in range(arguments.rounds):
            lines = subprocess.run([binary], check=True, capture_output=True, text=True).stdout.splitlines()
            peaks.append({name: float(value) for name, value in map(str.split, lines)})
            profiles.append(net.profile(image))
    peak = {name: statistics.median(p[name] for p in peaks) for name in peaks[0]}
    print("peak of one core, G op/s:", ", ".join(f"{name} {value:.0f}" for name, value in peak.items()), "\n")
    ours, whole = peak.get("full_adder_pairs", peak["look_up_pairs"]), peak.get("int16_vnni", peak["int16"])
    popcount = max(value for name, value in peak.items() if name.startswith("xor"))
    print(f"{'layer':34} {'shape':>22} {'us':>8} {'G op/s':>8}  share of the peak of its kind")
    total = {"took": 0.0, "ours": 0.0, "popcount": 0.0}
    for rows in zip(*profiles, strict=True):
        op, seconds = rows[0][0], statistics.median(s for _, s in rows)
        total["took"] += seconds
        if op["op"] not in ("conv", "binary_conv"):
            continue
        weight = program.arrays(program.spec["ops"].index(op))["weight"]
        operations = 2 * weight.size * op["shape"][0] * op["shape"][1]
        narrow = arguments.precision == "int16" and op["shape"][:2] != [1, 1]
        own = ours if op["op"] == "binary_conv" else whole if narrow else peak["float32"]
        total["ours"] += operations / own * 1e-9
        total["popcount"] += operations / (popcount if op["op"] == "binary_conv" else own) * 1e-9
        rate = operations / seconds * 1e-9
        shape = "x".join(map(str, op["shape"]))
        print(f"{op['path'][:34]:34} {shape:>22} {seconds * 1e6:8.0f} {rate:8.0f}  {rate / own:.0%}")
    print(f"\nwhole network {total['took'] * 1e3:.2f} ms, all operations counted")
    for name, text in (
        ("popcount", "peak of xor + popcount and of real-valued units"),
        ("ours", "peak of our own kernels"),
    ):
        print(f"{total[name] * 1e3:.2f} ms at the {text}: {total['took'] / total[name]:.2f} times that")


if __name__ == "__main__":
    with output.command():
        main()

"""Milliseconds of one image of Bi-Real Net 18 at 224 px in WebAssembly, in Node, and of ResNet-18 in onnxruntime-web.

    npm install --prefix DIR onnxruntime-web
    python -m experiments.speed.wasm --modules DIR/node_modules --out experiments/speed/wasm.jsonl

One thread, random weights, peers in turn in one process. A turn is three runs, of which the median counts; medians and
quartiles are over the rounds, the ratio is the median of the ratios within a round. Ours reads bytes, the other floats.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bireal_jax import output
from bireal_jax.runtime import container
from bireal_jax.shipping import to_onnx
from experiments.speed import inference, peers

HERE = Path(__file__).parent


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--modules", type=Path, help="node_modules with onnxruntime-web; without it ours alone")
    parser.add_argument("--network", type=Path, help="packed file of 224 px; default: made anew")
    parser.add_argument("--out", type=Path, help="append the results to this .jsonl file")
    return parser.parse_args()


def main():
    """The command."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        path, twin = arguments.network or Path(folder, "bireal18.safetensors"), Path(folder, "twin.onnx")
        if not arguments.network:
            command = [sys.executable, "-m", "experiments.speed.inference", "--worker", "make_network"]
            subprocess.run([*command, "--network", str(path)], check=True)
        if arguments.modules:
            model = to_onnx.model(peers.real_twin(container.read(path)), 1, pixels=False)
            twin.write_bytes(model.SerializeToString())
        command = ["node", HERE / "wasm.mjs", str(arguments.rounds), path, twin]
        if arguments.modules:
            command.append(arguments.modules.resolve())
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    ours = found["times"]["ours, float32"]
    print("| peer | median | quartiles | best | times as long as ours |\n|---|---|---|---|---|")
    for name, values in found["times"].items():
        low, median, high = statistics.quantiles(values, n=4)
        ratio = statistics.median(v / o for v, o in zip(values, ours, strict=True))
        print(f"| {name} | {median:.1f} | {low:.1f} to {high:.1f} | {min(values):.1f} | {ratio:.2f} |")
    if arguments.out:
        row = {"cpu": inference.machine()["cpu"], **found["versions"]}
        row |= {name: [round(v, 2) for v in values] for name, values in found["times"].items()}
        with open(arguments.out, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    with output.command():
        main()

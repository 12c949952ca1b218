"""Milliseconds of one image of Bi-Real Net 18 at 224 px in WebAssembly, and of ResNet-18 in onnxruntime-web.

    npm install --prefix DIR onnxruntime-web
    python -m experiments.speed.wasm --modules DIR/node_modules --out experiments/speed/wasm.jsonl       in Node
    pip install playwright
    python -m experiments.speed.wasm --modules DIR/node_modules --browser /usr/bin/chromium              in a browser

One thread, random weights, peers in turn in one process. A turn is three runs, of which the median counts; medians and
quartiles are over the rounds, the ratio is the median of the ratios within a round. Ours reads bytes, the other floats.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

from bireal_jax import output
from bireal_jax.runtime import container
from bireal_jax.shipping import to_onnx
from experiments.speed import inference, peers

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
RUN = """async ([rounds, ours]) => {
  const bytes = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());
  const { times } = await import("/experiments/speed/wasm.mjs");
  const ort = ours ? null : await import("/modules/onnxruntime-web/dist/ort.wasm.min.mjs");
  return times(rounds, await bytes("/network"), ort && (await bytes("/twin")), ort);
}"""


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--modules", type=Path, help="node_modules with onnxruntime-web; without it ours alone")
    parser.add_argument("--browser", type=Path, help="path of a Chromium, which runs without a window; default: Node")
    parser.add_argument("--network", type=Path, help="packed file of 224 px; default: made anew")
    parser.add_argument("--out", type=Path, help="append the results to this .jsonl file")
    return parser.parse_args()


def in_node(rounds, path, twin, modules):
    """What wasm.mjs prints."""
    command = ["node", HERE / "wasm.mjs", str(rounds), path, twin, *([modules] if modules else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def in_browser(chromium, rounds, path, twin, modules):
    """The same of a page. Files are handed to it by name: nothing else is on its network.

    A page that is isolated has a clock of 5 microseconds, another one of 100.
    """

    def answer(route):
        name = urlparse(route.request.url).path
        file = {"/": ROOT / "docs/browser.md", "/network": path, "/twin": twin}.get(name)
        if not file:
            file = modules / name.removeprefix("/modules/") if name.startswith("/modules/") else ROOT / name[1:]
        kind = {".mjs": "text/javascript", ".wasm": "application/wasm"}.get(file.suffix, "text/plain")
        headers = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
        route.fulfill(body=file.read_bytes(), content_type=kind, headers=headers)

    with importlib.import_module("playwright.sync_api").sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        page.route("**/*", answer)
        page.goto("http://localhost/")
        return {"versions": {"chromium": browser.version}, "times": page.evaluate(RUN, [rounds, modules is None])}


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
        modules = arguments.modules and arguments.modules.resolve()
        run = partial(in_browser, arguments.browser) if arguments.browser else in_node
        found = run(arguments.rounds, path, twin, modules)
    if modules:
        package = json.loads((modules / "onnxruntime-web" / "package.json").read_text())
        found["versions"]["onnxruntime-web"] = package["version"]
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

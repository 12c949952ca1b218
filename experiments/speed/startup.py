"""Seconds from the command to the end of the first training step, without and with a warm compilation cache.

    python -m experiments.speed.startup                       digits, and r18 on 64 generated JPEG files, batch 8
    python -m experiments.speed.startup --recipes digits --rounds 5 --out FILE.jsonl
    python -m experiments.speed.startup --recipes digits cifar10_r20 --cifar cifar10.npz --call_steps 1 10 100

Every start is a process of its own that runs bireal_jax.main and is ended after the first step. Cold: an empty cache
directory. Warm: the one that the cold start filled. Files of Python and libraries are in the system's cache either way.
Runs are of one step, so that a call of up to 100 has one, too.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from bireal_jax import output

PARTS = ["imports", "data and shapes", "initial variables", "first step"]
RECIPES = {"digits": [], "r18": ["--config.data.name=folder", "--config.batch_size=8"], "cifar10_r20": []}


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["digits", "r18"])
    parser.add_argument("--cifar", help="config.data.dir of CIFAR-10")
    parser.add_argument("--call_steps", nargs="+", default=["auto"], help="as config.call_steps, each in turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the results to this .jsonl file")
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(began, argv):
    """The command, in this process: prints when each part was over, in seconds since `began`, and ends."""
    from bireal_jax import main

    main.cache_compilations()
    main.keep_freed_memory()
    import jax

    from bireal_jax.running import health
    from bireal_jax.training import train

    marks = {"imports": time.time() - began}

    def marked(name, function):
        def call(*args):
            result = jax.block_until_ready(function(*args))
            marks[name] = time.time() - began
            return result

        return call

    def leave(_self, _steps, _inputs, report):
        jax.block_until_ready(report)
        print(json.dumps(marks | {"first step": time.time() - began}), flush=True)
        os._exit(0)

    stage = train.Stage
    with (
        mock.patch.object(stage, "__init__", marked("data and shapes", stage.__init__)),
        mock.patch.object(stage, "_initial", marked("initial variables", stage._initial)),
        mock.patch.object(health.Reports, "add", leave),
    ):
        main.main(["main", *argv])


def photos(directory):
    """A folder data set of JPEG files of noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(32):
            place = Path(directory) / split / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (256, 341, 3), dtype=np.uint8)).save(place / f"{i}.jpg")


def start(recipe, call_steps, data, cache):
    """Seconds of each part of one start."""
    with tempfile.TemporaryDirectory() as workdir:
        argv = [f"--config=configs/{recipe}.py", f"--workdir={workdir}", "--config.total_steps=1", *RECIPES[recipe]]
        argv += [f"--config.call_steps={call_steps}"] if call_steps != "auto" else []
        argv += [f"--config.data.dir={data[recipe]}"] if recipe in data else []
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        command = [sys.executable, "-m", "experiments.speed.startup", "--worker", str(time.time()), *argv]
        found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if found.returncode:
        sys.exit(found.stderr)
    marks = json.loads(found.stdout.splitlines()[-1])
    times = [0.0, *(marks[part] for part in PARTS)]
    return [round(b - a, 3) for a, b in itertools.pairwise(times)]


def main():
    """The command."""
    arguments = parse()
    if arguments.worker:
        return work(float(arguments.worker[0]), arguments.worker[1:])
    print(f"| start | {' | '.join(PARTS)} | all |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        if "r18" in arguments.recipes:
            photos(folder)
        data = {"r18": folder, "cifar10_r20": arguments.cifar}
        for recipe, call_steps in itertools.product(arguments.recipes, arguments.call_steps):
            rows = measure(recipe, call_steps, data, arguments.rounds)
            for name, values in rows.items():
                medians = [statistics.median(column) for column in zip(*values, strict=True)]
                total = statistics.median(sum(v) for v in values)
                what = recipe if call_steps == "auto" else f"{recipe}, call_steps={call_steps}"
                print(f"| {what}, {name} | {' | '.join(f'{m:.1f}' for m in medians)} | {total:.1f} |", flush=True)
            if arguments.out:
                with open(arguments.out, "a") as file:
                    file.write(json.dumps({"recipe": recipe, "call_steps": call_steps, "parts": PARTS, **rows}) + "\n")


def measure(recipe, call_steps, data, rounds):
    """{"cold", "warm"}: the parts of every start."""
    rows = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in rows:
                rows[name].append(start(recipe, call_steps, data, cache))
    return rows


if __name__ == "__main__":
    with output.command():
        sys.exit(main())

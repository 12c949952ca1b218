"""1-bit against real-valued depth estimation on the rendered rooms: `python -m experiments.depth.run OUT`.

One line a run, and of the predictor that says the mean depth of the training pixels everywhere, in OUT/rows.jsonl.
What is there is not run again.
"""

import argparse
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from bireal_jax import build, output
from bireal_jax.binary import losses
from bireal_jax.main import parse
from bireal_jax.running import metrics
from bireal_jax.training import train
from experiments.depth import render

STEPS, SEEDS = 150, (0, 1, 2)
ROWS = {
    "1-bit": (),
    "real-valued": ("--config.model.act=relu", "--config.model.weight=real", "--config.model.latent_init=he"),
}


def constant(source) -> dict[str, float]:
    """The metrics of the predictor that says the mean depth of the training pixels everywhere."""
    maps = [source.prepare(source.train[i])["label"] for i in range(len(source.train))]
    mean = np.mean(np.concatenate([m[m > 0] for m in maps]))
    labels = jnp.asarray(np.stack([source.prepare(source.eval[i])["label"] for i in range(len(source.eval))]))
    said = jnp.full((*labels.shape, 1), mean, jnp.float32)
    task = metrics.task(source.depth_range)
    return task.means(task.sums(said, labels, losses.l1(said, labels), jnp.ones(len(labels), bool)))


def main(out: Path) -> None:
    """All runs, in one order: both rows of seed 0, then of seed 1, ..."""
    if not (out / "rooms").is_dir():
        render.write(out / "rooms")
    table = out / "rows.jsonl"
    done = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []

    def add(scores, **key):
        with table.open("a") as file:
            print(json.dumps(key | {name: round(float(value), 4) for name, value in scores.items()}), file=file)

    base = ["--config=configs/depth_tiny.py", f"--config.data.dir={out / 'rooms'}", f"--config.total_steps={STEPS}"]
    if not done:
        add(constant(build.source(parse(["run", *base])[0])), network="mean")
    for seed in SEEDS:
        for name, fields in ROWS.items():
            if not any((row["network"], row.get("seed")) == (name, seed) for row in done):
                workdir = out / f"{name}_{seed}"
                c = parse(["run", *base, *fields, f"--config.seed={seed}"])[0]
                add(train.run(c, workdir), network=name, seed=seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.depth.run", description=__doc__.split(":")[0])
    parser.add_argument("out", type=Path, help="folder of the pictures and scores")
    given = parser.parse_args()
    with output.command():
        main(given.out)

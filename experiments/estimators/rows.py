"""The rows of an ablation, one a run, in a file to which several processes append."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from importlib.metadata import version

HISTOGRAM = (-0.5, 0.5, 100)  # of latent weights: lowest, highest, bins; what lies beyond counts in the outermost


def make(cell, seeds, variables, records, epoch_steps, seconds):
    """One row a seed, from what `seeds.train` returned.

    Args:
      cell: a dataclass, of the grid.
      seeds: of the networks.
      variables, records: of `seeds.train`.
      epoch_steps: steps between two records of the flips; the last one, if it is shorter, is left out.
      seconds: for all seeds together.

    Returns:
      Dicts: cell, seed, top1, best_top1, loss and train_loss (None if not finite), curve (top-1 of every evaluation),
      flipped (share of binary weights, in every whole epoch), latents (a histogram), binary_lr (1), seconds.
    """
    import numpy as np

    from bireal_jax.training import optim

    latents = optim.latents(variables["params"])
    low, high, bins = HISTOGRAM

    def curve(name, split):  # of seed number `place`
        found = [r for r in records if r["split"] == split and name in r]
        return [round(float(r[name][place]), 6) for r in found if name != "flipped" or r["step"] % epoch_steps == 0]

    rows = []
    for place, seed in enumerate(seeds):
        weights = np.clip(np.concatenate([w[place].ravel() for w in latents]), low, high)
        top1, losses = curve("top1", "eval"), [curve("loss", split)[-1] for split in ("eval", "train")]
        loss, train_loss = (value if math.isfinite(value) else None for value in losses)
        rows.append({
            "cell": dataclasses.asdict(cell), "seed": seed, "top1": top1[-1], "best_top1": max(top1), "loss": loss,
            "train_loss": train_loss, "curve": top1, "flipped": curve("flipped", "train"),
            "latents": np.histogram(weights[np.isfinite(weights)], bins, (low, high))[0].tolist(),
            "binary_lr": 1.0, "seconds": round(seconds / len(seeds), 2),
        })  # fmt: skip
    return rows


def read(path):
    """The rows that are there: of a run that was done twice the last one, and no line that was cut off."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return list({(*row["cell"].values(), row["seed"]): row for row in rows}.values())


def append(path, rows):
    """Adds rows in one write, so that a kill leaves whole lines but for the last."""
    with lock(path.with_name("lock")), open(path, "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":  # a line cut off by a kill
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def rules_digest(act, weight):
    """A digest of what the two rules do, so that rows of an estimator that was changed since are not taken for its own.

    Raises:
      BadInput: no such rule.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bireal_jax.binary import binarize

    x, w = jnp.linspace(-2.0, 2.0, 41), 0.7 * jnp.sin(jnp.arange(72.0)).reshape(3, 3, 2, 4)
    activation, rule, values = binarize.activation(act), binarize.weight(weight), []
    for progress in (0.0, 0.5, 1.0):
        values.append(jax.grad(lambda x, p=progress: activation(x, p).sum())(x))
        (b, alpha), back = jax.vjp(lambda w, p=progress: rule(w, p), w)
        assert alpha is not None, "real-valued weights are no rule of the grid"
        values += [b, alpha, *back((jnp.cos(w), jnp.ones_like(alpha)))]
    text = " ".join(f"{float(v):.3g}" for v in np.concatenate([np.ravel(v) for v in values]) + 0.0)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextlib.contextmanager
def lock(path):
    """Holds a lock file, waiting for whoever has it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def note_start(path):
    """Adds a line on how the grid was started: command, versions, machine, commit."""
    import jax

    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    line = {
        "command": " ".join(sys.argv[1:]), "commit": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}", "cores": os.cpu_count(),
        **{name: version(name) for name in ("jax", "flax", "optax", "numpy")},
    }  # fmt: skip
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")

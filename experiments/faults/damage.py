"""Damages checkpoint files at random, restores, and counts what was noticed: python -m experiments.faults.damage"""

import collections
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from bireal_jax.checkpoint import Checkpoints
from bireal_jax.errors import BadInput

KINDS = ("bit flip", "truncation", "4 KiB zeroed", "missing file", "swapped file")


def trees(step):
    """A state of a few arrays: 70 kB."""
    rng = np.random.default_rng(step)
    rest = {"step": np.int32(step), "moments": (rng.normal(size=(60, 50)),), "signs": [np.arange(9, dtype=np.uint8)]}
    return {"variables": {"params": {"w": rng.normal(size=(200, 50)).astype(np.float32)}}, "rest": rest}


def damage(kind, step, rng):
    """Harms one file of the checkpoint below `step`; a swapped one comes from the checkpoint before."""
    files = [path for path in step.rglob("*") if path.is_file() and path.stat().st_size]
    path = rng.choice(sorted(files))
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if kind == "bit flip":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "truncation":
        del content[place:]
    elif kind == "4 KiB zeroed":
        content[place : place + 4096] = bytes(len(content[place : place + 4096]))
    elif kind == "swapped file":
        other = rng.choice(sorted(p for p in (step.parent / "1").rglob("*") if p.is_file()))
        content = other.read_bytes()
    path.write_bytes(content)
    if kind == "missing file":
        path.unlink()


def trial(kind, whole, rng):
    """One of: the step before, harmless (restored right), an error, silently wrong."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(whole, Path(place) / "c")
        damage(kind, Path(place) / "c" / "2", rng)
        try:
            with Checkpoints(Path(place) / "c") as checkpoints:
                found = checkpoints.restore_latest(trees(0))
        except BadInput:
            return "an error"
        step, restored = found or (0, None)
        wanted = trees(step)
        same = restored and all(np.array_equal(a, b) for a, b in zip(_leaves(restored), _leaves(wanted), strict=True))
        return ("harmless" if step == 2 else "the step before") if same else "silently wrong"


def _leaves(tree):
    rest = tree["rest"]
    return [tree["variables"]["params"]["w"], rest["step"], rest["moments"][0], rest["signs"][0]]


def main(trials):
    """Prints a table of so many trials of each kind."""
    logging.disable(logging.WARNING)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        with Checkpoints(Path(place) / "c") as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, trees(step), {"top1": float(step)})
                checkpoints.wait()
        outcomes = ("the step before", "harmless", "an error", "silently wrong")
        print("| damage | trials |", " | ".join(outcomes), "|\n|---|" + "---|" * 5)
        for kind in KINDS:
            counts = collections.Counter(trial(kind, Path(place) / "c", rng) for _ in range(trials))
            print(f"| {kind} | {trials} |", " | ".join(str(counts[o]) for o in outcomes), "|", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)

"""One file of a checkpoint is damaged at random, and the checkpoint is restored as a training run does it."""

import collections
import logging
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np

from bireal_jax.errors import BadInput
from bireal_jax.running.checkpoint import Checkpoints
from experiments.faults.bench import Bench

KINDS = ("bit flip", "truncation", "4 KiB zeroed", "missing file", "swapped file")
TRIALS = 20  # in a row of the results


def trees(step: int) -> dict:
    """A state of a few arrays: 70 kB."""
    rng = np.random.default_rng(step)
    rest = {"step": np.int32(step), "moments": (rng.normal(size=(60, 50)),), "signs": [np.arange(9, dtype=np.uint8)]}
    return {"variables": {"params": {"w": rng.normal(size=(200, 50)).astype(np.float32)}}, "rest": rest}


def damage(kind: str, step: Path, rng: random.Random) -> None:
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


def trial(kind: str, whole: Path, rng: random.Random) -> str:
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
        right = restored and same(restored, trees(step))
        return ("harmless" if step == 2 else "the step before") if right else "silently wrong"


def same(restored: dict, wanted: dict) -> bool:
    """Whether two results of `trees` are equal bit for bit."""
    return all(np.array_equal(a, b) for a, b in zip(_leaves(restored), _leaves(wanted), strict=True))


def _leaves(tree):
    rest = tree["rest"]
    return [tree["variables"]["params"]["w"], rest["step"], rest["moments"][0], rest["signs"][0]]


def trials(bench: Bench, rng: random.Random, kind: str) -> dict:
    """So many in a row, of two checkpoints of a small state."""
    logging.disable(logging.ERROR)
    place = bench.place()
    with Checkpoints(place / "c") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, trees(step), {"top1": float(step)})
            checkpoints.wait()
    counts = collections.Counter(trial(kind, place / "c", rng) for _ in range(TRIALS))
    logging.disable(logging.NOTSET)
    failed = "an error" in counts or "silently wrong" in counts
    return {
        "failed": f"{kind}: {dict(counts)}" if failed else "",
        **{f"{kind}, {outcome}": n for outcome, n in counts.items()},
    }

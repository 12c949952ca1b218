"""A deterministic run on 1, 2, 4 or 8 devices, saved and resumed on 1, 2, 4 or 8: are all bits the same?

    python -m experiments.faults.devices          prints the table of README.md

In one process with eight virtual devices, of which a run is shown as many as it may use. Compared are all leaves of the
state after the last step, and the scores of the evaluation.
"""

import argparse
import contextlib
import itertools
import logging
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from bireal_jax import config, output
from bireal_jax.data import batching
from bireal_jax.running import checkpoint, health, parallel
from bireal_jax.training import calls, train
from bireal_jax.training.step import State

COUNTS = (1, 2, 4, 8)
MIDDLE, LAST = 6, 12


def recipe():
    """Twelve steps of the digits."""
    c = config.default()
    c.update_from_flattened_dict({
        "model.name": "bireal_tiny", "data.name": "digits", "data.image_size": 8, "batch_size": 32,
        "total_steps": LAST, "deterministic": True,
    })  # fmt: skip
    return c


@contextlib.contextmanager
def shown(count):
    """There are only so many devices."""
    devices = jax.devices()[:count]
    with mock.patch.multiple(
        jax, devices=lambda: devices, local_devices=lambda: devices, device_count=lambda: count,
        local_device_count=lambda: count,
    ):  # fmt: skip
        yield


class Run(train.Stage):
    """The run on so many devices."""

    def __init__(self, count, root):
        self.count, self.root = count, root
        with shown(count):
            super().__init__(0, "train", recipe(), root, 0)

    def to(self, state, start, stop):
        """The state after step `stop`, from that after step `start`."""
        with shown(self.count):
            batches = batching.train_batches(self.source, 32, 0, start, devices=self.count)
            state, step = parallel.replicate(state), parallel.pmap(health.guard(self.train_step, 0), donate=True)
            for _, batch in zip(range(start, stop), parallel.prefetch(batches), strict=False):
                state, _ = step(state, batch)
            return parallel.fetch(state)

    def results(self, state):
        """What is compared."""
        with shown(self.count):
            scores = calls.Evaluation(self.eval_step, self.source, 32)(parallel.replicate(state.variables))
        return [leaf.tobytes() for leaf in jax.tree.leaves(state.trees())], scores

    def saved(self, state):
        """Saves and restores, as a training run does."""
        with checkpoint.Checkpoints(self.root / str(self.count)) as checkpoints:
            checkpoints.save(MIDDLE, state.trees(), None)
            checkpoints.wait()
            return State.from_trees(checkpoints.restore(MIDDLE, state.trees()))


def main():
    """Prints a table: the devices before the save downwards, those after it to the right."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(COUNTS))
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        runs = [Run(count, Path(scratch)) for count in COUNTS]
        first = runs[0].fresh(runs[0].drawn(), 0)
        first = jax.tree.map(np.asarray, first)
        straight = runs[0].results(runs[0].to(first, 0, LAST))
        print("| devices |", " | ".join(map(str, COUNTS)), "|\n|---|" + "---|" * len(COUNTS), flush=True)
        middle = {run.count: run.saved(run.to(first, 0, MIDDLE)) for run in runs}
        equal = {
            (before, run.count): run.results(run.to(middle[before], MIDDLE, LAST)) == straight
            for run, before in itertools.product(runs, COUNTS)
        }
        for before in COUNTS:
            cells = ("equal" if equal[before, after] else "DIFFERENT" for after in COUNTS)
            print(f"| {before} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with output.command():
        main()

"""A deterministic run on 1, 2, 4 or 8 devices, stopped and resumed on 1, 2, 4 or 8: are all bits the same?

    python -m experiments.faults.devices          prints the table of README.md

In one process with eight virtual devices, of which a run is shown as many as it may use.
"""

import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import jax

from bireal_jax import config, preempt, progress, train
from experiments.faults.hosts import same

COUNTS = (1, 2, 4, 8)


def recipe():
    """A few steps of the digits, with logs, saves and evaluations at odd ones."""
    c = config.default()
    c.update_from_flattened_dict({
        "model.name": "bireal_tiny", "data.name": "digits", "data.image_size": 8, "batch_size": 32, "total_steps": 12,
        "log_steps": 1, "eval_steps": 5, "save_steps": 3, "deterministic": True,
    })  # fmt: skip
    return c


def run(place, count, stop=0):
    """The run in `place` on so many devices, to its end or as if a signal came during step `stop`."""
    devices = jax.devices()[:count]
    signals, advance = preempt.Signals(), progress.Bar.advance

    def stopping(bar, step):
        advance(bar, step)
        signals.asked = step == stop

    shown = mock.patch.multiple(
        jax, devices=lambda: devices, local_devices=lambda: devices, device_count=lambda: count,
        local_device_count=lambda: count,
    )  # fmt: skip
    silent = contextlib.redirect_stdout(io.StringIO())
    with shown, silent, mock.patch.object(progress.Bar, "advance", stopping), contextlib.suppress(preempt.Stopped):
        train.run(recipe(), place, signals)


def main():
    """Prints a table: before the stop downwards, after it to the right."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    with tempfile.TemporaryDirectory() as scratch:
        jax.config.update("jax_compilation_cache_dir", f"{scratch}/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        root = Path(scratch)
        run(root / "straight", 1)
        print("| devices |", " | ".join(map(str, COUNTS)), "|\n|---|" + "---|" * len(COUNTS), flush=True)
        for before in COUNTS:
            run(root / f"{before}", before, stop=7)
            cells = []
            for after in COUNTS:
                place = root / f"{before} {after}"
                shutil.copytree(root / f"{before}", place)
                run(place, after)
                cells.append("equal" if same(place, root / "straight") else "DIFFERENT")
            print(f"| {before} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()

"""The fault campaign: `python -m experiments.faults.run`, from the root of the repository.

Every trial harms a run in one way, lets the same command go on, and compares the end with that of a run that was left
alone. A row for each trial goes to a file; started again, only the trials that it lacks are done.
"""

import argparse
import collections
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bireal_jax import output
from experiments.faults import damage, dead, records, signals, storage
from experiments.faults.bench import Bench

HERE = Path(__file__).parent
FILE_KINDS = ("bit flip", "truncation", "missing file")
FILES = 24  # at most, of a checkpoint
IMAGE_KINDS = ("flipped bits", "truncation", "zero length")

# name -> (trial, how many); a trial is (bench, random numbers) -> {"failed": "" or why, what was counted: how often}
KINDS: dict[str, tuple[Callable[..., dict], int]] = {
    "kills": (signals.kills, 20),
    "saves": (signals.kills_of_saves, 8),
    **{
        f"stops {'group' if group else 'process'} {workers}": (partial(signals.stops, group=group, workers=workers), 5)
        for group in (False, True)
        for workers in (0, 2)
    },
    **{f"hosts {fault}": (partial(dead.hosts, fault=fault), 5) for fault in dead.CAUSES},
    "full disk": (storage.full_disk, 10),
    "read-only": (storage.read_only, 2),
    **{
        f"file {number} {kind}": (partial(storage.damaged_file, kind=kind, number=number), 1)
        for number in range(FILES)
        for kind in FILE_KINDS
    },
    **{
        f"image {kind} {workers}": (partial(records.damaged_image, kind=kind, workers=workers), 4)
        for kind in IMAGE_KINDS
        for workers in (0, 2)
    },
    **{f"record {kind}": (partial(records.damaged_record, kind=kind), 4) for kind in IMAGE_KINDS},
    "killed worker": (records.killed_worker, 8),
    **{f"damage {kind}": (partial(damage.trials, kind=kind), 10) for kind in damage.KINDS},
}

FIRST = dict.fromkeys(name.split()[0] for name in KINDS)


def campaign(names: list[str], trials: int | None, seed: int, bench: Bench, rows: Path) -> None:
    """Does the trials that the file of rows lacks, one of each kind in turn."""
    done = {(row["kind"], row["seed"], row["trial"]) for row in read(rows)}
    most = max(trials or KINDS[name][1] for name in names)
    for trial in range(most):
        for name in names:
            function, count = KINDS[name]
            if trial >= (trials or count) or (name, seed, trial) in done:
                continue
            began = time.monotonic()
            try:
                found = function(bench, random.Random(f"{name} {seed} {trial}"))
            except dead.Void:  # the next start of the campaign does it again
                continue
            except (RuntimeError, TimeoutError, OSError) as error:
                found = {"failed": f"{type(error).__name__}: {error}"}
            row = {"kind": name, "seed": seed, "trial": trial, "seconds": round(time.monotonic() - began, 1), **found}
            with open(rows, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(name, trial, "FAILED" if row["failed"] else "ok", f"{row['seconds']} s", flush=True)


def read(rows: Path) -> list[dict]:
    """The rows so far."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def table(found: list[dict]) -> str:
    """What was counted: how often, and in trials that failed."""
    about = {"kind", "seed", "trial", "seconds", "failed", "detail", "file"}
    counts, failed, most = collections.Counter(), collections.Counter(), {}
    for row in found:
        for name in row.keys() - about:
            if name.startswith(("most", "longest")):
                most[row["kind"], name] = max(row[name], most.get((row["kind"], name), 0))
            else:
                counts[name] += row[name]
                failed[name] += row[name] if row["failed"] else 0
    lines = ["| fault | times | in trials that failed |", "|---|---|---|"]
    lines += [f"| {name} | {counts[name]} | {failed[name]} |" for name in sorted(counts) if counts[name]]
    return "\n".join([*lines, "", *(f"{kind}, {name}: {value}" for (kind, name), value in most.items())])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.run", description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"{', '.join(FIRST)}, or more words of one; none for all")
    parser.add_argument("--trials", type=int, help="of each kind; by default as in the table of the README")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=HERE / "rows.jsonl")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "bireal_jax_faults")
    parser.add_argument("--table", action="store_true", help="prints the table of the rows and does nothing else")
    options = parser.parse_args()
    names = [n for n in KINDS if not options.kinds or n.startswith(tuple(options.kinds))]
    if not storage.can_mount():
        print("full disk, read-only: not run, since only root can mount a small file system")
        names = [n for n in names if KINDS[n][0] not in (storage.full_disk, storage.read_only)]
    if not options.table and names:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            campaign(names, options.trials, options.seed, Bench(options.scratch), options.rows)
        finally:  # the runs have sessions of their own
            for run in multiprocessing.active_children():
                run.kill()
    print(table(read(options.rows)))


if __name__ == "__main__":
    with output.command():
        main()

"""Runs of one recipe on other hosts, cut off and resumed: are they the run that was never disturbed?

    python -m experiments.faults.hosts          prints the table of README.md

Every run is the command in processes of its own, on virtual CPU devices: `h x d` is h hosts of d devices each.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bireal_jax import output
from bireal_jax.running.checkpoint import Checkpoints

RECIPE = ["--config=configs/digits.py", "--config.batch_size=32", "--config.log_steps=1"]
# The command, where JAX has more patience with a machine that pauses all hosts at once; `hosts.Watch` sees who is dead.
COMMAND = """
from functools import partial
from bireal_jax import main
from bireal_jax.running import hosts
hosts.HEARTBEAT_SECONDS = 900
hosts.Watch = partial(hosts.Watch, silent_seconds=60)
main.run()
"""
PLAIN = [
    "--config.model.dtype=float64", "--config.model.bn_group=4", "--config.total_steps=50", "--config.eval_steps=25",
]  # fmt: skip
ELASTIC = ["--config.deterministic=True", "--config.total_steps=20", "--config.save_steps=3"]


def start(place, hosts, devices, mode):
    """The processes of a run; what they print goes to PLACE.HOST.log."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(place.parent / "compiled")}
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"} | cache
    command = [sys.executable, "-c", COMMAND, f"--workdir={place}", *RECIPE, *mode]
    several = [f"--coordinator=localhost:{port}", f"--num_processes={hosts}"] if hosts > 1 else []
    processes = []
    for i in range(hosts):
        arguments = [*several, f"--process_id={i}"] if several else []
        with Path(f"{place}.{i}.log").open("w") as log:
            processes.append(subprocess.Popen([*command, *arguments], env=environment, stdout=log, stderr=log))
    return processes


def finish(processes):
    """Waits; the exit statuses."""
    return [process.wait(timeout=900) for process in processes]


def complete(place, hosts, devices, mode):
    """A run to its end."""
    statuses = finish(start(place, hosts, devices, mode))
    if any(statuses):
        raise RuntimeError(f"{place}: {statuses}\n" + Path(f"{place}.0.log").read_text()[-3000:])


def disturb(place, hosts, devices, mode, number, victim, at=8):
    """Sends a signal to one host at a step; (statuses, seconds until the last process has ended)."""
    processes = start(place, hosts, devices, mode)
    while not any(line["step"] >= at for line in lines(place)):
        if processes[0].poll() is not None:
            raise RuntimeError(Path(f"{place}.0.log").read_text())
        time.sleep(0.05)
    processes[victim].send_signal(number)
    began = time.monotonic()
    return finish(processes), time.monotonic() - began


def lines(place):
    """The lines of metrics.jsonl so far."""
    path = place / "metrics.jsonl"
    found = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in found if line.endswith("\n")]


def same(a, b):
    """Whether two runs have the same metrics, result and last checkpoint, all bits of them."""
    leaves = []
    for place in (a, b):
        with Checkpoints(place / "stage_0" / "checkpoints", read_only=True) as found:
            leaves.append((found.steps()[-1], found._record(found.steps()[-1])["leaves"]))
    names = ("metrics.jsonl", "result.json")
    return leaves[0] == leaves[1] and all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def compare_plain(root):
    """2 x 4 against 1 x 8, plain mode in float64: the largest relative difference of the losses."""
    for hosts, devices in ((1, 8), (2, 4)):
        complete(root / f"plain{hosts}", hosts, devices, PLAIN)
    pairs = list(zip(lines(root / "plain1"), lines(root / "plain2"), strict=True))  # evaluations are among them
    worst = max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in pairs)
    counts = all(a["top1"] == b["top1"] for a, b in pairs)
    return f"{len(pairs)} losses within {worst:.1e}; all top-1 counts {'equal' if counts else 'DIFFER'}"


def resume(root, name, reference, hosts, devices):
    """Continues a copy of a run that was cut off: whether it ends as the undisturbed one."""
    place = root / f"{name} on {hosts}x{devices}"
    shutil.copytree(root / name, place)
    statuses = finish(start(place, hosts, devices, ELASTIC))
    return "equal bits" if not any(statuses) and same(place, reference) else f"DIFFERENT, status {statuses}"


def main():
    """Prints the table, a row as soon as it is known."""
    print("| run | then | outcome |\n|---|---|---|", flush=True)

    def row(*cells):
        print("|", " | ".join(cells), "|", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        row("1 x 8 against 2 x 4, float64", "", compare_plain(root))
        reference = root / "reference"
        complete(reference, 1, 8, ELASTIC)
        straight = root / "straight"
        complete(straight, 2, 4, ELASTIC)
        outcome = "equal bits" if same(straight, reference) else "DIFFERENT"
        row("1 x 8 against 2 x 4, deterministic", "", outcome)
        for number, victim in ((signal.SIGTERM, 1), (signal.SIGKILL, 1), (signal.SIGKILL, 0)):
            name = f"{number.name} host {victim}"
            statuses, seconds = disturb(root / name, 2, 4, ELASTIC, number, victim)
            row(f"2 x 4, {number.name} to host {victim}", "", f"statuses {statuses} after {seconds:.1f} s")
            for hosts, devices in ((1, 8), (4, 2)) if number == signal.SIGTERM else ((2, 4),):
                row("", f"resumed on {hosts} x {devices}", resume(root, name, reference, hosts, devices))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with output.command():
        main()

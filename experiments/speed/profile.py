"""Where a CPU training step goes: milliseconds of our compiled calls and of what XLA makes of each layer.

    python -m experiments.speed.profile bireal20 --threads 1 2

A process for each number of threads, one step of each under JAX's profiler. Operations that XLA does side by side count
twice, so a column may add up to more than its step. "Seconds of the cores" is what the process was given during a step:
with two threads that all work it is twice the step.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bireal_jax import output
from experiments.speed.train import NETWORKS, limit_threads

AROUND = re.compile(r"^(jit\(|jvp\(|transpose\(|cond$|branch_|while$|body$|closed_call$|BiRealNet|_fun)")


def events(folder):
    """(name, milliseconds) of each operation in a trace."""
    from jax.profiler import ProfileData

    (file,) = Path(folder).rglob("*.xplane.pb")
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name:
                    yield str(name), event.duration_ns / 1e6


def kinds(text) -> dict[str, str]:
    """What each instruction of a compiled program is for: a call of ours, or of a layer, there or back."""
    found = dict(re.findall(r'%?([\w.\-]+) = [^\n]*op_name="([^"]*)"', text))
    for name, path in found.items():
        *layers, last = [part for part in path.split("/") if not AROUND.match(part)] or ["other"]
        way = "backward" if "transpose(" in path else "forward" if "jvp(" in path else "optimizer and rest"
        layer = re.sub(r"\d+", "", layers[-1]) if layers and way != "optimizer and rest" else ""
        found[name] = " ".join(filter(None, [way, layer, last if layer or way == "forward" else ""]))
    ours = dict(re.findall(r'%?([\w.\-]+) = [^\n]*custom_call_target="(bireal_\w+)"', text))
    return found | ours


def measure(network, threads):
    """{"step", "cores": milliseconds, "kinds": {kind: milliseconds}} of one step, in this process."""
    limit_threads(threads)
    from bireal_jax.main import keep_freed_memory

    keep_freed_memory()  # before JAX starts its threads
    import jax

    from experiments.speed import steps

    parts = steps.parts(network, *NETWORKS[network])
    known = kinds(parts.step.lower(parts.state, parts.data).compile().as_text())
    run = steps.runner(parts)
    run(), run()
    began, used = time.perf_counter(), time.process_time()
    run()
    took, used = time.perf_counter() - began, time.process_time() - used
    total = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        for name, milliseconds in events(folder):
            total[known.get(name, re.sub(r"[.\d]+$", "", name))] += milliseconds
    return {"step": 1e3 * took, "cores": 1e3 * used, "kinds": total}


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count()])
    parser.add_argument("--rows", type=int, default=16, help="kinds to print, the longest first")
    parser.add_argument("--worker", action="store_true", help="measure in this process, print JSON")
    arguments = parser.parse_args()
    if arguments.worker:
        return print(json.dumps(measure(arguments.network, arguments.threads[0])))
    found = []
    for threads in arguments.threads:
        command = [sys.executable, "-m", "experiments.speed.profile", arguments.network, "--worker"]
        said = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True).stdout
        found.append(json.loads(said.splitlines()[-1]))
    print(f"| {arguments.network}, ms | " + " | ".join(f"{threads} thread(s)" for threads in arguments.threads) + " |")
    print("|---" * (len(found) + 1) + "|")
    longest = sorted(found[-1]["kinds"], key=lambda kind: -found[-1]["kinds"][kind])[: arguments.rows]
    rows = {kind: [f["kinds"].get(kind, 0.0) for f in found] for kind in longest}
    rows["all other"] = [sum(f["kinds"].values()) - sum(f["kinds"].get(k, 0.0) for k in longest) for f in found]
    rows["a step"] = [f["step"] for f in found]
    rows["seconds of the cores, in ms"] = [f["cores"] for f in found]
    for kind, values in rows.items():
        print(f"| {kind} | " + " | ".join(f"{v:.1f}" for v in values) + " |")


if __name__ == "__main__":
    with output.command():
        main()

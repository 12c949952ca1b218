"""Where a CPU training step goes: milliseconds of our compiled calls and of XLA's fusions by kind, from JAX's profiler.

python -m experiments.speed.profile bireal20
"""

import argparse
import collections
import re
import tempfile
import time
from pathlib import Path

from bireal_jax import output
from bireal_jax.main import keep_freed_memory
from experiments.speed.train import NETWORKS


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


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network", choices=NETWORKS)
    arguments = parser.parse_args()
    keep_freed_memory()  # before JAX starts its threads
    import jax

    from experiments.speed import steps

    parts = steps.parts(arguments.network, *NETWORKS[arguments.network])
    text = parts.step.lower(parts.state, parts.data).compile().as_text()
    ours = dict(re.findall(r'%?([\w.\-]+) = [^\n]*custom_call_target="(bireal_\w+)"', text))
    run = steps.runner(parts)
    run(), run()
    began = time.perf_counter()
    run()
    print(f"{1e3 * (time.perf_counter() - began):.0f} ms a step; under the profiler:")
    total = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        for name, milliseconds in events(folder):
            total[ours.get(name, re.sub(r"[.\d]+$", "", name))] += milliseconds
    for name, milliseconds in total.most_common(16):
        print(f"| {name} | {milliseconds:.1f} |")
    print(f"| all | {sum(total.values()):.1f} |")


if __name__ == "__main__":
    with output.command():
        main()

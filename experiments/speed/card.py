"""All figures of a rented GPU in one command, which stops by itself in time.

    python -m experiments.speed.card --minutes 12                       from the root of the repository
    python -m experiments.speed.card --minutes 12 --cifar DIR           on CIFAR-10 itself instead of noise of its shape
    python -m experiments.speed.card --small --minutes 10               a try on a CPU, with networks and images for it

In order: versions; images per second of the command itself on CIFAR-10, and once more with what the first start has
left in the compilation cache; Bi-Real Net 18 in float64 on the card and on the CPU; its training step at 224 px, batch
256, beside PyTorch; where the milliseconds of that step go; 8 networks as one program; four hashes of deterministic
runs; then what may be left out: batch 512, 1 and 4 networks, the parts of a step, PyTorch's longest search. Every
section is a process of its own, within a time of its own, and gives a line a figure and a row in --out. What has a row
is not done again: the same command goes on where time was up, or a section failed, and says at its end what it left
out. All that a section that failed has printed lies beside --out, in a .log.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from bireal_jax import output

VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch")
HERE = "experiments.speed.card"


class Section(NamedTuple):
    """What is run for some figures.

    Attributes:
      seconds: that it takes at least; with less left it is not begun.
      most: that it may take, so that one that hangs or compiles for ever does not take those behind it along.
      command: (arguments, folder for its files) -> the module and its arguments.
      lines: its result -> a line a figure.
    """

    seconds: float
    most: float
    command: Callable[[Any, Path], list[str]]
    lines: Callable[[dict[str, Any]], Iterator[str]]


def versions() -> dict[str, Any]:
    """What the figures are of."""
    import jax

    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    for what, command in (
        ("commit", ["git", "rev-parse", "--short", "HEAD"]),
        ("driver", ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
    ):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            found[what] = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    return found


def parity(network: str, size: int) -> dict[str, Any]:
    """Logits and gradients in float64, device against CPU: the largest difference, as a share of the largest value."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import numpy as np

    from bireal_jax import models
    from bireal_jax.binary import losses

    model = models.build(network, 10, jnp.float64)
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(4, size, size, 3)), jnp.asarray(rng.integers(0, 10, 4))
    with jax.default_device(jax.devices("cpu")[0]):
        variables = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0), images[:1]))

    @jax.jit
    def both(params):
        def objective(params):
            logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return losses.cross_entropy(logits, labels, 0.1).mean(), logits

        grads, logits = jax.grad(objective, has_aux=True)(params)
        return logits, grads

    sides = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        sides.append(jax.tree.map(np.asarray, both(jax.device_put(variables["params"], device))))

    def apart(a, b):
        return max(
            float(np.abs(x - y).max() / np.abs(y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        )

    (logits, grads), (expected, slopes) = sides
    return {"logits": apart(logits, expected), "gradients": apart(grads, slopes)}


def loop(network: str, data: Path, small: bool, workdir: Path) -> dict[str, Any]:
    """Images per second of the training command, as timing.jsonl has them, without the first line."""
    fields = {"model.name": network, "data.dir": data, "eval_epochs": 100.0, "save_epochs": 100.0} | (
        {"batch_size": 16, "total_steps": 24, "log_steps": 6, "optim.warmup_epochs": 0.0}
        if small
        else {"model.dtype": "bfloat16", "total_epochs": 12.0, "log_epochs": 1.0, "optim.warmup_epochs": 1.0}
    )
    flags = ["--config=configs/cifar10_sgd.py", f"--workdir={workdir}"]
    flags += [f"--config.{name}={value}" for name, value in fields.items()]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "bireal_jax.main", *flags], check=True, stdout=sys.stderr)
    took = time.monotonic() - began
    rows = [json.loads(line) for line in (workdir / "timing.jsonl").read_text().splitlines()]
    rates = [row["images_per_second"] for row in rows[1:]]
    waits = [row["input_wait"] for row in rows[1:]]
    return {"images_per_second": statistics.median(rates), "input_wait": statistics.median(waits), "seconds": took}


def _step(batch, *peers, whole=True):
    def command(args, out):
        how = ["--batches", "8", "--size", "8", "--network", "bireal_tiny", "--rounds", "2", "--steps", "2"]
        how += ["--dtype", "float32", "--peers", "ours"]
        if not args.small:
            how = ["--batches", str(batch), "--steps", "20", "--rounds", "5", "--peers", "ours", *peers]
        return ["experiments.speed.gpu", *how, *["--whole"] * whole, "--out", str(out / "rows.jsonl")]

    return command


def _breakdown(args, out):
    return ["experiments.speed.breakdown", "--out", str(out)]


def _loop(network):
    return lambda args, out: [HERE, "--section", "loop", "--network", "bireal_tiny" if args.small else network]


def _seeds(count):
    def command(args, out):
        how = ["--model", "bireal_tiny", "--batch", "8", "--steps", "2", "--rounds", "2"]
        if not args.small:
            how = ["--model", "bireal20", "--batch", "256", "--dtype", "bfloat16"]
        how += ["--devices", "0", "--seeds", str(count), "--cifar", str(args.cifar)]
        return ["experiments.speed.seeds", *how, "--out", str(out / "rows.jsonl")]

    return command


def _hashes(args, out):
    how = ["--config", "configs/digits.py", "--steps", "20", "--config.batch_size=16"]
    if not args.small:
        how = ["--dir", str(args.cifar), "--steps", "200", "--config.model.dtype=bfloat16"]
    return ["experiments.faults.bits", *how, "--out", str(out / "rows.jsonl")]


def _step_lines(row):
    from experiments.speed import gpu

    rates = row["images_per_second"]
    for name, values in rates.items():
        yield f"{name}: {statistics.median(values):,.0f} images/s"
    if "ours" in rates and (found := gpu.best(row)):
        yield f"ours is {statistics.median(rates['ours']) / found[1]:.2f} times as fast as {found[0]}"


def _plain(row):
    for name, value in row.items():
        yield f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _seed_lines(row):
    for name in ("one after the other", "one program"):
        yield f"{name}: {row[name]['ms']} ms a step of one network"


def _hash_lines(row):
    yield from (f"{name} {value}" for name, value in row["hashes"].items())
    yield "all bits are equal" if row["equal"] else "bits DIFFER"


def _parity(args, out):
    return [HERE, "--section", "parity", "--network", "bireal_tiny" if args.small else "bireal18"]


SECTIONS = {  # the most valuable first; what compiles longest, last
    "versions": Section(0, 30, lambda args, out: [HERE, "--section", "versions"], _plain),
    "bireal20": Section(40, 90, _loop("bireal20"), _plain),
    "again": Section(20, 60, _loop("bireal20"), _plain),
    "parity": Section(20, 90, _parity, _plain),
    "step_256": Section(90, 180, _step(256, "torch_default", "torch_reduce-overhead"), _step_lines),
    "breakdown": Section(30, 120, _breakdown, _plain),
    "bireal18_cifar": Section(40, 120, _loop("bireal18_cifar"), _plain),
    "seeds_8": Section(30, 150, _seeds(8), _seed_lines),
    "hashes": Section(60, 180, _hashes, _hash_lines),
    "step_512": Section(60, 180, _step(512, "torch_default", "torch_reduce-overhead"), _step_lines),
    **{f"seeds_{count}": Section(30, 120, _seeds(count), _seed_lines) for count in (1, 4)},
    "parts": Section(60, 180, _step(256, whole=False), _plain),
    "max_autotune": Section(120, 400, _step(256, "torch_max-autotune", "torch4_default"), _step_lines),
}


def noise(place: Path, small: bool) -> Path:
    """An .npz file of the shape of CIFAR-10."""
    import numpy as np

    rng, path = np.random.default_rng(0), place / "noise.npz"
    arrays: dict[str, Any] = {}
    for split, count in (("train", 512), ("test", 64)) if small else (("train", 50_000), ("test", 10_000)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 10
    np.savez(path, **arrays)
    return path


def attempt(name: str, args: argparse.Namespace, seconds: float) -> dict[str, Any] | str:
    """Runs a section for so long at most: its result, or why there is none."""
    if name == "breakdown" and args.small:
        return "a CPU's trace has no kernels"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        command = [sys.executable, "-m", *SECTIONS[name].command(args, out)]
        if command[2] == HERE:
            command += ["--cifar", str(args.cifar), "--out", str(out / "rows.jsonl"), *["--small"] * args.small]
        run = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )  # fmt: skip
        try:
            said, _ = run.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return "time was up"
        finally:  # with whatever it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        rows = (out / "rows.jsonl").read_text() if (out / "rows.jsonl").exists() else said
        try:
            return json.loads(rows.strip().splitlines()[-1])
        except (ValueError, IndexError):
            with open(args.out.with_suffix(".log"), "a") as file:
                file.write(f"{' '.join(command)}\n{said}\n")
            return f"it ended with status {run.returncode}: {' '.join(said.split())[-300:]}"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """section -> row of what was measured so far."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["section"]: row for row in rows}


def campaign(args: argparse.Namespace) -> list[str]:
    """Does what has no row yet, while there is time; what was left out, and why."""
    end, done, left = time.monotonic() + 60 * args.minutes, read(args.out), []
    for name, section in SECTIONS.items():
        remaining = end - time.monotonic()
        if name in done and name != "versions":
            continue
        if name not in args.sections:
            continue
        if remaining < (section.seconds if not args.small else 1):
            left.append(f"{name}: {max(0, remaining):.0f} s were left")
            continue
        began = time.monotonic()
        found = attempt(name, args, min(remaining, section.most))
        if isinstance(found, str):
            left.append(f"{name}: {found}")
            continue
        if name in done:
            changed = [key for key in found if found[key] != done[name].get(key)]
            if changed:
                raise SystemExit(f"{args.out} is of another {' and '.join(changed)}; name another --out")
            continue
        for line in section.lines(found):
            print(f"{name:<16} {line}", flush=True)
        with open(args.out, "a") as file:
            file.write(json.dumps({"section": name, "took": round(time.monotonic() - began, 1), **found}) + "\n")
    return left


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=12.0, help="after which it ends, whatever is under way")
    parser.add_argument("--out", type=Path, default=Path("card.jsonl"), help="rows so far, and new ones")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as config.data.dir; default: noise of its shape")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--section", choices=["versions", "parity", "loop"], help=argparse.SUPPRESS)
    parser.add_argument("--network", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.section:
        with tempfile.TemporaryDirectory() as scratch:
            found = {
                "versions": versions,
                "parity": lambda: parity(args.network, 8 if args.small else 64),
                "loop": lambda: loop(args.network, args.cifar, args.small, Path(scratch) / "run"),
            }[args.section]()
        args.out.write_text(json.dumps(found) + "\n")
        return 0
    scratch = Path(tempfile.mkdtemp())
    try:
        args.cifar = args.cifar or noise(scratch, args.small)
        left = campaign(args)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for line in left:
        print(f"left out: {line}")
    print(
        f"{args.out}: {len(read(args.out))} of {len(SECTIONS)} sections; the same command goes on" if left else args.out
    )
    return 0


if __name__ == "__main__":
    with output.command():
        sys.exit(main())

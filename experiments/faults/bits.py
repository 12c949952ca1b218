"""Does a deterministic run compute the same bits again? Four runs of one config, four hashes.

    python -m experiments.faults.bits --dir cifar.npz                       200 steps of CIFAR-10, on a GPU
    python -m experiments.faults.bits --config configs/digits.py --steps 12    a minute on a CPU

Every run is the command in a process of its own, with --config.deterministic=True. "one" and "two" run to the end,
with the compilation cache that they share; "cut" is stopped by SIGTERM in the middle and started again; so is
"wiped", but the caches of compiled programs and of XLA's timings are deleted in between, and what the workdir keeps
alone says which kernels to take. A hash is of the final metrics.jsonl and of every array of the last checkpoint. Ends
with status 1 where two of them differ.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bireal_jax import output

RUNS = ("one", "two", "cut", "wiped")


def command(args, workdir):
    """Of one start."""
    fields = {
        "deterministic": True, "total_steps": args.steps, "log_steps": max(1, args.steps // 20),
        "save_steps": args.steps, "eval_steps": args.steps, "optim.warmup_epochs": 0.0,
    } | ({"data.dir": args.dir} if args.dir else {})  # fmt: skip
    flags = [f"--config={args.config}", f"--workdir={workdir}", *(f"--config.{n}={v}" for n, v in fields.items())]
    return [sys.executable, "-u", "-m", "bireal_jax.main", *flags, *args.fields]


def start(args, workdir, cache, cut=0):
    """Runs the command; with `cut` sends SIGTERM once so many steps are logged. Returns whether it was cut off."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "COLUMNS": "100"}
    with (workdir.parent / f"{workdir.name}.txt").open("a") as output:
        run = subprocess.Popen(command(args, workdir), env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while cut and run.poll() is None:
                if _logged(workdir / "metrics.jsonl") >= cut:
                    run.send_signal(signal.SIGTERM)
                    break
                time.sleep(0.005)
            status = run.wait()
        finally:
            run.kill()
    if status:
        last = (workdir.parent / f"{workdir.name}.txt").read_text(errors="replace")[-600:]
        raise SystemExit(f"{workdir.name}: the command ended with status {status}\n{last}")
    return not (workdir / "result.json").exists()


def _logged(path):
    """The last step in metrics.jsonl."""
    found = re.findall(r'"step": (\d+)', path.read_text()) if path.exists() else []
    return int(found[-1]) if found else 0


def digest(workdir):
    """Of what the run computed."""
    whole = hashlib.sha256((workdir / "metrics.jsonl").read_bytes())
    for stage, place in _checkpoints(workdir).items():
        whole.update(json.dumps([stage, place], sort_keys=True).encode())
    return whole.hexdigest()[:16]


def _checkpoints(workdir):
    """stage -> the digests that the last checkpoint holds of every array, which reading it has checked."""
    from bireal_jax.running import checkpoint

    found = {}
    for stage, place in checkpoint.directories(workdir).items():
        with checkpoint.Checkpoints(place, read_only=True) as checkpoints:
            found[stage] = checkpoints.digests(checkpoints.steps()[-1])
    return found


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/cifar10_sgd.py")
    parser.add_argument("--dir", default="", help="config.data.dir")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--out", type=Path, help="append the result to this .jsonl file")
    args, args.fields = parser.parse_known_args(argv)
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        for name in args.runs:
            workdir = Path(scratch) / name
            was_cut = start(args, workdir, cache, args.steps // 2 if name in ("cut", "wiped") else 0)
            if name == "wiped":
                shutil.rmtree(cache)
            if was_cut:
                start(args, workdir, cache)
            note = "" if name in ("one", "two") else ", was cut off" if was_cut else ", was NOT cut off: too few steps"
            found[name] = digest(workdir)
            print(f"{name:<6} {found[name]}{note}", flush=True)
    equal = len(set(found.values())) == 1
    print("all bits are equal" if equal else "bits DIFFER")
    if args.out:
        with open(args.out, "a") as file:
            file.write(json.dumps({"hashes": found, "equal": equal, "steps": args.steps}) + "\n")
    return 0 if equal else 1


if __name__ == "__main__":
    with output.command():
        sys.exit(main())

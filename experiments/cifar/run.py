"""A campaign on CIFAR-10 for a rented card: trainings, the most valuable first, within so many minutes.

    python -m experiments.cifar.run --minutes 12 --data cifar10.npz                  goes on where the last call ended
    python -m experiments.cifar.run --minutes 12 --data cifar10.npz --only r20 r18 --together 2
    python -m experiments.cifar.run --minutes 5 --small --only r20 ebn*               tries it on a CPU, with digits

Every run is `python -m bireal_jax.main` in a workdir of its own below OUT. When the time is up, and at SIGTERM or
Ctrl-C, it is sent SIGTERM, saves the step under way and ends; the same command continues it, to the same bits. One
that is finished is packed, the packed file is evaluated on all test images, and a row is added to OUT/rows.jsonl; where
there is no time left for that, the next call does it.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bireal_jax import output, places
from bireal_jax.errors import BadInput
from bireal_jax.running.settings import FREE
from experiments.cifar import jobs as jobs_lib
from experiments.cifar import report

SAVING = 25.0  # seconds before the end, for what is under way to be saved
LEAST = 45.0  # seconds in which a start is not worth its compilation, and a network perhaps not packed
COMMAND = [sys.executable, "-m", "bireal_jax.main"]


def parse(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.cifar.run", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--minutes", type=float, required=True, help="after so long all is saved and the command has ended")
    add("--only", nargs="+", default=[], metavar="JOB", help="these alone, in the order of the queue; grid* for many")
    add("--data", default="", help="CIFAR-10: the published archive, its folder, or an .npz")
    add("--out", type=Path, default=Path("runs/cifar"), help="workdirs and rows.jsonl")
    add("--together", type=int, default=1, help="so many at once; small networks do not fill a card")
    add("--small", action="store_true", help="a tiny network on digits in place of each, for an epoch")
    add("--list", action="store_true", help="what is done and what is left, and exit")
    return parser.parse_args(argv)


class Campaign:
    """What runs, what is done, and what is left.

    Args:
      args: of `parse`.
      queue: the jobs.
    """

    def __init__(self, args: argparse.Namespace, queue: list[jobs_lib.Job]):
        self.args, self.queue, self.out = args, queue, args.out
        self.running: dict[jobs_lib.Job, tuple[subprocess.Popen, float]] = {}
        self.packing: dict[str, Future] = {}
        self.failed: list[str] = []
        self.asked = False
        self.end = time.monotonic() + 60 * args.minutes - SAVING

    def done(self, name: str) -> bool:
        """Whether a run has ended: a training by its result, a search by the mark that `_ended` leaves."""
        return any((self.out / name / file).exists() for file in ("result.json", "searched"))

    def ready(self) -> jobs_lib.Job | None:
        """The first job that can start."""
        taken = {job.name for job in self.running} | set(self.failed)
        for job in self.queue:
            if not self.done(job.name) and job.name not in taken and all(map(self.done, job.after)):
                return job
        return None

    def left(self) -> list[str]:
        """Names of what is not finished."""
        return [job.name for job in self.queue if not self.done(job.name)]

    def run(self) -> None:
        """Until all is done or the time is up."""
        with ThreadPoolExecutor(1) as packer:  # beside the trainings: the card does not wait for what CPUs do
            self._train(packer)
        for packed in self.packing.values():
            packed.result()  # raises what it raised

    def _train(self, packer):
        self._report(packer)
        while True:
            for job, (process, begin) in list(self.running.items()):
                if process.poll() is not None:
                    del self.running[job]
                    self._ended(job, process.returncode, time.monotonic() - begin)
                    self._report(packer)
            over = self.asked or time.monotonic() > self.end
            if over:
                for process, _ in self.running.values():
                    if process.poll() is None and not self.asked:
                        process.send_signal(signal.SIGTERM)
                self.asked = True
            late = self.end - time.monotonic() < LEAST
            while not over and not late and len(self.running) < self.args.together and (job := self.ready()):
                self._start(job)
            if not self.running:
                return
            time.sleep(0.1)

    def stop(self, *_):
        """At a signal: as if the time were up."""
        self.end = 0.0

    def _start(self, job):
        (self.out / job.name).mkdir(parents=True, exist_ok=True)
        share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / self.args.together:.2f}"}
        words = job.words(self.out, self.args.data, self.args.small)
        print(f"{job.name}: python -m bireal_jax.main {' '.join(words)}", flush=True)
        with open(self.out / job.name / "output", "a") as output:
            process = subprocess.Popen(  # of a session of its own: Ctrl-C reaches it as the one SIGTERM that is sent
                [*COMMAND, *words], stdout=output, stderr=subprocess.STDOUT,
                env=os.environ | share, start_new_session=True,
            )  # fmt: skip
        self.running[job] = process, time.monotonic()

    def _ended(self, job, status, seconds):
        workdir = self.out / job.name
        spent = workdir / "seconds"
        total = seconds + (float(spent.read_text()) if spent.exists() else 0.0)
        spent.write_text(f"{total:.1f}\n")
        if status:
            self.failed.append(job.name)
            last = (workdir / "output").read_text(errors="replace").strip().splitlines()[-3:]
            print(f"{job.name}: failed with status {status}:\n  " + "\n  ".join(last), flush=True)
            return
        if job.mode == "search" and not self.asked:
            (workdir / "searched").touch()
        print(f"{job.name}: {'finished' if self.done(job.name) else 'saved'} after {total:,.0f} s", flush=True)

    def _report(self, packer):
        """Has a row made for each training that has ended and has none."""
        there = {row["job"] for row in report.read(self.out / "rows.jsonl")} | self.packing.keys()
        there |= {job.name for job in self.running}
        for job in self.queue:
            if job.result and job.name not in there and (self.out / job.name / "result.json").exists():
                self.packing[job.name] = packer.submit(self._row, job)

    def _row(self, job):
        """Packs and adds a row, while there is time."""
        if not self.asked and self.end - time.monotonic() > LEAST:
            report.append(self.out / "rows.jsonl", [row(job, self.out / job.name, self.args)])


def digest(config: dict) -> str:
    """Of a stored config, without what may change between two starts of a run, and without its seed."""
    told = {key: value for key, value in _flat(config) if key not in FREE and key != "seed"}
    for key in ("init_from", "arch", "teacher.weights"):  # where they lie, not what they are
        told[key] = Path(str(told[key])).name
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def _flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def row(job: jobs_lib.Job, workdir: Path, args: argparse.Namespace) -> dict:
    """What came of a finished training; `packed` is None for networks that are real-valued or cannot be packed."""
    config, result = (places.read_json(workdir / name) for name in ("config.json", "result.json"))
    stages = config["stages"] or [{}]
    epochs = sum(float(stage.get("total_epochs", config["total_epochs"])) for stage in stages)
    return {
        "job": job.name, "digest": digest(config), "seed": config["seed"], "epochs": epochs,
        "seconds": round(float((workdir / "seconds").read_text())), "card": card(),
        "date": time.strftime("%Y-%m-%d"), "commit": commit(),
        "data": config["data"]["name"], "last": result.get("top1"), "best": result.get("best_top1"),
        "packed": packed(job, workdir, args),
    }  # fmt: skip


def packed(job: jobs_lib.Job, workdir: Path, args: argparse.Namespace) -> float | None:
    """Packs the best checkpoint, and gives the top-1 of the file on all test images in percent, by the engine."""
    words = [word for word in job.words(args.out, args.data, args.small) if not word.startswith("--mode")]
    done = subprocess.run(
        [*COMMAND, *words, "--mode=export"], capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if done.returncode:
        print(f"{job.name}: not packed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr, flush=True)
        return None
    from bireal_jax import data, runtime
    from bireal_jax.runtime import measure

    config = places.read_json(workdir / "config.json")["data"]
    kernels = None if runtime.available() else "reference"
    net = runtime.load(workdir / "net.safetensors", threads=len(os.sched_getaffinity(0)), kernels=kernels)
    test: Any = data.build(config["name"], args.data or config["dir"], config["image_size"]).eval
    cut = range(0, len(test), measure.BATCH)
    batches = ((test.images[i : i + measure.BATCH], test.labels[i : i + measure.BATCH]) for i in cut)
    return round(100 * measure.scores(net, batches)["top1"], 2)


def card() -> str:
    """The accelerator, by its driver's own command, or the number of CPU cores."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return f"{len(os.sched_getaffinity(0))} CPU cores"


def commit() -> str:
    """Of this checkout, or "unknown", as where there is no git."""
    try:
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return git.stdout.strip() or "unknown"


def main(argv=None) -> int:
    """Goes on with the queue. Returns 1 if a run failed."""
    args = parse(argv)
    try:
        queue = jobs_lib.chosen(args.only)
    except ValueError as error:
        raise BadInput(str(error)) from None
    if not args.small and not args.data:
        raise BadInput("--data is missing: CIFAR-10 as published, or an .npz; --small tries the queue on digits")
    campaign = Campaign(args, queue)
    if not args.list:
        before = {number: signal.signal(number, campaign.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            campaign.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    done, left = len(queue) - len(campaign.left()), campaign.left()
    print(f"{done} of {len(queue)} done; left: {', '.join(left) or 'nothing'}")
    print(report.table(report.read(args.out / "rows.jsonl")))
    if left and not campaign.failed:
        print("the same command continues")
    return int(bool(campaign.failed))


if __name__ == "__main__":
    with output.command():
        sys.exit(main())

"""The command as a user runs it, started quickly and often: what the trials have in common.

A server that has imported everything, but started neither JAX nor a thread, forks for each start: 4 s to the first
step instead of 15.
"""

import atexit
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["bireal_jax.main", "bireal_jax.training.train", "grain", "tensorboardX", "sklearn.datasets"]
)

# A moving average, and logs, saves and evaluations that do not fall together.
RECIPE = """
from pathlib import Path

from bireal_jax.main import load_recipe

def get_config():
    c = load_recipe(Path("configs/digits.py"))
    c.ema_decay = 0.9
    c.batch_size = 16
    c.log_steps, c.save_steps, c.eval_steps = 1, %d, 25
    c.stages = ({"name": "first", "total_steps": 40}, {"name": "second", "total_steps": 40, "optim.lr": 3e-4})[:%d]
    return c
"""
SMALL = ["--config.data.image_size=16", "--config.data.resize=18"]
STEPS = 40  # of each stage
NOISE = ("Traceback", "was never retrieved", "Future", "leaked")


def _command(arguments, output, prepare):
    """The console entry, in a session of its own."""
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["bireal-train", *arguments]
    if prepare:
        prepare()
    from bireal_jax import main

    try:
        main.run()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:  # what multiprocessing leaves out
        sys.stdout.flush()
        atexit._run_exitfuncs()


class Clock:
    """Seconds, of which those in which this process was suspended do not count."""

    def __init__(self):
        self.seconds, self._last = 0.0, time.monotonic()

    def sleep(self, seconds: float = 0.1) -> None:
        """For so long."""
        time.sleep(seconds)
        now = time.monotonic()
        self.seconds += min(now - self._last, 1.0)
        self._last = now


class Run:
    """A start of the command.

    Args:
      arguments: of the command line.
      output: the file for what it prints.
      prepare: called in the process first; it is pickled.
    """

    def __init__(self, arguments: list[str], output: Path, prepare: Callable | None = None):
        self.output = output
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("")
        # pyrefly: ignore[bad-argument-type]
        self.process = SERVER.Process(target=_command, args=(arguments, output, prepare))
        self.process.start()
        assert self.process.pid
        self.pid = self.process.pid

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def until(self, test: Callable[[], bool], seconds: float = 300.0) -> bool:
        """Waits until the test holds (True), or the run ends (False)."""
        clock = Clock()
        while not test():
            if not self.process.is_alive():
                return test()
            if clock.seconds > seconds:
                raise TimeoutError(self.text()[-1500:])
            clock.sleep(0.001)
        return True

    def first_step(self) -> tuple[str, int] | None:
        """(stage, step) of the first line of training, if there is one yet."""
        found = re.search(r"^ *(?!eval)(\w+) +(\d+)/\d+  loss", self.text(), re.MULTILINE)
        return (found[1], int(found[2])) if found else None

    def send(self, number: signal.Signals, group: bool = False) -> None:
        """A signal to the process, or to it and its workers; to nobody if it has ended."""
        if self.process.is_alive():
            (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, seconds: float = 900.0) -> int:
        """The exit status, negative for the signal that ended it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.text()[-1500:])
        return self.process.exitcode

    def children(self) -> list[int]:
        """The data workers."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        found = [int(pid) for task in tasks for pid in task.read_text().split()]
        return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


class Bench:
    """A place for runs and what they are compared with.

    Args:
      scratch: a directory. What an uninterrupted run gave is kept there from one trial to the next.
    """

    def __init__(self, scratch: Path):
        self.scratch = scratch
        self._place: Path | None = None
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "two_stages.py").write_text(RECIPE % (2, 2))
        (scratch / "files.py").write_text(RECIPE % (20, 1))
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(scratch / "cache"))

    def place(self) -> Path:
        """An empty directory for one trial; that of the trial before is removed."""
        if self._place:
            shutil.rmtree(self._place, ignore_errors=True)
        self._place = Path(tempfile.mkdtemp(prefix="trial_", dir=self.scratch))
        return self._place

    def start(self, workdir: Path, arguments: list[str] | None = None, prepare: Callable | None = None) -> Run:
        """Starts or continues the run in a workdir."""
        recipe = "files" if arguments and "--config.data.image_size=16" in arguments else "two_stages"
        command = [f"--config={self.scratch / recipe}.py", f"--workdir={workdir}", *(arguments or [])]
        return Run(command, (self._place or self.scratch) / f"{workdir.name}.output", prepare)

    def folder(self) -> list[str]:
        """Arguments for digits as JPEG files, which data workers decode."""
        place = self.scratch / "folder"
        if not place.exists():
            write_folder(place)
        return ["--config.data.name=folder", f"--config.data.dir={place}", *SMALL]

    def straight(self, name: str, arguments: list[str] | None = None) -> Path:
        """The workdir of an uninterrupted run."""
        workdir = self.scratch / f"straight_{name}"
        if not (workdir / "result.json").exists():
            run = self.start(workdir, arguments)
            if run.wait() != 0:
                raise RuntimeError(run.text())
        return workdir

    def finish(self, workdir: Path, straight: Path, arguments: list[str] | None = None) -> str:
        """Continues a run to its end: "" if it gives the bits of the straight one, or else what is wrong."""
        run = self.start(workdir, arguments)
        if run.wait() != 0:
            return f"status {run.process.exitcode}: {run.text()[-1500:]}"
        return differences(workdir, straight)


def write_folder(place: Path) -> None:
    """300 digits as JPEG files of 16 pixels: train/ and val/."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:300], digits.target, strict=False)):
        path = place / ("val" if i % 6 == 5 else "train") / str(label) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(image * 15)).resize((16, 16)).save(path, quality=95)


def differences(workdir: Path, straight: Path) -> str:
    """Of two finished runs: metrics, result, and every array of the last checkpoint of every stage."""
    odd = [n for n in ("metrics.jsonl", "result.json") if (workdir / n).read_bytes() != (straight / n).read_bytes()]
    for place in sorted(p.relative_to(straight) for p in straight.glob("stage_*/checkpoints")):
        ours, theirs = (steps(root / place)[-1] for root in (workdir, straight))
        if ours != theirs or leaves(workdir / place / str(ours)) != leaves(straight / place / str(theirs)):
            odd.append(f"{place}/{ours}")
    return f"{', '.join(odd)} differ" if odd else ""


def steps(place: Path) -> list[int]:
    """The finished checkpoints in a directory."""
    return sorted(int(path.name) for path in place.glob("*") if path.name.isdigit())


def leaves(checkpoint: Path) -> dict[str, Any]:
    """The digest of every array of a checkpoint."""
    return json.loads((checkpoint / "digest" / "metadata").read_text())["record"]["leaves"]


def newest(workdir: Path) -> tuple[str, int]:
    """(stage, step) of the newest finished checkpoint: of the second stage, or else of the first."""
    for index, name in ((1, "second"), (0, "first")):
        if found := steps(workdir / f"stage_{index}" / "checkpoints"):
            return name, found[-1]
    return "first", 0


def following(stage: str, step: int) -> tuple[str, int] | None:
    """(stage, step) of the step after this one, None after the last."""
    if step < STEPS:
        return stage, step + 1
    return ("second", 1) if stage == "first" else None


def message(run: Run) -> str:
    """ "" if what a run printed ends with one error of at most three lines, or else what is wrong with it."""
    text = run.text()
    if any(word in text for word in NOISE):
        return f"noise: {text[-1500:]}"
    if run.process.exitcode != 2 or "error: " not in text:
        return f"status {run.process.exitcode}: {text[-1500:]}"
    lines = text[text.rindex("error: ") :].strip().splitlines()
    return "" if len(lines) <= 3 else f"{len(lines)} lines: {lines}"

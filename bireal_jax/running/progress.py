"""What a person sees while a run goes on: a bar in a terminal, lines in a log file, nothing on the other hosts."""

import contextlib
import sys
import time
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bireal_jax import output


def say(*words) -> None:
    """A line for the user, from the first host alone. That nobody can read it ends nothing."""
    if jax.process_index() == 0:
        with output.steady():
            print(*words, flush=True)


def verdict(ok: bool, what: str, said: str) -> None:
    """OK or FIX for one of several checks."""
    say(f"{'OK' if ok else 'FIX':<4} {what:<17} {said}")


class Bar:
    """Progress of one stage from step `start` to `total`, with the time that is left.

    In a terminal a bar is kept below the lines; elsewhere the lines carry the time that is left themselves.
    """

    def __init__(self, name: str, start: int, total: int):
        self.name, self.total = name, total
        self._bar = None
        shown: Any = output.Steady(sys.stdout)
        if jax.process_index() == 0 and shown.isatty():
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console(file=shown), refresh_per_second=4)
            self._task = self._bar.add_task(name, total=total, completed=start)

        self.restart(start)

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()

    def restart(self, step: int) -> None:
        """The time that is left is estimated from the steps after this one."""
        self.start, self.began = step, time.monotonic()

    def advance(self, step: int) -> None:
        """Training has finished `step`."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def line(self, step: int, split: str, values: dict[str, float], timing: dict[str, float] | None = None) -> None:
        """A line of numbers for `step`."""
        figures = values | (timing or {})
        if figures.get("input_wait", 0) < 0.2:  # only news when it holds training up
            figures.pop("input_wait", None)
        if split == "train":
            figures.pop("top5", None)
        words = [f"{self.name if split == 'train' else split:>5} {step:>{len(str(self.total))}}/{self.total}"]
        words += [FORMATS[name].format(value) for name, value in figures.items() if name in FORMATS]
        if not self._bar and timing and step > self.start:
            left = (time.monotonic() - self.began) / (step - self.start) * (self.total - step)
            words.append(f"left {duration(left)}")
        if self._bar:
            self._bar.console.print("  ".join(words), highlight=False)
        else:
            say("  ".join(words))


class Clock:
    """Images per second, and the share of the time spent waiting for input, since it was last read."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.restart()

    def restart(self):
        """Forgets what was before, such as an evaluation."""
        self.steps, self.waited, self.began = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self):
        """Time in here is waiting for input."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def read(self) -> dict[str, float]:
        """The figures, none if no step was done; starts anew."""
        if not self.steps:
            return {}
        seconds = time.monotonic() - self.began
        figures = {"images_per_second": self.steps * self.batch_size / seconds, "input_wait": self.waited / seconds}
        self.restart()
        return figures


FORMATS = {
    "loss": "loss {:.4f}", "top1": "top-1 {:6.2f} %", "top5": "top-5 {:6.2f} %", "rmse": "RMSE {:.4f} m",
    "delta1": "delta1 {:6.2f} %", "flipped": "flipped {:.1%}",
    "learning_rate": "lr {:.1e}", "images_per_second": "{:,.0f} images/s", "input_wait": "input wait {:.0%}",
    "broken": "{} broken",
}  # fmt: skip


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

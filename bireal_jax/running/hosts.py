"""Several processes, each with devices of its own, that train one network: how they find and watch each other."""

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import jax

from bireal_jax.errors import BadInput, first_line
from bireal_jax.running.preempt import leave

HEARTBEAT_SECONDS = 30  # after so many without a sign of life JAX ends all processes, if `Watch` has not
TICK = 0.5  # seconds between two looks
SILENT_SECONDS = 10.0  # a host that was heard of, and then not for so long, is dead


def join(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> bool:
    """Joins the other processes of the run, if there are any. To be called before JAX is used.

    TPU pods, SLURM and Open MPI are recognized; elsewhere the arguments say it. All processes must share the workdir.

    Args:
      coordinator: HOST:PORT at which process 0 can be reached.
      num_processes: how many there are.
      process_id: which one this is, from 0 on.

    Returns:
      Whether there are several processes, or arguments that say so.

    Raises:
      BadInput: one of the arguments is missing, or the others were not found.
    """
    given = [bool(coordinator), num_processes > 0, process_id >= 0]
    if any(given) != all(given) or (all(given) and (process_id >= num_processes or ":" not in coordinator)):
        raise BadInput(
            f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id} do not fit "
            "together\nevery process needs all three: HOST:PORT of process 0, how many there are, and which one it is"
        )
    if not any(given) and not _in_a_cluster():
        return False
    jax.config.update("jax_enable_preemption_service", False)  # its signal handler would replace ours
    ctypes.CDLL(None).signal(signal.SIGABRT, _wait_for_the_name)
    count, index = (num_processes, process_id) if coordinator else (None, None)
    if coordinator:
        print(f"process {process_id} of {num_processes}: meeting the others at {coordinator} ...", flush=True)
    try:
        jax.distributed.initialize(coordinator or None, count, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        if not coordinator and find_spec("libtpu"):  # one TPU machine, and no pod
            return False
        raise BadInput(f"the processes of this run did not find each other: {first_line(error)}") from error
    return True


def _in_a_cluster():
    tasks = max(int(os.environ.get(name) or 0) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return tasks > 1 or find_spec("libtpu") is not None


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _wait_for_the_name(_):
    """What a thread of JAX does before it aborts the process since another is gone, whose name `Watch` finds out.

    A handler of Python's would not do: it runs once this one has returned, and then there is no process any more.
    """
    time.sleep(SILENT_SECONDS + 2)


class Watch:
    """A thread that ends the process with one line when the run is stuck, or when another host is dead.

    Used as a context manager. Every host keeps a file in `place` fresh, which all share: so each sees who is silent,
    and, when nothing moves any more, who is the one that got least far. Time is counted in ticks of the thread, so
    that a process that was suspended does not find itself late.

    Args:
      place: a directory, below the workdir.
      seconds: without a `beat` after the first one, the run is stuck; 0: it may take as long as it likes.
      index, count: which of how many hosts this is.
      silent_seconds: a host that was heard of, and then not for so long, is dead.
    """

    def __init__(
        self, place: Path, seconds: float, index: int = 0, count: int = 1, silent_seconds: float = SILENT_SECONDS
    ):
        self.place, self.seconds, self.index, self.count = place, seconds, index, count
        self.silent_seconds, self.beats, self.step = silent_seconds, 0, 0
        self._over = threading.Event()

    def __enter__(self):
        if self.seconds or self.count > 1:
            threading.Thread(target=self._run, name="watch", daemon=True).start()
        return self

    def __exit__(self, kind, *_):
        if self.count > 1 and kind and issubclass(kind, jax.errors.JaxRuntimeError):
            time.sleep(self.silent_seconds + 2)  # another host is dead, perhaps: then this does not return
        self._over.set()
        if self.count > 1 and kind is None:
            self._write("done")

    def beat(self, step: int) -> None:
        """The main thread is alive, at this step."""
        self.step = step
        self.beats += 1

    def _write(self, tick):
        with contextlib.suppress(OSError):  # a full disk is for the checkpoints to report
            self.place.mkdir(parents=True, exist_ok=True)
            scratch = self.place / f"{self.index}.tmp"
            scratch.write_text(f"{tick} {self.beats} {self.step} {socket.gethostname()}")
            scratch.replace(self.place / str(self.index))

    def _others(self):
        """index -> (tick, beats, step, name) of every other host that has written."""
        found = {}
        for index in set(range(self.count)) - {self.index}:
            with contextlib.suppress(OSError, ValueError):
                tick, beats, step, name = (self.place / str(index)).read_text().split()
                found[index] = (tick, int(beats), int(step), name)
        return found

    def _run(self):
        seen, silent, last, late = {}, {}, 0, 0.0
        tick = 0
        while not self._over.wait(TICK):
            tick += 1
            others = {}
            if self.count > 1:
                self._write(tick)
                others = self._others()
            for index, (mark, _, step, name) in others.items():
                heard = index in seen and mark != seen[index]
                if heard or mark == "done":
                    silent[index] = 0.0
                elif index in silent:  # once heard of, not a file of an earlier start
                    silent[index] += TICK
                    if silent[index] >= self.silent_seconds and not self._over.is_set():
                        end = (
                            f"has not been heard of for {self.silent_seconds:g} s and seems dead; last at step {step:,}"
                        )
                        leave(1, f"host {index} ({name}) {end}; the same command continues from the last checkpoint")
                seen[index] = mark
            late = late + TICK if self.beats == last and last else 0.0
            last = self.beats
            if self.seconds and late >= self.seconds and not self._over.is_set():
                everyone = others | {self.index: ("", self.beats, self.step, socket.gethostname())}
                index = min(everyone, key=lambda i: (everyone[i][1], i))
                _, _, step, name = everyone[index]
                where = f"host {index} ({name}) is stuck after step {step:,}: no progress for {self.seconds:g} s"
                leave(1, f"{where}; the same command continues from the last checkpoint")

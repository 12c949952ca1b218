"""Preemption: a signal asks a run to save where it is and to leave, as clusters do before they take a machine away.

Standard library only, so that the command can listen before JAX is imported.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any

from bireal_jax.errors import BadInput

BEGIN = {"train": "before the first step", "search": "in the search"}  # where a mode stands before it says more
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(Exception):
    """A run was asked to stop, and all that it had done is saved. The message says where it stands."""


class Signals:
    """Used as a context manager, turns SIGTERM, Ctrl-C and a closed terminal from the process's end into a request.

    While `disposable` is True, the process leaves at once with status 0: nothing would be lost. A thread sees to that,
    since Python runs no handler while XLA compiles. A second Ctrl-C raises KeyboardInterrupt. Outside the context
    nothing changes: a library leaves the signals of its caller alone.

    Attributes:
      asked: whether a signal has come.
      disposable: whether the process holds nothing that is not on the disk.
      where: it stands then, in words.
    """

    def __init__(self, where: str = BEGIN["train"]):
        self.asked, self.disposable, self.where = False, False, where
        self._noted = False  # by the handler itself, which comes after the thread or before it

    def __enter__(self):
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self.disposable = True
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS if not _under_nohup(number)}
        self._fd_before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_):
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._wake.close()  # ends the thread

    def _note(self, number, _):
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self._noted = True

    def _listen(self):
        while received := self._woken.recv(1):
            if received[0] in SIGNALS:
                self.asked = True
                if self.disposable:
                    leave(0, f"stopped {self.where}; nothing is lost, and the same command continues")
        self._woken.close()


def _under_nohup(number):
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def leave(status: int, message: str) -> None:
    """Ends the process from any thread, at once, with one line and without a wait for other threads or hosts."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it, perhaps
        print(message, file=sys.stderr if status else sys.stdout, flush=True)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)


def _why_dead(message):
    """What ended a worker process, from Grain's message: its exit status, or the number of a signal behind a minus."""
    if "exit code -7" in message:  # SIGBUS: a page of a file in memory that could not be had
        size = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
        return (
            f"a data worker process ran out of shared memory, of which /dev/shm has {size / 1e6:,.0f} MB\n"
            "enlarge it (docker run --shm-size=8g), or use fewer config.data.workers; 0 needs none"
        )
    if "exit code -" in message:
        return (
            "a data worker process was killed, for want of memory perhaps\n"
            "start the same command again, with a lower config.data.workers if memory is short"
        )
    return "a data worker process ended before its work, and said why above\nconfig.data.workers=0 does without them"


def unbroken(make: Callable[..., Iterable[Any]], start: int, asked: Callable[[], bool]) -> Generator[Any, None, None]:
    """The batches of make(start), also when a signal to the whole process group has killed the worker processes.

    Args:
      make: (step, **overrides of the loading arguments) -> batches from that step on.
      start: the first step.
      asked: whether the run was asked to stop; then this process decodes what is still needed.

    Raises:
      BadInput: a worker process died, and no signal explains it.
    """
    step, batches = start, iter(make(start))
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):  # Grain has no error class of its own for it
                raise
            if not asked():
                raise BadInput(_why_dead(str(error))) from error
            batches = iter(make(step, workers=0))
            continue
        yield batch
        step += 1

"""What a command prints. Nobody need read it: a pipe that breaks or a terminal that is closed ends no work."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

from bireal_jax.errors import BadInput


class Steady:
    """A text stream that takes every character, and goes on when the one that it writes to is gone.

    Args:
      stream: the one below; None where the process was started without it.

    Attributes:
      lost: the error since which nothing is written any more, or None.
    """

    def __init__(self, stream: Any):
        self.stream = open(os.devnull, "w") if stream is None else stream
        self.lost: OSError | ValueError | None = None

    def write(self, text: str, /) -> int:
        """What the encoding lacks is written as an escape, such as "\\xfc"."""
        self._try(self._write, text)
        return len(text)

    def flush(self) -> None:
        """Of the stream below."""
        self._try(self.stream.flush)

    def isatty(self) -> bool:
        """Whether a person may look at it."""
        return bool(self._try(self.stream.isatty))

    def __getattr__(self, name: str) -> Any:
        """All else is that of the stream below."""
        return getattr(self.stream, name)

    def _write(self, text):
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _try(self, action, *arguments):
        if self.lost:
            return None
        try:
            return action(*arguments)
        except (OSError, ValueError) as error:  # a ValueError says that the stream is closed
            self.lost = error
        with contextlib.suppress(OSError, ValueError):  # or Python writes the rest again at its exit, and fails
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())
        return None


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Within the context standard output and error are `Steady`, also where the process was started without them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get this number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Steady, before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def deliver(text: str) -> bool:
    """Prints what a command was asked for.

    Returns:
      Whether somebody still reads: not behind `| head`, where the command may end.

    Raises:
      BadInput: it cannot be written, as to a full disk.
    """
    print(text, flush=True)
    lost = getattr(sys.stdout, "lost", None)
    if isinstance(lost, OSError) and lost.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
        raise BadInput(f"standard output cannot be written: {lost.strerror}\nfree some space, or write elsewhere")
    return lost is None


@contextlib.contextmanager
def command() -> Iterator[None]:
    """What the small commands share: output that is `steady`, and status 2 with one message for a BadInput."""
    with steady():
        try:
            yield
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

"""Weights of which an option must say what is meant. How it is written depends on who asked: Python, or a shell."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from bireal_jax.errors import BadInput


class Choice(BadInput):
    """A file of weights that can be read with `key` or `drop` of `importers.load`. It says so in Python.

    Args:
      said: what is in the file, and last what the option is for.
      key, drop: the option.
    """

    def __init__(self, said: str, key: str = "", drop: Sequence[str] = ()):
        super().__init__(f"{said}: {f'{key=}' if key else f'drop={[*drop]}'}")
        self.said, self.key, self.drop = said, key, tuple(drop)

    def of(self, path: str | Path) -> "Choice":
        """The same, of the file at this path."""
        return Choice(f"{path}: {self.said}", self.key, self.drop)

    def command(
        self, model: str, weights: Path, out: Path, flags: Sequence[str] = (), key: str = "", drop: Sequence[str] = ()
    ) -> str:
        """The same, with the whole command in the place of the option.

        Args:
          model, weights, out: its arguments.
          flags: it has besides.
          key, drop: that were given before, and go on to be.
        """
        options = [f"--model={model}", *flags, *([f"--key={self.key or key}"] if self.key or key else [])]
        options += [f"--drop={name}" for name in (*drop, *self.drop)]
        return f"{self.said}: {shlex.join(['python', '-m', 'bireal_jax.importers', *options, str(weights), str(out)])}"

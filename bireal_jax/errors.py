"""The one error that a user can mend."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class BadInput(ValueError):
    """What the user gave cannot work. The message names the value, the limit and the way out.

    At most three lines. `bireal_jax.main` prints it without a traceback and exits with status 2; code that calls the
    package as a library catches it as a `ValueError`.
    """


def lookup(table, name, what):
    """Returns table[name].

    Args:
      table: a registry, a dict from name to row.
      name: the row asked for.
      what: what the rows are, for the message ("model", "activation derivative").

    Raises:
      BadInput: `name` is no row of the table; the message says which known name is close, and lists them.
    """
    if name not in table:
        close = difflib.get_close_matches(name, table, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise BadInput(f"unknown {what} {name!r}; {hint}known: {', '.join(sorted(table))}")
    return table[name]


def kept(table, ours, name, field):
    """Raises BadInput if a recipe has put another row in the place of one that came with the package.

    The weights of a run are used without its recipe, too, and the same name would mean another thing then, unsaid.

    Args:
      table: a registry, as it is now.
      ours: as it was before a recipe could add a row.
      name: the row asked for.
      field: what names it, for the message ("config.model.act").
    """
    if name in ours and table.get(name) is not ours[name]:
        raise BadInput(
            f"{field}={name!r} is a row of the package, and a recipe has put another in its place\n"
            f"register it under a name of its own, such as 'my_{name}': where the run is used without the recipe, "
            f"{name!r} is the package's"
        )


def some(names: Sequence[Any], most: int = 10) -> str:
    """Names for a message: the first ones, and where there are more, how many there are."""
    return ", ".join(map(str, names[:most])) + (f", ... ({len(names)})" if names[most:] else "")


def first_line(error: BaseException) -> str:
    """What an error says, cut behind a word to one line that fits a message."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 300 else f"{line[:300].rsplit(' ', 1)[0]} ..."


def check_compiled(library: Any, path: Any, names: Iterable[str]) -> None:
    """Raises BadInput if a compiled library lacks functions that the Python beside it calls, as after a `git pull`."""
    missing = [name for name in names if not hasattr(library, name)]
    if missing:
        raise BadInput(
            f"{path} is older than the Python beside it: it has no {missing[0]}\n"
            "run `pip install -e .` in the checkout again, as after every `git pull`"
        )

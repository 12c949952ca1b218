"""Paths that a user names: what no file system can hold, or what is none of ours, is said before anything is begun."""

import contextlib
import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

from bireal_jax.errors import BadInput

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # with one slash as well, which is what pathlib makes of two
LONGEST_NAME = 255  # bytes, of Linux and macOS
LONGEST_PATH = 3500  # bytes: below the 4,096 of Linux, since checkpoints lie deeper


def local(named: str | Path, what: str, kind: str = "") -> Path:
    """The path that a user named, with `~` for the home directory, which a shell leaves alone behind a `=`.

    URLs are refused, not written to: checkpoints could go there, but locks, logs and whole-or-nothing files could not,
    and half a run elsewhere is none.

    Args:
      named: what was given.
      what: the flag or field, for the message.
      kind: "folder" or "file": what is there, if anything is, must be one.

    Raises:
      BadInput: it can be no path, or nothing that can be read or made.
    """
    text = os.fspath(named)
    given = f"{what}={text}" if len(text) < 200 else f"{what}={text[:60]}..."
    if not text.strip():
        raise BadInput(f"{what} is empty; name a path, or leave it out")
    if URL.match(text):
        raise BadInput(
            f"{given} is a URL, and files are read and written on this machine alone\n"
            "mount it (gcsfuse mounts gs://) and name the folder where it is mounted, or name a local path"
        )
    try:
        path = Path(text).expanduser()
        whole = os.fsencode(path.absolute())
        if "\0" in text:
            raise ValueError("a name has no NUL")
        there = os.path.exists(path)
    except RuntimeError:
        raise BadInput(f"{given}: there is no home directory here, or no such user; write the whole path") from None
    except (ValueError, OSError) as error:  # a character that is none, or a working directory that is gone
        raise BadInput(f"{given!r} can be no path: {error}") from None
    if len(whole) > LONGEST_PATH or max(map(len, whole.split(b"/"))) > LONGEST_NAME:
        raise BadInput(f"{given} is too long: a name has at most {LONGEST_NAME} bytes, a path {LONGEST_PATH}")
    if not there:
        _can_be_made(path, given, what)
        if text != text.strip():
            raise BadInput(f"{what}={text!r} begins or ends with a space, and there is no such path; leave it out")
    if kind and there and path.is_dir() != (kind == "folder"):
        raise BadInput(f"{given} is a {'folder' if path.is_dir() else 'file'}; it must be a {kind}")
    return path


def missing(named: str | Path, what: str = "config.data.dir", suffixes: tuple[str, ...] = ("",)) -> str:
    """How messages call a path that is not there: as it was named and, where that is relative, whole; a close name.

    Args:
      named: the path.
      what: it was given as.
      suffixes: of what can be meant, with "" for a folder.
    """
    path = Path(named)
    said = f"{what}={str(named)!r}"
    if not str(named):
        return said
    if not path.is_absolute():
        said += f", from here {path.absolute()}"
    return said + near(path, suffixes)


def near(named: str | Path, suffixes: tuple[str, ...] | None = None) -> str:
    """What is said of a path that is not there, where something beside it has a close name; or "".

    Args:
      named: the path.
      suffixes: as of `missing`; None: whatever is there.
    """
    path = Path(named)
    with contextlib.suppress(OSError, ValueError):
        beside = path.absolute().parent.iterdir()
        shown = (place for place in beside if not place.name.startswith("."))
        there = [place for place in shown if suffixes is None or _can_be_meant(place, suffixes)]
        stems = {_stem(place.name, suffixes): place.name for place in there}
        if not path.exists() and (close := difflib.get_close_matches(_stem(path.name, suffixes), stems, 1)):
            return f" (did you mean {path.parent / stems[close[0]]}?)"
    return ""


def _stem(name, suffixes):
    """A name without a suffix that all have that can be meant, which is no likeness."""
    return name.removesuffix(next((end for end in suffixes or () if end and name.endswith(end)), ""))


def _can_be_meant(place, suffixes):
    return "" in suffixes if place.is_dir() else place.name.lower().endswith(tuple(filter(None, suffixes)))


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
      ValueError: it is damaged.
      OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("brackets within brackets without an end") from None


def write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, folders above it included: a name never stands for half of what was written.

    Raises:
      OSError: it cannot be written; a file that is there stays as it was.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # of this process: another one may write it, too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # nor for bytes that a loss of power took
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _can_be_made(path, given, what):
    """Raises BadInput for what is in the way of a path that is not there."""
    for part in (path, *path.parents):
        if part.is_symlink() and not os.path.exists(part):
            raise BadInput(f"{given}: {part} is a link to {os.readlink(part)}, which is not there\nmend the link")
    try:
        os.stat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BadInput(f"{given} cannot be reached: {error.strerror}\nchoose another {what}") from None


def workdir(named: str | Path, what: str = "--workdir") -> Path:
    """The same for the folder of a run, whose path must also mean one thing to Python, Orbax and TensorStore.

    Raises:
      BadInput: as `local`; no UTF-8, which is all that TensorStore takes; or with a [, which is a pattern to Orbax: it
        would write a checkpoint that nobody can read.
    """
    path = local(named, what, "folder")
    whole = path.absolute()
    try:
        same = str(whole).encode() == os.fsencode(whole)
    except UnicodeEncodeError:
        same = False
    if not same:
        raise BadInput(
            f"{what}={str(named)!a} lies at a path that is not UTF-8, and checkpoints need it\n"
            "name another one; where the locale is not UTF-8, start with PYTHONUTF8=1 in the environment"
        )
    if "[" in str(whole):
        raise BadInput(f"{what}={named} lies at a path with a [, which checkpoints cannot have; name another one")
    return path

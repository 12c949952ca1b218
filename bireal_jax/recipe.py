"""Recipes: which one a command line names, and what it says."""

import contextlib
import difflib
import inspect
import itertools
import json
import runpy
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bireal_jax import places
from bireal_jax.config import check_field, default, flat, unheard
from bireal_jax.errors import BadInput, lookup

PACKAGE = Path(__file__).parent
# The package's own: within it where it is installed, beside it in a checkout.
INSTALLED = PACKAGE / "recipes" / "configs"
OWN = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "configs"
HOW = "for a first run: --config=configs/digits.py (--help shows more)"


def named(argv: list[str]) -> tuple[list[str], str, str]:
    """The recipe that a command line names.

    Args:
      argv: the command line.

    Returns:
      The command line without it, the path of its file, "" where none is named, and the variant, or "".

    Raises:
      BadInput: --config is empty, or can be no path.
    """
    for i, (arg, after) in enumerate(itertools.pairwise([*argv, ""])):
        name, given, value = arg.lstrip("-").partition("=")
        if i and name == "config" and arg.startswith("-"):
            file, _, variant = (value if given else after).partition(":")
            if not file:
                raise BadInput(f"--config is empty; {HOW}")
            return argv[:i] + argv[i + (1 if given else 2) :], str(find(file)), variant
    return argv, "", ""


def missing(fields: Sequence[str], workdir: str = "") -> BadInput:
    """The error for a command line without --config.

    Args:
      fields: that it sets, as "optim.lr". A mistyped one is named, and whoever has images gets a recipe for these.
      workdir: that it names, or "".
    """
    lines, own = [], {*fields} & {"data.dir", "data.name", "init_from"}
    for field in fields:
        try:
            check_field(field, default())
        except BadInput as error:
            lines.append(str(error))
    changed = f", the recipe that --config.{fields[0]} changes" if fields else ""
    how = "for images of your own: --config=configs/finetune.py (more: the docs, page 'Your images')" if own else HOW
    if workdir and (Path(workdir) / "config.json").exists():
        how = f"the run in {workdir} goes on by the command that it was started with"
    return BadInput("\n".join([*lines[:1], f"--config is missing{changed}; {how}"]))


def check_rest(words: Sequence[str]) -> None:
    """Raises BadInput for words of a command line that are no flags; a folder is that of the images."""
    for word in words:
        meant = f"--config.data.dir={shlex.quote(word)}" if Path(word).is_dir() else "--FLAG=VALUE"
        raise BadInput(f"unexpected argument {word!r}; write {meant}")


def find(name: str) -> Path:
    """The file of a recipe: `digits` and `configs/digits.py` are the package's own, where there is no such file.

    Raises:
      BadInput: it can be no path.
    """
    path = places.local(name, "--config", "" if name.isidentifier() else "file")
    own = OWN / f"{path.stem}.py"
    if not path.is_file() and str(path.parent) in (".", "configs") and path.suffix in ("", ".py") and own.is_file():
        return own
    return path


def execute(path: Path) -> dict[str, Any]:
    """The names that a file has when it was run. `from configs import digits` works in it, from any folder."""
    if str(OWN.parent) not in sys.path:
        sys.path.append(str(OWN.parent))
    return runpy.run_path(str(path))


def load_recipe(path: Path, variant: str = "") -> ConfigDict:
    """What get_config() of a recipe file returns, or get_config(variant). It is run as of `execute`.

    Raises:
      BadInput: no such file, no such variant, or it fails; the message has file, line and reason.
    """
    if not path.is_file():
        known = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        if str(path.parent) in (".", "configs"):  # where the package's own are found, too
            known = sorted({*known, *(str(path.with_name(own.name)) for own in OWN.glob("*.py"))})
        close = difflib.get_close_matches(str(path), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"recipes there: {', '.join(known[:8]) or 'none'}"
        raise BadInput(f"no recipe {path}; {hint}")
    try:
        names = execute(path)
        if "get_config" not in names:
            raise BadInput(f"{path} has no get_config(); see configs/digits.py for a recipe")
        if variant and not inspect.signature(names["get_config"]).parameters:
            raise BadInput(f"{path} has no variants; leave out :{variant}")
        if variant and "VARIANTS" in names:
            lookup({name: row for name, row in names["VARIANTS"].items() if name}, variant, f"variant of {path}")
        config = names["get_config"](*filter(None, [variant]))
        if not isinstance(config, ConfigDict) or set(config) != set(default()):
            raise BadInput(
                f"{path}: get_config() must return the config that it got from config.default() or from another recipe"
                + ("; it returns nothing: end it with `return c`" if config is None else "")
            )
        return config
    except BadInput:
        raise
    except SyntaxError as error:
        raise BadInput(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except Exception as error:  # a recipe is the user's code: it can raise anything
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}, line {lines[-1] if lines else '?'}: "
        if field := _mistyped(error):
            check_field(field, default(), where)
        raise BadInput(where + " ".join(str(error).split())) from error


def _mistyped(error):
    """The field, as "optim.rl", that a recipe means where there is none and ml_collections raises this, or ""."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    section, name = frame.f_locals.get("self"), frame.f_locals.get("attribute", frame.f_locals.get("key"))
    if not isinstance(section, ConfigDict) or not isinstance(name, str) or name in section:
        return ""
    return next((prefix + name for prefix, fields in _sections(default()) if set(fields) == set(section)), "")


def _sections(config, prefix=""):
    yield prefix, config
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _sections(value, f"{prefix}{name}.")


def repeating(config: ConfigDict, file: str = "") -> list[str]:
    """The words of a command line that give a config: a recipe, and every field in which it is another.

    Args:
      config: of a run. It does not know its recipe: that of the package is taken which needs the fewest words.
      file: the recipe, where it is known.

    Raises:
      BadInput: that recipe is not there, or fails.
    """
    rows = [(Path(file), "", file)] if file else [(path, v, f"configs/{path.name}") for path, v in _variants()]
    found = []
    for path, variant, called in rows:
        words = shlex.quote(":".join(filter(None, [f"--config={called}", variant])))
        found.append([words, *_set(load_recipe(path, variant), config)])
    return min(found, key=len)


def _variants():
    """Every recipe of the package."""
    for path in sorted(OWN.glob("*.py")):
        if "get_config" in (names := execute(path)):
            yield from ((path, variant) for variant in names.get("VARIANTS", ("",)))


def _set(base, config):
    """What sets the fields of `base` in which it is not `config`, but for those that no stage would hear of."""
    plain = lambda value: json.loads(json.dumps(value, sort_keys=True))  # noqa: E731  a list is a tuple there
    wanted, found = flat(config.to_dict()), []
    for field, value in flat(base.to_dict()).items():
        if plain(value) == plain(wanted[field]):
            continue
        with contextlib.suppress(BadInput):
            unheard(config, [field])
            found.append(shlex.quote(f"--config.{field}={wanted[field]}"))
    return found

"""A config as a workdir keeps it: as text, read again when fields are new, compared."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bireal_jax import config as config_lib
from bireal_jax import places
from bireal_jax.data import short_side
from bireal_jax.errors import BadInput, first_line

# Fields that may change between two starts of a run: where things lie and how fast they come, not what is computed.
FREE = (
    "data.dir", "data.threads", "data.workers", "keep_last", "profile_steps", "search.together", "skip_nonfinite",
    "watchdog_seconds",
)  # fmt: skip


def to_json(config: ConfigDict) -> str:
    """The config as text, sorted, one field a line."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n"


def filled(stored: Any, where: str) -> ConfigDict:
    """The config that `to_json` wrote, parsed: what it lacks is newer than it is, and has its default.

    Raises:
      BadInput: a field that there is no more, or a value of another type.
    """
    config = config_lib.default()
    try:
        config.update(_filled(stored, config.to_dict()))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise BadInput(
            f"{where} cannot be used: {first_line(error)}\nanother version of bireal_jax has written it; use that one"
        ) from None
    return config


def _filled(stored, defaults, prefix=""):
    if not isinstance(stored, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'all of it'} is {stored!r}, no fields")
    for field in stored:
        if field not in defaults:
            raise ValueError(f"no field config.{prefix}{field}")
    return {
        field: _filled(stored.get(field, {}), value, f"{prefix}{field}.")
        if isinstance(value, dict)
        else stored.get(field, value)
        for field, value in defaults.items()
    }


def differences(old: str, new: str, where: str = "the stored config") -> list[str]:
    """Fields in which two results of `to_json` differ, as "optim.lr 0.001 -> 0.01", without FREE ones.

    What the old one lacks has its default. Raises BadInput for a field that there is no more.
    """
    return apart(json.loads(to_json(filled(json.loads(old), where))), json.loads(new))


def apart(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Fields in which two trees of the same fields differ, without FREE ones."""
    before, after = (_with_resize(config_lib.flat(tree)) for tree in (before, after))
    fields = sorted(k for k in before | after if before.get(k) != after.get(k) and k not in FREE)
    return [f"{k} {before.get(k, '(none)')} -> {after.get(k, '(none)')}" for k in fields]


def _with_resize(fields):
    """A resize of 0 is what it stands for, unless stages have images of several sizes."""
    sizes = {value for field, value in fields.items() if field.endswith("data.image_size")}
    if len(sizes) != 1:
        return fields
    return fields | {"data.resize": short_side(sizes.pop(), fields.get("data.resize", 0))}


def changed_network(workdir: Path) -> str:
    """What to do where weights of a run do not fit the network, if that is a row which a recipe registers, or ""."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if file := places.read_json(workdir / "registered.json").get("model.name"):
            return (
                f"the network is a row that {file} registers: it is another now than when the run was trained\n"
                "bring the recipe back to what it was, or train what it says now in another --workdir"
            )
    return ""

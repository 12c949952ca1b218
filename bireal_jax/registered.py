"""What a recipe has registered: rows that it adds to the tables of networks, estimators and data sets.

It adds some, and overwrites none: `errors.kept` sees to that wherever a row is taken.
A run that uses one writes down which file has it (`fields`), and whoever uses the run elsewhere is told (`check`).
"""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bireal_jax import config as config_lib
from bireal_jax import data, models
from bireal_jax.errors import BadInput
from bireal_jax.running import known

# field of config -> rows that it can name
TABLES = {f"model.{name}": rows for name, rows in models.TABLES.items()} | {"data.name": lambda: data.DATASETS}
OURS = {f"model.{name}": rows for name, rows in models.OURS.items()} | {"data.name": data.OURS}
PACKAGES = ("bireal_jax", "jax", "flax", "builtins")  # rows whose code is in none of these are a recipe's


def fields(configs: list[ConfigDict], recipe: str = "") -> dict[str, str]:
    """Fields that name what a recipe has registered, in any stage, and the file that does.

    Args:
      configs: of the stages.
      recipe: the file that the run was started with, which registers them; "": the file of their code is named.
    """
    found = {}
    for field, rows in TABLES.items():
        for name in {config_lib.get(c, field) for c in configs}:
            if name not in OURS[field]:
                file = recipe or _file(rows().get(name))
                found[field] = str(Path(file).absolute()) if file else ""
    return found


def _file(row) -> str:
    """Of the code of a row; "" where it is of PACKAGES, or there is none."""
    row: Any = row.build if isinstance(row, data.Dataset) else row
    while isinstance(row, partial):
        row = row.func
    if row is None or getattr(row, "__module__", "builtins").split(".")[0] in PACKAGES:
        return ""
    call = vars(row).get("__call__", "") if isinstance(row, type) else row  # of a network, which Flax has wrapped
    code = getattr(inspect.unwrap(call), "__code__", None) or getattr(call.__class__.__call__, "__code__", None)
    return code.co_filename if code else ""


def check(run: known.Known, config: ConfigDict | None = None) -> None:
    """Raises BadInput, with the recipe that registers it, if what is used of a run names what is not known here.

    Args:
      run: whose weights are used.
      config: how they are used, with its data set; None for the network alone.
    """
    for field, rows in TABLES.items():
        if config is None and field == "data.name":
            continue
        value, file = config_lib.get(config or run.last, field), run.registered.get(field, "")
        if value not in rows():
            raise BadInput(
                f"{run.title} has config.{field}={value!r}, which is registered by {file or 'the recipe of the run'}\n"
                f"run that first: add --config={file or 'RECIPE'}\n"
                f"in Python build.trained(RUN, recipe={file or 'RECIPE'!r}), in another recipe "
                f"recipe.load_recipe(recipe.find({file or 'RECIPE'!r}))"
            )

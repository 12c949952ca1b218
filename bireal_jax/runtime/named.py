"""Trained networks that come with the package, by name: the rows of networks/networks.json, and the files beside it.

The table lies here since a packed file is found by its name without JAX. `bireal_jax.importers.zoo` makes variables of
the same rows. What a name stands for: a file of that name wins, so a script that names its own file never gets ours. So
does the folder of a run.
"""

import dataclasses
import difflib
import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from bireal_jax import places
from bireal_jax.errors import BadInput, first_line, lookup

PLACE = Path(__file__).with_name("networks")
NET = "net.safetensors"  # what --mode=export writes into the workdir of a run
AGAIN = "install the package again, with --force-reinstall"


@dataclasses.dataclass(frozen=True)
class Row:
    """What a network is, how it was trained, and what came out.

    Attributes:
      packed: file -> SHA-256 of its bytes, of the packed network.
      weights: the same of the float weights, an .npz under our names, latent weights included; {} where they were not
        kept, or take more than 5 MB.
      model, act, weight: the network: fields of config.model.
      data: a key of `data.DATASETS`.
      recipe: the command, without paths.
      commit: of this project, with which it was trained.
      where, date: card or CPU, software, day.
      epochs, seed, seconds: of this run. Seconds are None where they were not measured.
      top1: of the packed file, on all test images, by the engine in float32, in percent.
      trained_top1: that the training reported for the same weights, on the same images.
      last_top1: after the last step. It is the number to compare; a best one was picked on the test images.
      others: last top-1 of other seeds of the same command, if there are any.
      licence: of the weights, and what is known of the data's.
      limits: what not to expect of it.
    """

    packed: dict[str, str]
    weights: dict[str, str]
    model: str
    act: str
    weight: str
    data: str
    recipe: str
    commit: str
    where: str
    date: str
    epochs: int
    seed: int
    seconds: int | None
    top1: float
    trained_top1: float
    last_top1: float
    others: list[float]
    licence: str
    limits: str


@functools.cache
def rows() -> dict[str, Row]:
    """The table. Raises BadInput if it is damaged."""
    path = PLACE / "networks.json"
    try:
        return {name: Row(**row) for name, row in sorted(places.read_json(path).items())}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is damaged or missing ({first_line(error)})\n{AGAIN}") from None


def is_name(path: Any) -> bool:
    """Whether it can be the name of a network: one word, and no file is called so, nor the folder of a run."""
    text = os.fsdecode(path)
    if not re.fullmatch(r"\w+", text) or os.path.isfile(text):
        return False
    return not os.path.isdir(text) or (text in rows() and not is_run(Path(text)))


def is_run(folder: Path) -> bool:
    """Whether it is the workdir of a run, or what was kept of one: its packed network."""
    return (folder / NET).is_file() or all((folder / name).is_file() for name in ("config.json", "data.json"))


def packed(name: str) -> bytes:
    """The bytes of a packed network.

    Raises:
      BadInput: no network of that name, or its file is missing or damaged.
    """
    if not difflib.get_close_matches(name, rows(), 1) and (beside := places.near(name)):
        raise BadInput(f"unknown file or network {name!r}{beside}")
    return contents(name, lookup(rows(), name, "file or network").packed)


def contents(name: str, file: dict[str, str]) -> bytes:
    """The bytes of a file of a row, `Row.packed` or `Row.weights`.

    Raises:
      BadInput: it is missing, or its bytes are not those of the table.
    """
    ((path, digest),) = file.items()
    try:
        data = (PLACE / path).read_bytes()
    except OSError as error:
        raise BadInput(f"{name}: {PLACE / path} cannot be read: {error.strerror}\n{AGAIN}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise BadInput(f"{name}: {PLACE / path} is damaged: its bytes are not those that were published\n{AGAIN}")
    return data

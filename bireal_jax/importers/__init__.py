"""Weights of other code bases become ours, and ours theirs.

    python -m bireal_jax.importers --model=bireal18 WEIGHTS OUT.npz

Import this for `load`, `from_torch` and `to_torch`; `readers` for the formats of files alone.

`readers` knows the formats of files, `pytorch` the names of the authors, `larq` those of larq. What the command writes
has our names: a leaf's path in the tree, such as "params/stem_conv/kernel".
"""

import argparse
import contextlib
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from bireal_jax import output, places
from bireal_jax.errors import BadInput, first_line, lookup
from bireal_jax.importers import larq, readers, values
from bireal_jax.importers.pytorch import FAMILIES, check_names, from_torch, leaves, some, target_shapes, to_torch

__all__ = ["FAMILIES", "convert", "from_flat", "from_torch", "load", "main", "save", "summary", "to_torch"]
log = logging.getLogger("bireal_jax")


def from_flat(model_name: str, flat: dict[str, np.ndarray]) -> dict:
    """Our variables from arrays under our names, such as "params/stem_conv/kernel", of a model in FAMILIES.

    Raises:
      BadInput: the names or shapes are not those of that model, or a number cannot be.
    """
    lookup(FAMILIES, model_name, "model with an importer")
    kernels = "params/stem_conv/kernel", "params/head/linear/kernel"
    target = target_shapes(model_name, flat, *kernels, channels=-2, classes=-1)
    wanted = {"/".join(path): leaf.shape for path, leaf in leaves(target)}
    check_names(model_name, set(wanted), flat)
    for name, shape in wanted.items():
        if flat[name].shape != shape:
            raise BadInput(f"{name} has shape {flat[name].shape}, the model wants {shape}")
        values.check(name, flat[name], name.rpartition("/")[2])
    return traverse_util.unflatten_dict({tuple(name.split("/")): array for name, array in flat.items()})


def load(model_name: str, path: str | Path, turn: bool = False) -> dict:
    """Our variables from a file of the authors' weights, of larq's (see `larq`), or of what `save` wrote.

    Args:
      model_name: a key of FAMILIES.
      path: of a format that `readers` knows.
      turn: larq's only: kernels turned by 180 degrees, for images turned likewise.

    Raises:
      BadInput: the file cannot be read, or its weights are not of that model.
    """
    state = readers.read(path, partial(_look, model_name, path))
    try:
        keras = larq.is_keras(state)
        if turn and not keras:
            raise BadInput("only larq's weights can be turned; leave --turn out")
        if keras and model_name != larq.MODEL:
            raise BadInput(f"weights of larq, of which only {larq.MODEL} is known; found {some(state)}")
        if keras:
            if not turn:
                log.warning("%s: larq pads otherwise at stride 2, so the outputs differ; --turn makes them equal", path)
            return from_flat(model_name, larq.renamed(state, turn))
        ours = any(name.startswith(("params/", "batch_stats/")) for name in state)
        return (from_flat if ours else from_torch)(model_name, state)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def _look(model_name, path, claims):
    """Raises BadInput, before an array is read, for names of no such model, and for far more numbers than it has."""
    if larq.is_keras(claims):
        return
    names = lookup(FAMILIES, model_name, "model with an importer")()
    found = {name.removeprefix("module."): jax.ShapeDtypeStruct(c.shape, np.float32) for name, c in claims.items()}
    claimed = sum(leaf.size for leaf in found.values())
    if claimed <= Path(path).stat().st_size:  # it is no larger than what was stored
        return
    if any(name.startswith(("params/", "batch_stats/")) for name in claims):
        target = target_shapes(model_name, found, "params/stem_conv/kernel", "params/head/linear/kernel", -2, -1)
    else:
        target = target_shapes(model_name, found, names["stem_conv"][0] + ".weight", "fc.weight", 1, 0)
    has = sum(leaf.size for leaf in jax.tree.leaves(target))
    if claimed > 2 * has:
        raise BadInput(f"its arrays are to have {claimed:,} numbers; {model_name} has {has:,}")


def save(variables: dict, path: Path) -> None:
    """Writes variables as an .npz under our names, whole or not at all.

    Raises:
      BadInput: it cannot be written.
    """
    partial_file = path.with_name(path.name + ".partial")
    arrays: dict[str, Any] = {"/".join(names): leaf for names, leaf in leaves(variables)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial_file, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial_file, path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {first_line(error)}\nname another file, or free some space") from None
    finally:
        with contextlib.suppress(OSError):
            partial_file.unlink()


def summary(variables: dict) -> str:
    """What there is, in one line."""
    params = dict(leaves(variables["params"]))
    latents = [leaf for path, leaf in params.items() if path[-1] == "latent"]
    binary, positive = sum(w.size for w in latents), sum(int(np.sum(w >= 0)) for w in latents)
    total, classes = sum(leaf.size for leaf in params.values()), len(params["head", "linear", "bias"])
    share = f"{binary:,} of them binary, {positive / binary:.1%} of those +1" if binary else "all real-valued"
    return f"{total:,} parameters, {share}; {classes} classes"


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bireal_jax.importers", description="Makes weights of PyTorch or larq ours.", allow_abbrev=False,
        epilog="Then: python -m bireal_jax.main --config=RECIPE --mode=eval --config.init_from=OUT.npz",
    )  # fmt: skip
    parser.add_argument("weights", help=f"a file of the authors' or larq's: {', '.join(readers.FORMATS)}")
    parser.add_argument("out", help="an .npz to write")
    parser.add_argument("--model", required=True, help="the network that these are weights of; --list shows all")
    parser.add_argument("--list", action="version", version=" ".join(FAMILIES), help="shows the models, and exits")
    parser.add_argument("--turn", action="store_true", help="larq: kernels turned by 180 degrees, for turned images")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # it is asked for shapes alone; an accelerator is left to others
    with output.command():
        weights = places.local(arguments.weights, "WEIGHTS", "file")
        out = places.local(arguments.out, "OUT", "file")
        convert(arguments.model, weights, out, arguments.turn, arguments.force)


def convert(model_name: str, weights: Path, out: Path, turn: bool = False, force: bool = False) -> None:
    """What the command does: reads, checks, writes, and says what it wrote.

    Raises:
      BadInput: as `load` and `save`, or `out` is no .npz or there already.
    """
    if out.suffix != ".npz":
        raise BadInput(f"{out} is no name of an .npz file")
    if out.exists() and not force:
        raise BadInput(f"{out} exists; --force overwrites it")
    variables = load(model_name, weights, turn)
    save(variables, out)
    print(f"{out}: {model_name}, {summary(variables)}")

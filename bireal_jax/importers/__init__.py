"""Weights of other code bases become ours, and ours theirs.

    python -m bireal_jax.importers --model=bireal18 WEIGHTS OUT.npz
    python -m bireal_jax.importers --to-torch RUN OUT.pth

Import this for `load`, `from_torch` and `to_torch`; `readers` for the formats of files alone.

`readers` knows the formats of files, `pytorch` the names of the authors, `larq` those of larq. What the command writes
has our names: a leaf's path in the tree, such as "params/stem_conv/kernel".
"""

import argparse
import io
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from bireal_jax import models, output, places
from bireal_jax.errors import BadInput, first_line
from bireal_jax.importers import larq, pytorch, readers, values
from bireal_jax.importers.choices import Choice
from bireal_jax.importers.pytorch import (
    FAMILIES,
    check_names,
    family,
    from_torch,
    leaves,
    no_counterpart,
    some,
    target_shapes,
    to_torch,
)  # fmt: skip
from bireal_jax.running import known

__all__ = ["FAMILIES", "Choice", "convert", "from_flat", "from_torch", "load", "main", "save", "summary", "to_torch"]
log = logging.getLogger("bireal_jax")
WRITTEN = (".pt", ".pth", ".safetensors", ".npz")  # suffixes of the files that PyTorch's weights go into


def from_flat(model_name: str, flat: dict[str, np.ndarray]) -> dict:
    """Our variables from arrays under our names, such as "params/stem_conv/kernel".

    Raises:
      BadInput: a number cannot be; of a model in FAMILIES, the names or shapes are not its own. Those of others are
        compared where they are used.
    """
    if model_name not in FAMILIES:
        for name, array in flat.items():
            values.check(name, array, name.rpartition("/")[2])
        return traverse_util.unflatten_dict({tuple(name.split("/")): array for name, array in flat.items()})
    target = target_shapes(model_name, flat, *pytorch.KERNELS, channels=-2, classes=-1)
    wanted = {"/".join(path): leaf.shape for path, leaf in leaves(target)}
    check_names(model_name, set(wanted), flat)
    for name, shape in wanted.items():
        if flat[name].shape != shape:
            raise BadInput(f"{name} has shape {flat[name].shape}, the model wants {shape}")
        values.check(name, flat[name], name.rpartition("/")[2])
    return traverse_util.unflatten_dict({tuple(name.split("/")): array for name, array in flat.items()})


def load(model_name: str, path: str | Path, turn: bool = False, key: str = "", drop: Sequence[str] = ()) -> dict:
    """Our variables from a file of the authors' weights, of larq's (see `larq`), or of what `save` wrote.

    Args:
      model_name: a key of FAMILIES; of what `save` wrote any model.
      path: of a format that `readers` knows.
      turn: larq's only: kernels turned by 180 degrees, for images turned likewise.
      key: PyTorch's only: below which the weights lie in the file, such as "model_ema"; see `readers.read`.
      drop: PyTorch's only: modules beside the network, such as "criterion", whose arrays are left out.

    Raises:
      BadInput: the file cannot be read, or its weights are not of that model.
    """
    state = readers.read(path, partial(_look, model_name, path, drop), key)
    try:
        keras = larq.is_keras(state)
        if turn and not keras:
            raise BadInput("only larq's weights can be turned; leave turn out")
        if keras and model_name != larq.MODEL:
            raise BadInput(f"weights of larq, of which only {larq.MODEL} is known; found {some(state)}")
        if keras:
            if not turn:
                log.warning("%s: larq pads otherwise at stride 2, so the outputs differ; --turn makes them equal", path)
            return from_flat(model_name, larq.renamed(state, turn))
        if not any(name.startswith(("params/", "batch_stats/")) for name in state):
            return from_torch(model_name, state, drop)
        return from_flat(model_name, state)
    except Choice as error:
        raise error.of(path) from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def _look(model_name, path, drop, claims):
    """Raises BadInput, before an array is read, for names of no such model, and for far more numbers than it has."""
    ours = any(name.startswith(("params/", "batch_stats/")) for name in claims)
    if drop and (ours or larq.is_keras(claims)):
        raise BadInput("only of PyTorch's weights something can be left out; leave drop out")
    if ours and model_name in models.TABLES["name"]() and model_name not in FAMILIES:
        return
    names = family(model_name)()
    if larq.is_keras(claims):
        return
    bare = pytorch.bare_names(model_name, claims, drop)
    found = {short: jax.ShapeDtypeStruct(claims[name].shape, np.float32) for name, short in bare.items()}
    claimed = sum(leaf.size for leaf in found.values())
    if claimed <= Path(path).stat().st_size:  # it is no larger than what was stored
        return
    if ours:
        target = target_shapes(model_name, found, *pytorch.KERNELS, -2, -1)
    else:
        target = target_shapes(model_name, found, names["stem_conv"][0] + ".weight", "fc.weight", 1, 0)
    has = sum(leaf.size for leaf in jax.tree.leaves(target))
    if claimed > 2 * has:
        raise BadInput(f"its arrays are to have {claimed:,} numbers; {model_name} has {has:,}")


def save(variables: dict, path: Path, run: known.Known | None = None) -> None:
    """Writes variables as an .npz under our names, whole or not at all.

    Args:
      variables: the network.
      path: the file.
      run: that they are of. What it knew, such as the normalization of its images, goes with them: `known.read`.

    Raises:
      BadInput: it cannot be written.
    """
    _write({"/".join(names): leaf for names, leaf in leaves(variables)} | (known.written(run) if run else {}), path)


def _write(arrays: dict[str, Any], path: Path) -> None:
    """Arrays in a file of the format that the suffix says, one of WRITTEN."""
    made = io.BytesIO()
    try:
        if path.suffix == ".npz":
            np.savez(made, **arrays)
        elif path.suffix == ".safetensors":
            made.write(safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))
        else:
            torch = readers.library("torch")
            torch.save({name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}, made)
        places.write(path, made.getvalue())
    except OSError as error:
        raise BadInput(f"cannot write {path}: {first_line(error)}\nname another file, or free some space") from None


def summary(variables: dict) -> str:
    """What there is, in one line."""
    params = dict(leaves(variables["params"]))
    latents = [leaf for path, leaf in params.items() if path[-1] == "latent"]
    binary, positive = sum(w.size for w in latents), sum(int(np.sum(w >= 0)) for w in latents)
    total = sum(leaf.size for leaf in params.values())
    share = f"{binary:,} of them binary, {positive / binary:.1%} of those +1" if binary else "all real-valued"
    head = params.get(("head", "linear", "bias"))
    return f"{total:,} parameters, {share}" + ("" if head is None else f"; {len(head)} classes")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bireal_jax.importers", description="Makes weights of PyTorch or larq ours, and ours PyTorch's.",
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Then: python -m bireal_jax.main --config=RECIPE --mode=eval --config.init_from=OUT.npz",
    )  # fmt: skip
    parser.add_argument("weights", help=f"a file of weights, {', '.join(readers.FORMATS)}, or the workdir of a run")
    parser.add_argument("out", help=f"an .npz to write; with --to-torch one of {', '.join(WRITTEN)}")
    parser.add_argument("--model", default="", help="the network that these are weights of; --list shows all")
    rows = (f"{name:16s}{', '.join(pytorch.first_modules(name))}" for name in FAMILIES)
    parser.add_argument(
        "--list",
        action="version",
        version="\n".join([f"{'--model':16s}names of its modules in PyTorch", *rows]),
        help="shows the models, with names of modules, and exits",
    )
    parser.add_argument(
        "--to-torch", action="store_true", help="write them under the names of the authors' PyTorch code"
    )
    parser.add_argument("--turn", action="store_true", help="larq: kernels turned by 180 degrees, for turned images")
    parser.add_argument("--key", default="", help="PyTorch: the key of the weights in the file, such as model_ema")
    parser.add_argument(
        "--drop", action="append", default=[], metavar="MODULE",
        help="PyTorch: what is beside the network, such as criterion, and is left out; several are given one by one",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # it is asked for shapes alone; an accelerator is left to others
    with output.command():
        weights = places.local(arguments.weights, "WEIGHTS")
        out = places.local(arguments.out, "OUT", "file")
        options = (arguments.turn, arguments.force, arguments.to_torch, arguments.key, arguments.drop)
        convert(arguments.model, weights, out, *options)


def convert(
    model_name: str, weights: Path, out: Path, turn: bool = False, force: bool = False, torch: bool = False,
    key: str = "", drop: Sequence[str] = (),
) -> None:  # fmt: skip
    """What the command does: reads, checks, writes, and says what it wrote.

    Args:
      model_name: a key of FAMILIES; "" for that of a run, or of a file that says it.
      weights: a file, or the workdir of a run, whose best checkpoint is taken.
      out: the file to write.
      turn: as of `load`.
      force: overwrite it.
      torch: under the names of the authors' PyTorch code instead of ours.
      key, drop: as of `load`.

    Raises:
      BadInput: as `load` and `save`, or `out` has another suffix or is there already.
    """
    if torch and out.suffix not in WRITTEN:
        raise BadInput(f"{out} does not end in one of {', '.join(WRITTEN)}")
    if not torch and out.suffix != ".npz":
        raise BadInput(f"{out} is no name of an .npz file; --to-torch writes {', '.join(WRITTEN)}")
    if out.exists() and not force:
        raise BadInput(f"{out} exists; --force overwrites it")
    run = known.read(weights)
    if weights.is_dir() and (key or drop):
        raise BadInput(f"{weights} is a run, which holds one network; leave --key and --drop out")
    if weights.is_dir():
        model_name, variables = _of_run(weights, run, model_name, torch)
    elif model_name := model_name or (run.last.model.name if run else ""):
        flags = [flag for flag, given in (("--to-torch", torch), ("--force", force), ("--turn", turn)) if given]
        try:
            variables = load(model_name, weights, turn, key, drop)
        except Choice as error:
            raise BadInput(error.command(model_name, weights, out, flags, key, drop)) from None
    else:
        raise BadInput("a file of weights does not say what network it is of: --model=NAME; --list shows all")
    if torch:
        _write(to_torch(model_name, variables, widths_of_its_own=weights.is_dir()), out)
    else:
        save(variables, out, run)
    print(f"{out}: {model_name}, {summary(variables)}")


def _of_run(directory, run, model_name, torch):
    """The name of the network of a run, and its variables."""
    if run is None or not run.source:
        raise BadInput(f"no run in {directory}: there is no {'data' if run else 'config'}.json")
    c = run.last.model
    if model_name not in ("", c.name):
        raise BadInput(f"the run in {directory} is of {c.name}, not of {model_name}; leave --model out")
    if torch and c.name not in FAMILIES:
        raise BadInput(no_counterpart(c.name))
    if c.name not in models.TABLES["name"]():
        raise BadInput(
            f"{c.name}, the network of the run in {directory}, is one of its recipe's\n"
            "in Python: importers.save(build.trained(RUN, recipe=RECIPE)[1], Path(OUT))"
        )
    module = models.build(c.name, run.source.num_classes, decoder=c.decoder, blocks=c.blocks, widths=c.widths)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, *run.source.image_shape), np.float32))
    return c.name, known.best_variables(directory, shapes)[0]

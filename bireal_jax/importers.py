"""Weights of other code bases: the authors' PyTorch names to our tree and back, arrays in, arrays out.

A PyTorch state is a flat dict of numpy arrays under the authors' `state_dict` names. Our tree is what `module.apply`
takes: {"params": ..., "batch_stats": ...}. Modules are renamed by a table per model, leaves by their kind, and layouts
follow from the leaf: OIHW <-> HWIO, OI <-> IO.
"""

import math
import zipfile
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from bireal_jax import models
from bireal_jax.errors import BadInput, lookup
from bireal_jax.models.bireal import BIREAL

# Our leaf -> theirs. Latent weights are apart: the 18- and 34-layer code stores them as `weights` [size, 1].
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "latent": "weight",
}
FLAT_LATENT = ("bireal18", "bireal34")


def _module_names(name):
    """Our module path -> the authors' module name, for a model of `BIREAL`."""
    row = lookup(BIREAL, name, "model with an importer")
    names = {"stem_conv": "conv1", "stem_bn": "bn1", "head/linear": "fc"}
    places = [(i, j) for i, count in enumerate(row["blocks"]) for j in range(count)]
    for k, (i, j) in enumerate(places):
        ours = f"stage{i + 1}_block{j + 1}"
        if row.get("bottleneck"):
            theirs = f"layers.{k}"  # blocks numbered through
            convs = {f"binary_conv{n}": f"conv{n}" for n in (1, 2, 3)} | {f"bn{n}": f"bn{n}" for n in (1, 2, 3)}
            convs |= {"conv1": "conv1", "narrow_conv": "down_conv1x1"}
        else:
            theirs = f"layer{i + 1}.{j}"
            convs = {"binary_conv": "binary_conv", "bn": "bn1"}
        convs |= {"downsample_conv": "downsample.1", "downsample_bn": "downsample.2"}
        names |= {f"{ours}/{a}": f"{theirs}.{b}" for a, b in convs.items()}
    return names


def _torch_key(name, names, path):
    """The authors' key of our leaf at `path`, a tuple of names below "params" or "batch_stats"."""
    *module, leaf = path
    if leaf == "unused":
        return "layers.0.down_conv1x1.weight"
    if leaf == "latent" and name in FLAT_LATENT:
        return names["/".join(module)] + ".weights"
    return f"{names['/'.join(module)]}.{LEAVES[leaf]}"


def from_torch(model_name: str, state: dict[str, np.ndarray]) -> dict:
    """Our variables from the authors' state.

    Args:
      model_name: a Bi-Real model, e.g. "bireal18".
      state: arrays under the authors' names. A leading `module.` (DataParallel) and `num_batches_tracked` are ignored.

    Returns:
      {"params": tree, "batch_stats": tree} of numpy arrays in the dtype of `state`.

    Raises:
      BadInput: the names or shapes are not those of that model.
    """
    state = {
        k.removeprefix("module."): np.asarray(v) for k, v in state.items() if not k.endswith("num_batches_tracked")
    }
    names = _module_names(model_name)
    absent = {"conv1.weight", "fc.weight"} - set(state)  # without them neither channels nor classes are known
    if absent:
        raise BadInput(f"these are not weights of {model_name}: missing {_some(absent)}; found {_some(state)}")
    module = models.build(model_name, num_classes=len(state["fc.weight"]))
    image = jax.ShapeDtypeStruct((1, 64, 64, state["conv1.weight"].shape[1]), np.float32)
    target = jax.eval_shape(module.init, jax.random.key(0), image)
    wanted = {path: _torch_key(model_name, names, path[1:]) for path in traverse_util.flatten_dict(target)}
    missing, extra = set(wanted.values()) - set(state), set(state) - set(wanted.values())
    if missing or extra:
        raise BadInput(f"these are not weights of {model_name}:\nmissing {_some(missing)}\nunexpected {_some(extra)}")
    flat = {p: _to_ours(state[key], s.shape, key) for (p, s), key in zip(_items(target), wanted.values(), strict=True)}
    return traverse_util.unflatten_dict(flat)


def to_torch(model_name: str, tree: dict) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`.

    Args:
      model_name: a Bi-Real model, e.g. "bireal18".
      tree: variables with "params" and/or "batch_stats", or a bare tree of the shape of params, such as a gradient.

    Returns:
      numpy arrays under the authors' names.

    Raises:
      BadInput: the tree is not one of that model.
    """
    if not set(tree) <= {"params", "batch_stats"}:
        tree = {"params": tree}
    names, state = _module_names(model_name), {}
    for path, leaf in _items(tree):
        try:
            key = _torch_key(model_name, names, path[1:])
        except KeyError:
            raise BadInput(f"{'/'.join(path)} is no variable of {model_name}") from None
        state[key] = _to_theirs(np.asarray(leaf), flat=key.endswith(".weights"))
    return state


def _to_ours(array, shape, key):
    theirs = (*shape[:-3:-1], *shape[:-2]) if len(shape) > 1 else shape  # HWIO -> OIHW, IO -> OI
    if array.size != math.prod(shape) or (array.ndim == len(shape) and array.shape != theirs):
        raise BadInput(f"{key} has shape {array.shape}, the model wants {theirs}")
    array = array.reshape(theirs)
    return np.ascontiguousarray(array.transpose(*range(2, array.ndim), 1, 0) if array.ndim > 1 else array)


def _to_theirs(array, flat):
    if array.ndim > 1:
        n = array.ndim
        array = np.ascontiguousarray(array.transpose(n - 1, n - 2, *range(n - 2)))
    return array.reshape(-1, 1) if flat else array


def _items(tree):
    return traverse_util.flatten_dict(tree).items()


def _some(names, limit=4):
    """At most `limit` of the names, for a message."""
    names = sorted(names)
    return (", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")) or "nothing"


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; pickled objects are refused.

    Raises:
      BadInput: no such file, or not a readable .npz of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise BadInput(f"no such file: {path}") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise BadInput(f"{path} is not a readable .npz file of plain arrays: {error}") from None

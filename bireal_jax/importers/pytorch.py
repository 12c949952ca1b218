"""Weights under the names of the authors' PyTorch code: to our tree and back, arrays in, arrays out.

A PyTorch state is a flat dict of numpy arrays under the authors' `state_dict` names. Our tree is what `module.apply`
takes: {"params": ..., "batch_stats": ...}. Modules are renamed by a table per family, leaves by their kind, and layouts
follow from the leaf: OIHW <-> HWIO, OI <-> IO. Where one of our modules is two of theirs, side by side, the leaves are
concatenated along the output channels.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from bireal_jax import models
from bireal_jax.errors import BadInput, lookup
from bireal_jax.importers import values
from bireal_jax.importers.choices import Choice
from bireal_jax.models.bireal import BIREAL
from bireal_jax.models.reactnet import STEM, WIDTHS
from bireal_jax.models.resnet import RESNET

log = logging.getLogger("bireal_jax")

# Our leaf -> theirs. Latent weights are apart: some of the code stores them as `weights` [size, 1].
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "latent": "weight",
}
KERNELS = "params/stem_conv/kernel", "params/head/linear/kernel"  # ours, the first and the last
COUNTERS = "num_batches_tracked", "n_averaged"  # of batch norm, and of torch.optim.swa_utils.AveragedModel
FLAT_LATENT = ("bireal18", "bireal34", "react_a")


def _bireal_names(row):
    """Our module path, or the path of a leaf that is a module of theirs -> the authors' module names."""
    names = {"stem_conv": ["conv1"], "stem_bn": ["bn1"], "head/linear": ["fc"]}
    places = [(i, j) for i, count in enumerate(row["blocks"]) for j in range(count)]
    for k, (i, j) in enumerate(places):
        ours = f"stage{i + 1}_block{j + 1}"
        if row.get("bottleneck"):
            theirs = f"layers.{k}"  # blocks numbered through
            convs = {f"binary_conv{n}": f"conv{n}" for n in (1, 2, 3)} | {f"bn{n}": f"bn{n}" for n in (1, 2, 3)}
            convs |= {"conv1": "conv1", "narrow_conv": "down_conv1x1"}
        else:
            theirs = f"layer{i + 1}.{j}"
            convs = {"binary_conv": "binary_conv", "bn": "bn1", "binary_conv/shift": "move0"}
            convs |= {"rprelu/shift_in": "move1", "rprelu/slope": "prelu", "rprelu/shift_out": "move2"}
        convs |= {"downsample_conv": "downsample.1", "downsample_bn": "downsample.2"}
        names |= {f"{ours}/{a}": [f"{theirs}.{b}"] for a, b in convs.items()}
    return names


def _reactnet_names():
    names = {"stem_conv": ["feature.0.conv1"], "stem_bn": ["feature.0.bn1"], "head/linear": ["fc"]}
    channels = STEM
    for k, width in enumerate(WIDTHS, 1):
        convs = {"binary_conv1": ["binary_3x3"], "bn1": ["bn1"], "binary_conv2": ["binary_pw"], "bn2": ["bn2"]}
        if width > channels:
            convs |= {"binary_conv2": ["binary_pw_down1", "binary_pw_down2"], "bn2": ["bn2_1", "bn2_2"]}
        for n in (1, 2):
            convs |= {f"binary_conv{n}/shift": [f"move{n}1"], f"rprelu{n}/shift_in": [f"move{n}2"]}
            convs |= {f"rprelu{n}/slope": [f"prelu{n}"], f"rprelu{n}/shift_out": [f"move{n}3"]}
        names |= {f"block{k}/{a}": [f"feature.{k}.{b}" for b in found] for a, found in convs.items()}
        channels = width
    return names


def _resnet_names(row):
    names = {"stem_conv": ["conv1"], "stem_bn": ["bn1"], "head/linear": ["fc"]}
    parts = {f"{kind}{k}": f"{kind}{k}" for kind in ("conv", "bn") for k in (1, 2, 3)}
    parts |= {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
    for i, count in enumerate(row["blocks"], 1):
        for j in range(count):
            names |= {f"stage{i}_block{j + 1}/{a}": [f"layer{i}.{j}.{b}"] for a, b in parts.items()}
    return names


# model -> our module path -> the authors' module names
FAMILIES = {name: partial(_bireal_names, row) for name, row in BIREAL.items()}
FAMILIES |= {"react_r18": FAMILIES["bireal18"], "react_r34": FAMILIES["bireal34"], "react_a": _reactnet_names}
FAMILIES |= {name: partial(_resnet_names, row) for name, row in RESNET.items()}


def family(model_name: str) -> Any:
    """The row of FAMILIES. Raises BadInput, with what is possible, for a network that the authors do not have."""
    if model_name in models.MODELS and model_name not in FAMILIES:
        raise BadInput(no_counterpart(model_name))
    return lookup(FAMILIES, model_name, "model with an importer")


def no_counterpart(model_name: str) -> str:
    """That a network cannot go to PyTorch, which ones can, and where its arrays can go instead."""
    return (
        f"{model_name} has no counterpart in the authors' PyTorch code, so that its arrays have no names there\n"
        f"these have: {', '.join(FAMILIES)}\n"
        "under names of ours, as .npz: python -m bireal_jax.importers RUN OUT.npz; in Python: build.trained(RUN)[1]"
    )


def first_modules(model_name: str) -> list[str]:
    """The authors' names of the first convolution of a model in FAMILIES, and of the first one of its blocks."""
    names = [*FAMILIES[model_name]().values()]
    return [names[0][0], names[3][0]]


def _torch_keys(name, names, path):
    """The authors' keys of our leaf at `path`, a tuple of names below "params" or "batch_stats"."""
    *module, leaf = path
    if leaf == "unused":
        return ["layers.0.down_conv1x1.weight"]
    if "/".join(path) in names:
        return [f"{theirs}.{'weight' if leaf == 'slope' else 'bias'}" for theirs in names["/".join(path)]]
    kind = "weights" if leaf == "latent" and name in FLAT_LATENT else LEAVES[leaf]
    return [f"{theirs}.{kind}" for theirs in names["/".join(module)]]


def from_torch(model_name: str, state: Any, drop: Sequence[str] = ()) -> dict:
    """Our variables from the authors' state.

    Args:
      model_name: a key of FAMILIES, e.g. "bireal18" or "react_a".
      state: arrays or PyTorch tensors under the authors' names, or the PyTorch module that has them. What wrappers add
        is ignored, `module.` (DataParallel), `_orig_mod.` (torch.compile), a prefix of the whole network such as
        Lightning's `model.`, and so are `num_batches_tracked` and the `n_averaged` of a moving average; latent weights
        may be called `weight`, as in the authors' first step, or `weights`.
      drop: modules beside the network, such as "criterion", whose arrays are left out.

    Returns:
      {"params": tree, "batch_stats": tree} of numpy arrays in the dtype of `state`, float32 for bfloat16.

    Raises:
      BadInput: the names or shapes are not those of that model, two names mean the same array, or a number cannot be.
        The message says which of our other models they fit.
    """
    family(model_name)
    state = state.state_dict() if hasattr(state, "state_dict") else state
    try:
        found = _from_torch(model_name, state, drop)
    except BadInput as error:
        if fitting := [name for name in FAMILIES if name != model_name and _fits(name, state, drop)]:
            first, *rest = str(error).splitlines()
            first = f"{first.rstrip(':')}; they fit {', '.join(fitting)}"
            raise BadInput("\n".join([first, *rest])) from None
        raise
    if drop:
        left_out = len(state) - len(bare_names(model_name, state, drop))
        log.warning("%d of %d arrays left out: %s", left_out, len(state), ", ".join(drop))
    return found


def _fits(model_name, state, drop):
    """Whether these are weights of a model. What is no name of it is seen first, since shapes take a second."""
    modules = {name for found in FAMILIES[model_name]().values() for name in found}
    try:
        for name in bare_names(model_name, state, drop).values():
            if name.rpartition(".")[0] not in modules and not name.endswith(COUNTERS):
                return False
        _from_torch(model_name, state, drop)
    except BadInput:
        return False
    return True


def _from_torch(model_name, state, drop):
    names = FAMILIES[model_name]()
    bare = bare_names(model_name, state, drop)
    rows = [(short, k, values.array(state[k])) for k, short in bare.items() if not k.endswith(COUNTERS)]
    state = values.named_once(rows)
    target = target_shapes(model_name, state, names["stem_conv"][0] + ".weight", "fc.weight", channels=1, classes=0)
    wanted = {path: _torch_keys(model_name, names, path[1:]) for path, _ in leaves(target)}
    keys = {key for found in wanted.values() for key in found}
    renamed = {key.removesuffix("s"): key for key in keys if key.endswith(".weights")}
    state = values.named_once((renamed.get(key, key), theirs, array) for key, theirs, array in rows)
    check_names(model_name, keys, state)
    flat = {}
    for path, leaf in leaves(target):
        found = wanted[path]
        shape = (*leaf.shape[:-1], leaf.shape[-1] // len(found))
        flat[path] = np.concatenate([_to_ours(state[key], shape, key) for key in found], -1)
        for key in found:
            values.check(key, state[key], path[-1])
    return traverse_util.unflatten_dict(flat)


def to_torch(model_name: str, tree: dict, widths_of_its_own: bool = False) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`.

    Args:
      model_name: a key of FAMILIES, e.g. "bireal18" or "react_a".
      tree: variables with "params" and/or "batch_stats", or a bare tree of the shape of params, such as a gradient.
      widths_of_its_own: of a run with other `model.widths`, so that sizes are not compared with the model's.

    Returns:
      numpy arrays under the authors' names.

    Raises:
      BadInput: the tree is not one of that model, sizes included, or a number of the variables cannot be.
    """
    gradient = not set(tree) <= {"params", "batch_stats"}
    tree = {"params": tree} if gradient else tree
    names, state = family(model_name)(), {}
    wanted = {} if widths_of_its_own else _sizes(model_name, tree)
    for path, leaf in leaves(tree):
        if wanted.get(path, np.shape(leaf)) != np.shape(leaf):
            raise BadInput(f"{'/'.join(path)} has shape {np.shape(leaf)}, {model_name} wants {wanted[path]}")
        try:
            keys = _torch_keys(model_name, names, path[1:])
        except KeyError:
            raise BadInput(f"{'/'.join(path)} is no variable of {model_name}") from None
        if not gradient:
            values.check("/".join(path), np.asarray(leaf), path[-1])
        for key, part in zip(keys, np.split(np.asarray(leaf), len(keys), -1), strict=True):
            state[key] = _to_theirs(part, flat=key.endswith(".weights"), shift=path[-1].startswith("shift"))
    return state


def _sizes(model_name, tree):
    """path -> shape of the leaves of a model with as many channels and classes as a tree; {} of a part of one."""
    flat = {"/".join(path): leaf for path, leaf in leaves(tree)}
    if not set(KERNELS) <= set(flat):
        return {}
    target = target_shapes(model_name, flat, *KERNELS, channels=-2, classes=-1)
    return {path: leaf.shape for path, leaf in leaves(target)}


def bare_names(model_name: str, names: Iterable[str], drop: Sequence[str] = ()) -> dict[str, str]:
    """name -> the name without what wrappers of PyTorch add, of those that are not dropped.

    Raises:
      BadInput: there are two networks of that model, such as one and its moving average; nothing is there to drop.
    """
    bare, deeper = _without(drop, {name: _bare(name) for name in names})
    stem = family(model_name)()["stem_conv"][0] + ".weight"
    have = set(bare.values())
    prefixes = sorted(n.removesuffix(stem) for n in have if n.endswith(f".{stem}"))
    prefixes = [prefix for prefix in prefixes if prefix + "fc.weight" in have]  # blocks have a conv1.weight, too
    if len(prefixes) > 1 or (prefixes and stem in have):
        also = " and bare" if stem in have else ""
        raise Choice(
            f"holds {len(prefixes) + bool(also)} networks, under {', '.join(prefixes)}{also}\n"
            "store the weights of one: torch.save(model.state_dict(), FILE)\nor leave the other out",
            drop=[prefixes[0].rstrip(".")],
        )
    within = {name: short.removeprefix(prefixes[0]) if prefixes else short for name, short in bare.items()}
    within, nothing = _without(deeper, within)
    if nothing:
        raise BadInput(f"nothing to leave out is called {nothing[0]}; found {some(bare.values())}")
    return within


def _without(drop, bare):
    """Names of which none is in a module that is to be dropped, and the modules of which there is none."""
    nothing = []
    for prefix in drop:
        kept = {name: short for name, short in bare.items() if not f"{short}.".startswith(f"{prefix}.")}
        nothing += [prefix] if len(kept) == len(bare) else []
        bare = kept
    return bare, nothing


def _bare(name):
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    return ".".join(parts[1:] if parts[0] == "module" else parts)


def _to_ours(array, shape, key):
    theirs = (*shape[:-3:-1], *shape[:-2]) if len(shape) > 1 else shape  # HWIO -> OIHW, IO -> OI
    shift, flat = (1, *shape, 1, 1), (math.prod(shape), 1)  # of learned shifts, and of latent weights in the old code
    if array.shape not in (theirs, shift, flat, flat[:1]):
        raise BadInput(f"{key} has shape {array.shape}, the model wants {theirs}")
    array = array.reshape(theirs)
    return np.ascontiguousarray(array.transpose(*range(2, array.ndim), 1, 0) if array.ndim > 1 else array)


def _to_theirs(array, flat, shift):
    if shift:
        return array.reshape(1, -1, 1, 1)
    if array.ndim > 1:
        n = array.ndim
        array = np.ascontiguousarray(array.transpose(n - 1, n - 2, *range(n - 2)))
    return array.reshape(-1, 1) if flat else array


def leaves(tree) -> Iterable[tuple[tuple[str, ...], Any]]:
    """(path, leaf) of every leaf."""
    return traverse_util.flatten_dict(tree).items()


def some(names: Iterable[str], limit: int = 4) -> str:
    """At most `limit` of the names, for a message."""
    names = sorted(names)
    return (", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")) or "nothing"


def target_shapes(model_name: str, state: dict, stem: str, head: str, channels: int, classes: int) -> Any:
    """The shapes of the variables of a model with as many channels and classes as weights have.

    Args:
      model_name: a key of FAMILIES.
      state: the weights.
      stem, head: names in it of the first and of the last kernel.
      channels, classes: the axis of `stem` that is the image's channels, the axis of `head` that is the classes.

    Raises:
      BadInput: one is missing, or has not that many axes.
    """
    absent = {stem, head} - set(state)
    if absent:
        raise BadInput(f"these are not weights of {model_name}: missing {some(absent)}; found {some(state)}")
    for name, ndim in ((stem, 4), (head, 2)):
        if state[name].ndim != ndim or state[name].size == 0:
            raise BadInput(f"{name} has shape {state[name].shape}, which is none of {model_name}")
    module = models.build(model_name, num_classes=state[head].shape[classes])
    image = jax.ShapeDtypeStruct((1, 64, 64, state[stem].shape[channels]), np.float32)
    return jax.eval_shape(module.init, jax.random.key(0), image)


def check_names(model_name: str, wanted: set[str], found: Iterable[str]) -> None:
    """Raises BadInput, with both sides, unless these are the wanted names."""
    missing, extra = wanted - set(found), set(found) - wanted
    lines = [f"{what} {some(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names]
    beside = {n.partition(".")[0] for n in extra if "/" not in n} - {n.partition(".")[0] for n in wanted}
    said = "\n".join([f"these are not weights of {model_name}:", *lines])
    if beside and not missing:
        raise Choice(f"{said}\nto leave out what is not of the network", drop=sorted(beside)[:4])
    if lines:
        raise BadInput(said)

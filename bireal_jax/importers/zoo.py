"""The networks that come with the package, for JAX: from a name to variables. The table is `runtime.named.rows`.

Where the float weights were kept they are these, latent weights included, and a training goes on where it ended. Where
not, the packed file is turned back: ±1 weights become latent weights of ±1, and each scale and offset the batch norm
that it was folded from. What such variables compute is what the file computes; packed again, they give its arrays bit
for bit. A training starts from what `unfold` makes of those: what was folded would be normalized once more.
"""

import io
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from bireal_jax import models
from bireal_jax.config import default
from bireal_jax.data import Source
from bireal_jax.data.normalize import prepared
from bireal_jax.errors import BadInput
from bireal_jax.importers import unfold
from bireal_jax.running import checkpoint, known, progress
from bireal_jax.runtime import container, named

EPSILON = 1e-5  # of `layers.BatchNorm`
LOOKED_AT = 256  # images at most
UNIT = {"mean": 0.0, "var": 1 - EPSILON}  # statistics of a batch norm that computes scale x + bias


def is_name(path: Any) -> bool:
    """Whether it names a network of the package: nothing lies there that is called so."""
    return named.is_name(path) and not os.path.exists(path) and os.fsdecode(path) in named.rows()


def program(name: str) -> container.Program:
    """The packed network of a name. Raises BadInput if there is none, or its file is damaged."""
    return container.parse(named.packed(name), name)


def has_latents(name: str) -> bool:
    """Whether the float weights of a network came with the package."""
    return bool(named.rows()[name].weights)


def source(name: str) -> Source:
    """What a network was trained on, without the examples. Raises BadInput as `program`."""
    spec = program(name).spec
    image, labels = spec["image"], tuple(spec.get("ids", spec["labels"]))
    mean, std = tuple(image["mean"]), tuple(image["std"])
    return Source((), (), dict, tuple(image["shape"]), len(labels), mean, std, labels)


def network(name: str, act: str = "", weight: str = "") -> tuple[nn.Module, dict]:
    """A network that came with the package, and its variables.

    Args:
      name: a row of the table.
      act, weight: in place of the row's. Where there are no float weights the rule of the latent ones, ±1, is "sign"
        unless it is said here: exactly the function of the packed file.

    Raises:
      BadInput: no such network, its files are damaged, or they do not say all that the variables are.
    """
    found = program(name)
    row, shape = named.rows()[name], found.shape(0)
    act, weight = act or row.act, weight or (row.weight if has_latents(name) else "sign")
    module = models.build(row.model, len(found.spec["labels"]), jnp.float32, act=act, weight=weight)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, *shape), np.float32))
    return module, checkpoint.merge(variables(name, shapes), shapes, name)


def known_of(name: str, weight: str = "") -> known.Known:
    """What is known of a network that came with the package, as of the run in a workdir.

    Args:
      name: a row of the table.
      weight: the weight rule that latent weights of ±1 are used with, which says nothing of the network; "": "sign".

    Raises:
      BadInput: no such network, or its file is damaged.
    """
    row, config = named.rows()[name], default()
    c = config.model
    c.name, c.act, c.weight = row.model, row.act, row.weight if has_latents(name) else weight or "sign"
    return known.Known(Path(name), config, (source(name),), 0, {}, f"the network {name}")


def check(name: str, model: str, channels: int) -> None:
    """Raises BadInput, with those that fit, unless a row is of that model, for images of so many channels."""
    fits = [other for other, row in named.rows().items() if (row.model, _channels(other)) == (model, channels)]
    row, ours = named.rows()[name], _channels(name)
    if name in fits:
        return
    wrong = f"config.model.name={row.model!r}, not {model!r}" if row.model != model else (
        f"images of {ours} channel{'s' * (ours > 1)}, and those here have {channels}"
    )  # fmt: skip
    others = ", ".join(f"{other} ({row.model})" for other, row in named.rows().items() if _channels(other) == channels)
    add = f"\nto start from it add {known_of(name).fields}" if ours == channels else ""
    raise BadInput(
        f"config.init_from={name} is a network of {wrong}\nthat fit: {', '.join(fits) or 'none'}; for {channels} "
        f"channel{'s' * (channels > 1)} and their config.model.name there are: {others or 'none'}{add}"
    )


def _channels(name):
    return program(name).shape(0)[-1]


def started(name: str, source: Source, size: int, act: str, weight: str) -> dict:
    """Variables to train from: the float weights, or what `unfold` makes of the packed file.

    Args:
      name: a row of the table.
      source: what is trained on, of which some images are looked at where there are no float weights.
      size: of a batch.
      act, weight: fields of config.model.

    Raises:
      BadInput: as `network`, or an image cannot be decoded.
    """
    packed, found = network(name)
    if has_latents(name):
        return found
    progress.say(
        f"note: {name} came without float weights: latent ones begin at ±{unfold.LATENT:g}, and batch norm has "
        f"statistics of {min(LOOKED_AT, len(source.train))} training images"
    )
    return unfold.unfolded(packed, network(name, act, weight)[0], found, _batches(source, size))


def _batches(source, size):
    """Training images as an evaluation sees them, normalized: the same ones on every host."""
    chosen = np.linspace(0, len(source.train) - 1, min(len(source.train), LOOKED_AT)).astype(int)
    for some in np.array_split(chosen, max(1, len(chosen) // size)):
        yield prepared(np.stack([source.prepare(source.train[int(i)])["image"] for i in some]), source, jnp.float32)


def variables(name: str, shapes: Any) -> dict:
    """The variables of a network that came with the package, where there are no float weights of weight rule "sign".

    Args:
      name: a row of the table.
      shapes: of the variables of its model.

    Raises:
      BadInput: no such network, its file is damaged, or there are no float weights and the packed file does not say all
        that the variables are.
    """
    found = program(name)
    if has_latents(name):
        with np.load(io.BytesIO(named.contents(name, named.rows()[name].weights)), allow_pickle=False) as arrays:
            return traverse_util.unflatten_dict({tuple(key.split("/")): arrays[key] for key in arrays})
    try:
        return unpacked(found, shapes)
    except BadInput as error:
        kept = ", ".join(other for other in named.rows() if has_latents(other))
        raise BadInput(
            f"{name} cannot be turned back into variables: {error}\n"
            f"runtime.load runs it; these came with float weights: {kept}"
        ) from None


def unpacked(program: container.Program, shapes: Any) -> dict:
    """The variables of a 1-bit network whose packed file is `program`, for the weight rule "sign".

    A file has one operation for each layer, under the path of its module, and one affine map for each batch norm, into
    which the scale of the weights before it and their bias were folded: these become 1 and 0.

    Args:
      program: the packed network.
      shapes: of the variables of its model.

    Raises:
      BadInput: a variable has no operation of its path, or an operation no variable, as where two batch norms are one
        affine map.
    """
    arrays = {}  # (path of the module, kind of operation) -> its arrays
    for i, op in enumerate(program.spec["ops"]):
        if container.names(op):
            arrays[op["path"], op["op"]] = program.arrays(i)
    flat, used = {}, set()
    leaves: dict[Any, Any] = traverse_util.flatten_dict(shapes)
    for path, leaf in leaves.items():
        *module, name = (part for part in path[1:] if part != "linear")
        key, value = _origin(arrays, "/".join(module), name, path)
        used.add(key)
        flat[path] = np.broadcast_to(np.asarray(value, np.float32), leaf.shape) if np.ndim(value) == 0 else value
        if path[-2:] == ("linear", "kernel"):
            flat[path] = np.asarray(value)[0, 0]  # a convolution of one pixel
        if flat[path].shape != leaf.shape:
            raise BadInput(f"{'/'.join(path)} has shape {flat[path].shape} in the file, {leaf.shape} in the model")
    if left := set(arrays) - used - {None}:
        raise BadInput(f"the file's {' '.join(min(left))} is no variable of the model")
    return traverse_util.unflatten_dict(flat)


def _origin(arrays, module, name, path) -> tuple[Any, Any]:
    """Which operation a variable is of, None for none, and its value."""
    norm = (module, "affine")
    if name in UNIT and norm in arrays:
        return norm, UNIT[name]
    if name == "bias" and (module, "binary_conv") in arrays:  # folded into the batch norm behind
        return None, 0.0
    if module == "head_bn":  # folded into the head behind
        return None, (UNIT | {"scale": 1.0, "bias": 0.0})[name]
    kinds = {
        "kernel": ("conv", "weight"), "latent": ("binary_conv", "weight"), "scale": ("affine", "scale"),
        "bias": ("affine", "offset"), "shift": ("affine", "offset"),
        **{part: ("rprelu", part) for part in ("shift_in", "slope", "shift_out")},
    }  # fmt: skip
    kind, part = kinds.get(name, ("", ""))
    if (module, kind) not in arrays:
        raise BadInput(f"no operation of the file says what {'/'.join(path)} is")
    found = arrays[module, kind]
    if name in ("shift", "bias") and (module, "conv" if name == "bias" else "binary_conv") in arrays:
        if not np.all(found["scale"] == 1):  # a threshold or the bias of a head, with more folded into it
            raise BadInput(f"{module} has a scale that no variable has")
    return (module, kind), found[part]

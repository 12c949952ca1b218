"""The networks that come with the package, for JAX: from a name to variables. The table is `runtime.named.rows`.

Where the float weights were kept they are these, latent weights included, and a training goes on where it ended. Where
not, the packed file is turned back: ±1 weights become latent weights of ±1, and each scale and offset the batch norm
that it was folded from. What such variables compute is what the file computes; packed again, they give its arrays bit
for bit. A training does not go on from those: what was folded would be normalized once more.
"""

import io
from typing import Any

import numpy as np
from flax import traverse_util

from bireal_jax.errors import BadInput
from bireal_jax.runtime import container, named

EPSILON = 1e-5  # of `layers.BatchNorm`
UNIT = {"mean": 0.0, "var": 1 - EPSILON}  # statistics of a batch norm that computes scale x + bias


def program(name: str) -> container.Program:
    """The packed network of a name. Raises BadInput if there is none, or its file is damaged."""
    return container.parse(named.packed(name), name)


def has_latents(name: str) -> bool:
    """Whether the float weights of a network came with the package."""
    return bool(named.rows()[name].weights)


def variables(name: str, shapes: Any) -> dict:
    """The variables of a network that came with the package.

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

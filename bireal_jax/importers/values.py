"""What the numbers of a network can be, leaf by leaf: a file may have the right names and shapes, and be damaged."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from bireal_jax.errors import BadInput

# leaf -> the largest size that a training gives; signs train within ±10, and one larger weight would rule its scale
LARGEST = {"latent": 1e4, "kernel": 1e6}
OTHERS = 1e12  # statistics of maps that are not normalized, and what goes with them
NOT_ZERO = {"latent": "no latent weights were stored", "scale": "its layer gives the same for every image"}


def array(value: Any) -> np.ndarray:
    """A numpy array of an array or of a PyTorch tensor, on whatever device, trained or not; bfloat16 as float32.

    PyTorch is not imported: whoever has a tensor has it.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # which numpy lacks
        return value.numpy()
    found = np.asarray(value)
    return found.astype(np.float32) if found.dtype.name == "bfloat16" else found


def check(name: str, array: np.ndarray, leaf: str) -> None:
    """Raises BadInput, naming tensor, value and limit, unless every number can be one of that leaf.

    Args:
      name: of the tensor, for the message.
      array: its numbers.
      leaf: what it is of ours: "latent", "kernel", "scale", "bias", "mean", "var", or a shift or slope.
    """
    if not np.issubdtype(array.dtype, np.floating):
        raise BadInput(f"{name} has the dtype {array.dtype}, and weights are real numbers\nstore plain float32 arrays")
    limit = LARGEST.get(leaf, OTHERS)
    for bad, wanted in (
        (~np.isfinite(array), "every number must be finite"),
        (np.abs(array) > limit, f"a {leaf} is at most {limit:g} in size"),
        (array < 0 if leaf == "var" else np.zeros(()), "a running variance is 0 or more"),
    ):
        if bad.any():
            first = array.ravel()[int(np.argmax(bad))]
            raise BadInput(
                f"{name}: {int(bad.sum())} of {array.size} values cannot be, such as {first:g}; {wanted}\n"
                "the training that wrote it has diverged, or the file is damaged; take an earlier one"
            )
    if leaf in NOT_ZERO and array.size and not array.any():
        raise BadInput(f"{name}: all {array.size} values of the {leaf} are 0; {NOT_ZERO[leaf]}")


def named_once(rows: Iterable[tuple[Any, str, np.ndarray]]) -> dict[Any, np.ndarray]:
    """name -> array of (name, name in the file, array).

    Raises:
      BadInput: two names in the file mean the same array, and their numbers differ.
    """
    arrays: dict[Any, np.ndarray] = {}
    origin: dict[Any, str] = {}
    for name, theirs, array in rows:
        old = arrays.get(name)
        if old is not None and (old.dtype != array.dtype or old.tobytes() != array.tobytes()):
            raise BadInput(
                f"{origin[name]} and {theirs} are two names of one array, and their numbers differ\nstore the right one"
            )
        if old is None:
            arrays[name], origin[name] = array, theirs
    return arrays

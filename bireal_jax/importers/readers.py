"""Weight files: a path in, a flat dict of numpy arrays out, under the names that the file has.

The suffix says the format. Nothing is unpickled: a file that holds Python objects is refused, not run. PyTorch and h5py
are needed for their own formats only.
"""

import importlib
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from bireal_jax.errors import BadInput, first_line, lookup
from bireal_jax.importers.values import named_once

NESTS = "state_dict", "model"  # keys below which training loops store a state_dict, beside epoch and optimizer


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a weights file.

    Args:
      path: its suffix is a key of FORMATS.

    Returns:
      name -> array, float32 or wider; whole numbers as they are.

    Raises:
      BadInput: no such file, an unknown suffix, a missing library, a damaged file, Python objects in it, a weight that
        is no number or not finite.
    """
    path = Path(path)
    row = lookup(FORMATS, path.suffix.lower(), f"kind of weights file: {path} ends in")
    if not path.is_file():
        raise BadInput(f"no such file: {path}")
    try:
        arrays = named_once((str(name), repr(name), np.asarray(array)) for name, array in row.read(path).items())
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except Exception as error:  # of a damaged file, four libraries raise what they like
        reason = f"{first_line(error)} ({type(error).__name__})"
        raise BadInput(f"{path} is not a readable {row.what}: {reason}\n{_anew(row)}") from None
    return {name: _numbers(array, f"{path}: {name}") for name, array in arrays.items()}


def _numbers(array, what) -> np.ndarray:
    if not np.can_cast(array.dtype, np.float64):
        raise BadInput(f"{what} has the dtype {array.dtype}, and weights are real numbers\nstore plain float32 arrays")
    if not np.issubdtype(array.dtype, np.floating):  # a counter, such as num_batches_tracked
        return array
    wide = array.astype(np.promote_types(array.dtype, np.float32), copy=False)
    bad = int(np.sum(~np.isfinite(wide)))
    if bad:
        raise BadInput(
            f"{what} has {bad} of {wide.size} values that are NaN or infinite\n"
            "the training that wrote it has diverged, or the file is damaged; take an earlier one"
        )
    return wide


def _read_npz(path):
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        twice = [name for name, count in Counter(arrays.files).items() if count > 1]
        if twice:
            raise BadInput(f"holds {twice[0]} twice\n{_anew(FORMATS['.npz'])}")
        return dict(arrays)


def _read_hdf5(path):
    """Every data set under its path; of a whole Keras model, the weights alone."""
    h5py = _library("h5py")
    found = {}

    def visit(name, node):
        if isinstance(node, h5py.Dataset):
            found[name] = node[()]

    with h5py.File(path, "r") as file:
        file.get("model_weights", file).visititems(visit)
    return found


def _read_torch(path):
    torch = _library("torch")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols that PyTorch's own files do not have
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # PyTorch's message tells how to run the code in the file; ours does not
        raise BadInput(
            "holds Python objects that are not tensors, or is damaged; it is never unpickled here\n"
            f"where you trust it, load it and write the tensors alone: {FORMATS['.pt'].write}"
        ) from None
    while isinstance(found, dict) and (nests := [n for n in NESTS if isinstance(found.get(n), dict)]):
        if len(nests) > 1:
            raise BadInput(f"holds two sets of weights, {' and '.join(nests)}\n{_anew(FORMATS['.pt'])}")
        found = found[nests[0]]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        what = (
            f"a dict of {', '.join(sorted(map(str, found))[:6])}" if isinstance(found, dict) else type(found).__name__
        )
        raise BadInput(f"holds no state_dict but {what}\n{_anew(FORMATS['.pt'])}")
    small = torch.bfloat16  # which numpy lacks
    return {k: (v.float() if v.dtype == small else v).detach().numpy() for k, v in found.items()}


def _library(name) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise BadInput(f"files of this kind need {name}, which is not installed\npip install {name}") from None


def _anew(row):
    return f"copy it again, or write it anew: {row.write}"


class Format(NamedTuple):
    """What a file is called in messages, its reader, and how one is written."""

    what: str
    read: Callable[[Path], dict[str, Any]]
    write: str


_KERAS = Format("HDF5 file", _read_hdf5, "model.save_weights('FILE.h5')")
_TORCH = Format("PyTorch file", _read_torch, "torch.save(model.state_dict(), FILE)")

# suffix -> row. The authors' training code writes .pth.tar.
FORMATS = {
    ".npz": Format(".npz file of plain arrays", _read_npz, "numpy.savez(FILE, **arrays)"),
    ".safetensors": Format(".safetensors file", load_file, "safetensors.numpy.save_file(arrays, FILE), in float32"),
    ".h5": _KERAS,
    ".hdf5": _KERAS,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".tar": _TORCH,
}

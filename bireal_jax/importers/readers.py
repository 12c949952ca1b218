"""Weight files: a path in, a flat dict of numpy arrays out, under the names that the file has.

The suffix says the format. Nothing is unpickled: a file that holds Python objects is refused, not run. PyTorch and h5py
are needed for their own formats only.
"""

import importlib
import math
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from bireal_jax.data.stored import Claim, Npz
from bireal_jax.errors import BadInput, first_line, lookup
from bireal_jax.importers import values
from bireal_jax.importers.values import named_once
from bireal_jax.running import known

MOST = 1 << 30  # bytes of the arrays of a file; ResNet-152 has 60 million numbers
# keys below which training loops store a state_dict, beside epoch and optimizer
NESTS = "state_dict", "model_state_dict", "model", "net", "network"


def read(path: str | Path, look: Callable[[Mapping[str, Any]], None] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a weights file.

    Args:
      path: its suffix is a key of FORMATS.
      look: raises BadInput unless these are wanted: called with names and what has a shape and a size, before an array
        is read, since a small file can claim to hold large ones.

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

    def claimed(arrays):
        total = sum(math.prod(array.shape) * max(4, array.dtype.itemsize) for array in arrays.values())
        if total > MOST:
            raise BadInput(f"its arrays are to take {total:,} bytes; no network here takes {MOST:,}")
        if look:
            look(arrays)

    try:
        found = row.read(path, claimed).items()
        arrays = named_once((str(name), repr(name), np.asarray(array)) for name, array in found)
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


def _read_npz(path, look):
    with Npz(path) as stored:
        claims = {name: claim for name, claim in stored.claims.items() if name != known.KNOWN}
        look(claims)
        return {name: stored.read(name) for name in claims}


def _read_safetensors(path, look):
    with safe_open(path, "numpy") as file:
        if "bireal_jax" in (file.metadata() or {}):
            raise BadInput(
                "is a packed network, for bireal_jax.runtime: its weights are bits, without the latent ones\n"
                "give the workdir of the run that it is from, or weights that `importers` wrote"
            )
    arrays = load_file(path)  # which are as long as the file
    look(arrays)
    return arrays


def _read_hdf5(path, look):
    """Every data set under its path; of a whole Keras model, the weights alone."""
    h5py = library("h5py")
    found = {}

    def visit(name, node):
        if isinstance(node, h5py.Dataset):
            found[name] = node

    with h5py.File(path, "r") as file:
        file.get("model_weights", file).visititems(visit)
        look(found)
        return {name: node[()] for name, node in found.items()}


def _read_torch(path, look):
    torch = library("torch")
    if zipfile.is_zipfile(path):  # which PyTorch does not compress
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > max(MOST, 2 * path.stat().st_size):
            raise BadInput(f"its parts are to take {total:,} bytes; no network here takes {MOST:,}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols that PyTorch's own files do not have
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # PyTorch's message tells how to run the code in the file; ours does not
        raise BadInput(
            "holds Python objects that are not tensors, or is damaged; it is never unpickled here\n"
            f"where you trust it, load it and write the tensors alone: {FORMATS['.pt'].write}"
        ) from None
    while isinstance(found, Mapping) and (nests := [n for n in NESTS if isinstance(found.get(n), Mapping)]):
        if len(nests) > 1:
            raise BadInput(f"holds two sets of weights, {' and '.join(nests)}\n{_anew(FORMATS['.pt'])}")
        found = found[nests[0]]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        what = (
            f"a dict of {', '.join(sorted(map(str, found))[:6])}"
            if isinstance(found, Mapping)
            else type(found).__name__
        )
        raise BadInput(f"holds no state_dict but {what}\n{_anew(FORMATS['.pt'])}")
    look({name: Claim(tuple(value.shape), np.dtype(np.float32)) for name, value in found.items()})
    return {name: values.array(tensor) for name, tensor in found.items()}


def library(name: str) -> Any:
    """The module of that name. Raises BadInput, with how it is installed, where it is not."""
    try:
        return importlib.import_module(name)
    except ImportError:
        cpu = " --index-url https://download.pytorch.org/whl/cpu" if name == "torch" else ""  # without GPU libraries
        raise BadInput(
            f"files of this kind need {name}, which is not installed; .safetensors and .npz do not\n"
            f"pip install {name}{cpu}"
        ) from None


def _anew(row):
    return f"copy it again, or write it anew: {row.write}"


class Format(NamedTuple):
    """What a file is called in messages, its reader, and how one is written."""

    what: str
    read: Callable[[Path, Callable[[Mapping[str, Any]], None]], dict[str, Any]]
    write: str


_KERAS = Format("HDF5 file", _read_hdf5, "model.save_weights('FILE.h5')")
_TORCH = Format("PyTorch file", _read_torch, "torch.save(model.state_dict(), FILE)")

# suffix -> row. The authors' training code writes .pth.tar.
FORMATS = {
    ".npz": Format(".npz file of plain arrays", _read_npz, "numpy.savez(FILE, **arrays)"),
    ".safetensors": Format(
        ".safetensors file", _read_safetensors, "safetensors.numpy.save_file(arrays, FILE), in float32"
    ),
    ".h5": _KERAS,
    ".hdf5": _KERAS,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".bin": _TORCH,
    ".ckpt": _TORCH,  # of Lightning
    ".tar": _TORCH,
}

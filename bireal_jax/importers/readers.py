"""Weight files: a path in, a flat dict of numpy arrays out, under the names that the file has.

The suffix says the format. Nothing is unpickled: a file that holds Python objects is refused, not run. PyTorch and h5py
are needed for their own formats only.
"""

import importlib
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from bireal_jax import kinds
from bireal_jax.data.stored import Claim, Npz
from bireal_jax.errors import BadInput, first_line, lookup
from bireal_jax.importers import values
from bireal_jax.importers.choices import Choice
from bireal_jax.importers.values import named_once
from bireal_jax.running import known

MOST = 1 << 30  # bytes of the arrays of a file; ResNet-152 has 60 million numbers
# keys below which training loops store a state_dict, beside epoch and optimizer
NESTS = "state_dict", "model_state_dict", "model", "net", "network"


def read(
    path: str | Path, look: Callable[[Mapping[str, Any]], None] | None = None, key: str = ""
) -> dict[str, np.ndarray]:
    """The arrays of a weights file.

    Args:
      path: its suffix is a key of FORMATS.
      look: raises BadInput unless these are wanted: called with names and what has a shape and a size, before an array
        is read, since a small file can claim to hold large ones.
      key: of a PyTorch file, below which the wanted weights lie, such as "model_ema" or "model.state_dict"; "" where
        there are no others, and the keys above them are known (NESTS).

    Returns:
      name -> array, float32 or wider; whole numbers as they are.

    Raises:
      BadInput: no such file, an unknown suffix, a missing library, a damaged file, Python objects in it, a weight that
        is no number or not finite.
    """
    path = Path(path)
    try:
        row = lookup(FORMATS, path.suffix.lower(), f"kind of weights file: {path} ends in")
    except BadInput as error:
        others = "config.init_from also takes the workdir of a run, and a network that came with the package"
        raise BadInput(f"{error}\n{others}: bireal-run --list") from None
    if not path.is_file():
        raise BadInput(f"no such file: {path}")
    if key and row is not _TORCH:
        raise BadInput(f"{path}: only PyTorch's files have keys above the names of arrays; leave {key=} out")
    reader = partial(_read_torch, key=key) if key else row.read

    instead = ""

    def claimed(arrays):
        total = sum(math.prod(array.shape) * max(4, array.dtype.itemsize) for array in arrays.values())
        if total > MOST:
            raise BadInput(f"its arrays are to take {total:,} bytes; no network here takes {MOST:,}")
        if look:
            look(arrays)

    try:
        if instead := _instead(path):
            raise ValueError(instead)
        found = reader(path, claimed).items()
        arrays = named_once((str(name), repr(name), np.asarray(array)) for name, array in found)
    except Choice as error:
        raise error.of(path) from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except Exception as error:  # of a damaged file, four libraries raise what they like
        reason = instead or kinds.other_bytes(path) or f"{first_line(error)} ({type(error).__name__})"
        raise BadInput(f"{path} is not a readable {row.what}: {reason}\n{_anew(row)}") from None
    return {name: _numbers(array, f"{path}: {name}") for name, array in arrays.items()}


def _instead(path):
    """What a file is that is none of weights, or that its end is missing; or ""."""
    kind = kinds.of_file(path)
    if kinds.is_no_file_of_arrays(kind):
        return f"it is {kind.what}"
    if kind in (kinds.PYTORCH, kinds.NUMPY, kinds.ZIP):
        return kinds.no_zip(path)
    cut = kinds.cut_off(path.read_bytes()) if kind in (kinds.ARRAYS, kinds.PACKED) else ""
    return cut and f"it {cut}"


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


def _read_torch(path, look, key=""):
    torch = library("torch")
    if zipfile.is_zipfile(path):  # which PyTorch does not compress
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > max(MOST, 2 * path.stat().st_size):
            raise BadInput(f"its parts are to take {total:,} bytes; no network here takes {MOST:,}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols that PyTorch's own files do not have
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global|class) ([\w.]+\.\w+)", str(error))
        raise BadInput(
            f"holds Python objects that are not tensors, {f'such as {named[1]}' if named else 'or is damaged'}; it is "
            "never unpickled here\n"
            f"only where you trust it, since loading it runs its code, write the tensors alone: {FORMATS['.pt'].write} "
            "of model = torch.load(FILE, weights_only=False)\n"
            'or, where that is a dict, torch.save(torch.load(FILE, weights_only=False)["state_dict"], NEW)'
        ) from None
    found = _chosen(found, key)
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        what = (
            f"a dict of {', '.join(sorted(map(str, found))[:6])}"
            if isinstance(found, Mapping)
            else type(found).__name__
        )
        raise BadInput(f"holds no state_dict but {what}\n{_anew(FORMATS['.pt'])}")
    look({name: Claim(tuple(value.shape), np.dtype(np.float32)) for name, value in found.items()})
    return {name: values.array(tensor) for name, tensor in found.items()}


def _chosen(found, key):
    """The one set of weights that a PyTorch file holds, of those below `key`."""
    sets = dict(_sets(found, library("torch").Tensor, "", set()))
    below = [at for at in sets if not key or f"{at}.".startswith(f"{key}.")]
    if key and not below:
        raise BadInput(f"holds no weights under the key {key}; keys of weights: {', '.join(sets) or 'none'}")
    if len(below) > 1:
        count = {2: "two"}.get(len(below), len(below))
        raise Choice(f"holds {count} sets of weights, {' and '.join(below)}\nsay which one is meant", key=below[-1])
    if below and not key and not {*below[0].split(".")} <= {"", *NESTS}:
        raise Choice(f"holds weights under the key {below[0]}, which may be anything\nif they are meant", key=below[0])
    return sets[below[0]] if below else found


def _sets(found: Any, tensor: type, at: str, seen: set[int]) -> Iterable[tuple[str, Any]]:
    """(keys, dict) of every dict in dicts that looks like a state_dict, or is below one of NESTS and has tensors alone.

    An optimizer's is none: its tensors have no names of modules, with a dot.
    """
    if not isinstance(found, Mapping) or id(found) in seen:  # a pickle can have loops
        return
    seen.add(id(found))
    if any("." in str(name) and isinstance(value, tensor) and value.ndim > 1 for name, value in found.items()):
        yield at, found
        return
    for name, value in found.items():
        keys = f"{at}.{name}" if at else str(name)
        below = list(_sets(value, tensor, keys, seen))
        if not below and name in NESTS and isinstance(value, Mapping) and value:
            below = [(keys, value)] if all(isinstance(v, tensor) for v in value.values()) else []
        yield from below


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

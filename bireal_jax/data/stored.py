"""numpy's files, of which the headers are looked at first: a hundred bytes can claim petabytes, a megabyte of zeros can
be a gigabyte. Nothing is unpickled."""

import io
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bireal_jax import kinds
from bireal_jax.errors import BadInput


class Claim(NamedTuple):
    """What a header says of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)


def claim(file: Any, length: int) -> Claim:
    """What the header of an .npy file says, which is read up to the first number.

    Args:
      file: open at its beginning.
      length: of the file, in bytes.

    Raises:
      ValueError: no such file, Python objects, or another length than the header says.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"an .npy file of version {version}, which plain arrays do not need")
    found = Claim(shape, dtype)
    if dtype.hasobject:
        raise ValueError(
            "it holds Python objects, which are never unpickled; of elements of one shape: numpy.stack(ARRAY)"
        )
    if any(side < 0 for side in shape):
        raise ValueError(f"a shape of {shape}")
    if found.size * dtype.itemsize != (there := length - file.tell()):
        raise ValueError(
            f"an array of {shape} {dtype} takes {found.size * dtype.itemsize:,} bytes; {there:,} are there"
        )
    return found


def read_npy(data: bytes) -> np.ndarray:
    """The array of an .npy file. Raises ValueError as `claim`."""
    claim(io.BytesIO(data), len(data))
    return np.load(io.BytesIO(data), allow_pickle=False)


class Npz:
    """An .npz file: `claims` by name, and the arrays one by one.

    Raises BadInput for a name twice, ValueError for what is no such file, and what zipfile, zlib and `claim` raise.
    """

    def __init__(self, path: str | Path):
        if instead := kinds.no_zip(path):
            raise ValueError(instead)
        self._archive = zipfile.ZipFile(path)
        self.claims: dict[str, Claim] = {}
        for info in self._archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in self.claims:
                raise BadInput(f"holds {name} twice; write it anew: numpy.savez(FILE, **arrays)")
            with self._archive.open(info) as member:
                try:
                    self.claims[name] = claim(member, info.file_size)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._archive.close()

    def read(self, name: str) -> np.ndarray:
        """One array."""
        known = set(self._archive.namelist())
        with self._archive.open(f"{name}.npy" if f"{name}.npy" in known else name) as member:
            return np.lib.format.read_array(member, allow_pickle=False)

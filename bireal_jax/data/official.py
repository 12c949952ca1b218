"""CIFAR-10 and CIFAR-100 as their authors publish them for Python: pickles in a folder or in the .tar.gz of it."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bireal_jax.data import pickled
from bireal_jax.errors import BadInput, first_line

MOST = 1 << 28  # bytes of one file; the largest has 155 MB


class Layout(NamedTuple):
    """Where things lie: the archive, its folder, its files for either split, and the labels in each."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str


TEN = tuple(f"data_batch_{i}" for i in range(1, 6))
LAYOUTS = {
    "cifar10": Layout("cifar-10-python.tar.gz", "cifar-10-batches-py", TEN, ("test_batch",), "labels"),
    "cifar100": Layout("cifar-100-python.tar.gz", "cifar-100-python", ("train",), ("test",), "fine_labels"),
}


def find(place: str, name: str) -> Path | None:
    """The folder or the archive of the data set in `place`, or `place` if it is one of them; None if it is neither."""
    path, layout = Path(place), LAYOUTS[name]
    if path.is_file():
        return path if path.name.endswith((".tar.gz", ".tgz", ".tar")) else None
    found = [p for p in (path / layout.folder, path) if (p / layout.train[0]).is_file()]
    return next(iter(found), path / layout.archive if (path / layout.archive).is_file() else None)


def read(path: Path, name: str) -> dict[str, np.ndarray]:
    """{"x_train": uint8 [n, 32, 32, 3], "y_train": int64 [n], "x_test", "y_test"} of what `find` found.

    Nothing is unpacked to the disk and nothing unpickled: see `pickled`.

    Raises:
      BadInput: a file is missing, damaged, or has anything else in it.
    """
    layout = LAYOUTS[name]
    try:
        if path.is_dir():
            return _arrays(layout, lambda file: (path / file).open("rb"))
        with tarfile.open(path) as archive:
            members = {Path(m.name).name: m for m in archive if m.isreg() and Path(m.name).parent.name == layout.folder}
            return _arrays(layout, lambda file: archive.extractfile(members[file]))
    except KeyError as error:
        raise BadInput(f"{path} has no {layout.folder}/{error.args[0]}; download it anew") from None
    except (OSError, EOFError, tarfile.TarError) as error:
        raise BadInput(f"{path} is damaged, or no {layout.folder}: {first_line(error)}; download it anew") from None


def _arrays(layout: Layout, open_file: Callable) -> dict[str, np.ndarray]:
    arrays = {}
    for split in ("train", "test"):
        parts = []
        for file in getattr(layout, split):
            with open_file(file) as opened:
                data = opened.read(MOST + 1)
            parts.append(_part(data, layout, file))
        images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    return arrays


def _part(data, layout, file):
    """Images and labels of one file, whose rows are 1024 red, 1024 green and 1024 blue pixels."""
    where = f"{layout.folder}/{file}"
    try:
        if len(data) > MOST:
            raise ValueError(f"it has more than {MOST >> 20} MiB")
        found = pickled.load(data)
        if not isinstance(found, dict) or not {"data", layout.labels} <= set(found):
            raise ValueError(f"it has no data and {layout.labels}")
        images, labels = found["data"], found[layout.labels]
        if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
            raise ValueError("its data is no array of (n, 3072)")
        if not isinstance(labels, list) or len(labels) != len(images) or any(type(v) is not int for v in labels):
            raise ValueError(f"its {layout.labels} is no list of {len(images)} integers")
        if any(not 0 <= v < 1 << 31 for v in labels):
            raise ValueError(f"its {layout.labels} has {min(labels)} or {max(labels)}")
    except (ValueError, MemoryError) as error:
        raise BadInput(f"{where}: {first_line(error)}\ndownload it anew") from None
    return np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), np.asarray(labels, np.int64)

"""From a trained network to one packed file: ±1 weights as bits, batch norm and scales folded, exactly."""

import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from bireal_jax import graph
from bireal_jax._version import __version__
from bireal_jax.data import Source
from bireal_jax.runtime import container


def program(
    name: str, module: nn.Module, variables: Any, source: Source, resize: int = 0, dtype: Any = np.float32
) -> container.Program:
    """The packed network in memory.

    Args:
      name: of the model.
      module, variables: the network.
      source: the data set it was trained on: shape and normalization of the images, names of the labels.
      resize: short side in pixels before the centre crop, 0 for none.
      dtype: of the real-valued weights. A file has float32; float64 is for comparing the mathematics.

    Raises:
      BadInput: the network does something that the packed file has no operation for.
    """
    ops = graph.trace(module, variables, source.image_shape)
    rows, tensors = [], {}
    for i, op in enumerate(ops):
        rows.append({"op": op.kind, "path": op.path, "inputs": list(op.inputs), "shape": list(op.shape), **op.settings})
        for key, array in op.arrays.items():
            tensors[f"{i}.{key}"] = (
                container.pack(array) if op.binary_weight and key == "weight" else array.astype(dtype)
            )
    image = {
        "shape": list(source.image_shape), "mean": [float(v) for v in source.mean],
        "std": [float(v) for v in source.std], "resize": resize,
    }  # fmt: skip
    spec = {
        "format": container.FORMAT, "package": __version__, "model": name, "image": image,
        "labels": list(source.label_names), "ops": rows,
    }  # fmt: skip
    return container.Program(spec, tensors)


def write(program: container.Program, path: Path) -> int:
    """Writes the packed file, whole or not at all; returns its size in bytes."""
    data = container.dump(program)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
    return len(data)

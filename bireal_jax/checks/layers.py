"""What a trained network's binary layers do on images: inputs inside the window, dead channels, flips, scales."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bireal_jax import runtime
from bireal_jax.running import checkpoint
from bireal_jax.runtime import container
from bireal_jax.shipping import accuracy


@dataclasses.dataclass
class Layer:
    """A sign and what goes into it.

    Attributes:
      path: of the sign.
      inside: share of inputs within (-1, 1), where gradients pass the derivatives of most rows of the tables.
      deviation: of the inputs.
      dead: share of channels that have one sign for every image and pixel: they carry nothing.
    """

    path: str
    inside: float
    deviation: float
    dead: float


def signs(packed: bytes, images: np.ndarray) -> list[Layer]:
    """A `Layer` for each sign of a packed network, in order.

    Args:
      packed: the file's bytes.
      images: uint8 [n, h, w, c].
    """
    kernels = None if runtime.available() else "reference"
    net = runtime.Network(packed, "the network", kernels=kernels, unfused=True, max_memory=accuracy.ROOM)
    ops = container.parse(packed, "the network").spec["ops"]
    places = [(i, op) for i, op in enumerate(ops) if op["op"] == "sign"]
    inside, squares, sums = np.zeros((3, len(places)))
    ever: list[Any] = [None] * len(places)
    for image in images:
        tensors = net.tensors(image)
        for k, (_, op) in enumerate(places):
            x = tensors[op["inputs"][0]].astype(np.float64)
            inside[k] += np.mean(np.abs(x) < 1)
            sums[k] += x.mean()
            squares[k] += np.mean(x * x)
            above = (x >= 0).reshape(-1, x.shape[-1])
            both = np.stack([above.any(0), ~above.all(0)])  # somewhere +1, somewhere -1
            ever[k] = both if ever[k] is None else ever[k] | both
    n = max(1, len(images))
    return [
        Layer(op["path"], inside[k] / n, max(0.0, squares[k] / n - (sums[k] / n) ** 2) ** 0.5, 1 - seen.all(0).mean())
        for k, ((_, op), seen) in enumerate(zip(places, ever, strict=True))
    ]


def leaves(variables: Mapping[str, Any], name: str) -> Iterator[tuple[str, np.ndarray]]:
    """(path of the layer, array) of every parameter called `name`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        if path[-1].key == name:
            yield "/".join(part.key for part in path[:-1]), np.asarray(leaf, np.float64)


def flips(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Share of binary weights, a layer, whose sign differs between two sets of variables."""
    old = dict(leaves(before, "latent"))
    return {path: float(np.mean((old[path] >= 0) != (w >= 0))) for path, w in leaves(after, "latent") if path in old}


def ends(workdir: Path, shapes: Any) -> list[tuple[int, Any]]:
    """(step, variables) of the oldest and the newest sound checkpoint that the last stage has kept."""
    places = list(checkpoint.directories(workdir).values())
    if not places:
        return []
    found: list[tuple[int, Any]] = []
    with checkpoint.Checkpoints(places[-1], read_only=True) as checkpoints:
        for step in checkpoints.steps():
            try:
                found.append((step, checkpoints.restore(step, {"variables": shapes})["variables"]))
            except checkpoint.Damaged:
                continue
    return found[:1] + found[1:][-1:]

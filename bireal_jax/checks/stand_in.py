"""Small things in the place of large ones: what a check computes with, so that it takes seconds."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bireal_jax import models
from bireal_jax.data import Source
from bireal_jax.training.step import Plan

MOST = 130  # parameter arrays; networks of more are stood for by a tiny one of their kind
TINY = ((models.REACTNET, "react_tiny"), (models.REAL_MODELS, "resnet_tiny"), (models.MODELS, "bireal_tiny"))


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Code that runs once is compiled without most optimizations: in half the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def config_of(config: ConfigDict, plan: Plan) -> tuple[ConfigDict, str]:
    """The config with a network that is compiled in half a minute, and in words what it stands for."""
    c = ConfigDict(config.to_dict())
    parameters = jax.tree.leaves((plan.shapes["params"], (plan.teacher_shapes or {}).get("params")))
    if len(parameters) <= MOST:
        return c, ""
    name = c.model.name
    c.model.name = next(tiny for table, tiny in TINY if name in table)
    c.teacher.name = "resnet_tiny"
    return c, f", with {c.model.name} for {name}, which takes minutes to compile"


def noise(source: Source, devices: int, each: int) -> dict[str, np.ndarray]:
    """A training batch, [devices, each, ...]: of class 0, or 1 m far everywhere."""
    images = np.random.default_rng(0).integers(0, 256, (devices, each, *source.image_shape)).astype(np.uint8)
    label = np.zeros((devices, each), np.int32)
    if source.depth_range:
        label = np.ones((devices, each, *source.label_shape), np.float32)
    return {"image": images, "label": label, "mask": np.ones((devices, each), bool)}


def zeros(shapes: Any) -> Any:
    """Arrays of these shapes."""
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)

"""Networks with variables as after a training, for tests of what is exported."""

import tempfile
from functools import cache, lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from expected import MODELS

from bireal_jax import models
from bireal_jax.data import Source
from bireal_jax.shipping import export


def drawn(module, image_shape, seed=0):
    """Variables in float64: running statistics, scales and latent weights of the size that training gives."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        if name == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        return rng.normal(0, 0.6 if name == "latent" else 0.1, leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def source(image_shape):
    channels = image_shape[-1]
    names = tuple(f"name {i}" for i in range(10))
    return Source((), (), dict, image_shape, 10, (0.4,) * channels, (0.3,) * channels, names)


@lru_cache(maxsize=2)  # half a gigabyte each for the AlexNets
def network(name, **fields):
    """(module, variables, source) of a model with 10 classes."""
    *_, shape = MODELS[name]
    module = models.build(name, 10, dtype=jnp.float32, **fields)
    return module, drawn(module, shape), source(shape)


def program(name, dtype=np.float32, **fields):
    return export.program(name, *network(name, **fields), dtype=dtype)


@cache
def written(name) -> Path:
    """The packed file of a model, made once."""
    path = Path(tempfile.mkdtemp()) / f"{name}.safetensors"
    export.write(program(name), path)
    return path

"""What a run takes, in bytes, and what the machine has."""

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax

from bireal_jax.training.step import Plan, State


def template(plan: Plan) -> State:
    """Shapes of all that a checkpoint of a stage holds."""
    return jax.eval_shape(partial(plan.fresh, seed=0), plan.shapes)


def maps(plan: Plan) -> Any:
    """Shapes of the outputs of all modules for one image: about what the backward pass keeps."""
    images = jax.ShapeDtypeStruct((1, *plan.source.image_shape), plan.model.dtype)
    apply = partial(plan.model.apply, capture_intermediates=True, mutable=["intermediates"])
    return jax.eval_shape(apply, plan.shapes, images)[1]


def bytes_of(tree: Any) -> int:
    """Of all leaves of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def size(count: float) -> str:
    """In words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def available() -> int:
    """Bytes of memory that the machine has to give."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

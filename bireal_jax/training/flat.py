"""A state as few long arrays, for the steps of one call: so a kernel does what else takes one for each parameter.

A small network on a GPU takes as long as its kernels are many. Of the 589 that a step of bireal20 had, some 250 updated
parameters, looked whether they are finite, counted flips and chose between them and the old ones.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict


class Form:
    """How trees of certain structures lie flat: all leaves of one name, such as "scale", as one array.

    Wherever such a tree stands within another, such as the parameters and what an optimizer keeps of each, it is a
    dict {name: [size]} then. A name is all that `optim.labels` asks of a parameter.

    Args:
      trees: of dicts, with arrays or their shapes as leaves; one whose leaves of a name have several dtypes stays as it
        is. None: everything does.
    """

    def __init__(self, trees: Iterable[Any] = ()):
        layouts = [_Layout(tree) for tree in trees]
        self._flat = {layout.apart: layout.join for layout in layouts if layout.whole}
        self._apart = {layout.flat: layout.split for layout in layouts if layout.whole}

    def flat(self, tree: Any) -> Any:
        """The tree with the known ones in it flat."""
        return _within(tree, self._flat)

    def apart(self, tree: Any) -> Any:
        """The inverse of `flat`."""
        return _within(tree, self._apart)


def _within(tree, known):
    structure = jax.tree.structure
    return jax.tree.map(
        lambda part: known.get(structure(part), lambda leaf: leaf)(part),
        tree,
        is_leaf=lambda part: structure(part) in known,
    )


class _Layout:
    """Of one tree."""

    def __init__(self, tree):
        leaves, self.apart = jax.tree_util.tree_flatten_with_path(tree)
        self.names = [path[-1].key for path, _ in leaves]
        self.shapes = [leaf.shape for _, leaf in leaves]
        self.flat = jax.tree.structure(dict.fromkeys(self.names, 0))
        self.whole = len({(name, leaf.dtype) for name, (_, leaf) in zip(self.names, leaves, strict=True)}) == len(
            set(self.names)
        )

    def join(self, tree):
        found: dict[str, list[Any]] = {name: [] for name in self.names}
        for name, leaf in zip(self.names, jax.tree.leaves(tree), strict=True):
            # filter by filter, as convolutions of GPUs take them: else a kernel turns each, there and back
            axes = list(range(leaf.ndim))
            found[name].append(jnp.transpose(leaf, axes[-1:] + axes[:-1]).ravel())
        return {name: jnp.concatenate(leaves) for name, leaves in found.items()}

    def split(self, arrays):
        ends, leaves = dict.fromkeys(arrays, 0), []
        for name, shape in zip(self.names, self.shapes, strict=True):
            start, ends[name] = ends[name], ends[name] + int(np.prod(shape))
            filters = arrays[name][start : ends[name]].reshape(shape[-1:] + shape[:-1])
            axes = list(range(len(shape)))
            leaves.append(jnp.transpose(filters, axes[1:] + axes[:1]))
        return jax.tree.unflatten(self.apart, leaves)


APART = Form()


def pays() -> bool:
    """Whether kernels count here. CPUs have none to save, and keep the bits that they give."""
    return jax.default_backend() != "cpu"


def form(optim: ConfigDict, variables: Any) -> Form:
    """How the steps of a call keep the state of a network.

    Args:
      optim: of a config. Rules that ask a parameter for more than its name need it as it is.
      variables: {"params", "batch_stats"}, or their shapes.
    """
    asks_more = optim.binary or optim.frozen or optim.gradient_floor or optim.silent_decay
    return Form(variables.values()) if pays() and not asks_more else APART

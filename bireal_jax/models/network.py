"""What networks have, said once: outputs, precision, batch norm; what 1-bit ones, and those in stages, have beside."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bireal_jax.binary.layers import BatchNorm, BinaryConv, Conv, Dense
from bireal_jax.binary.norm import Over
from bireal_jax.errors import BadInput


class Network(nn.Module, kw_only=True):
    """A network whose layers are as precise as it is.

    Attributes:
      num_classes: outputs of the head, or channels of the map; 0 for no head: the last map comes out,
        [n, h / total_stride, w / total_stride, c]. Not every network can do without.
      bn_over: what batch statistics are over, as of `norm.normalize_batch`.
      dtype, param_dtype: of the computation and of the parameters.

    Every network has `total_stride`, the product of all strides: the smallest image side, in pixels, and what a side
    should divide by. It is called on images [n, h, w, channels], whether it trains, and its progress, from 0 to 1.
    """

    num_classes: int
    bn_over: Over = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def precision(self) -> dict[str, Any]:
        """Arguments that say how precise a layer is."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def real_layers(self) -> tuple[partial[Conv], partial[BatchNorm]]:
        """Makers of a real-valued convolution and of a batch norm."""
        return partial(Conv, **self.precision), partial(BatchNorm, self.bn_over, **self.precision)


class BinaryNetwork(Network, kw_only=True):
    """A network with 1-bit convolutions.

    Attributes, beside those of `Network`:
      activation, weight: binarizers, from `binarize.activation` and `binarize.weight`.
      latent_init: initializer of the latent or binary weights.
    """

    activation: Callable
    weight: Callable
    latent_init: Callable

    def binary_layer(self, progress: Any, **fields) -> partial[BinaryConv]:
        """Maker of a 1-bit convolution. `progress`: of the training; `fields`: more of `layers.BinaryConv`."""
        binarizers = {name: partial(getattr(self, name), progress=progress) for name in ("activation", "weight")}
        return partial(BinaryConv, **binarizers, latent_init=self.latent_init, **fields, **self.precision)


class Varied(BinaryNetwork, kw_only=True):
    """A 1-bit network with what the codes of the CIFAR-10 literature do in different ways.

    Attributes, beside those of `BinaryNetwork`:
      nonlinearity: what stands behind every sum or batch norm, the stem's too: a function, or the class of a layer
        with fields dtype and param_dtype, of which `functools.partial` may set others; None for nothing.
      head_norm: batch norm before the linear head. An export folds it into the head.
      rescale: what the input of every sign goes through in training, as of `layers.BinaryConv`; None for nothing.
    """

    nonlinearity: Callable | None = None
    head_norm: bool = False
    rescale: Callable | None = None

    @property
    def behind(self) -> Callable[[str], Callable]:
        """Makes the layer behind a sum, of a name. Raises BadInput for a class that takes no precision."""
        layer: Any = self.nonlinearity or (lambda x: x)
        kind, precision = layer.func if isinstance(layer, partial) else layer, self.precision
        if not isinstance(kind, type):
            return lambda name: layer
        if lacking := [field for field in (*precision, "name") if field not in inspect.signature(kind).parameters]:
            raise BadInput(
                f"the nonlinearity {kind.__name__} has no {' and no '.join(lacking)}\n"
                "as the class of a layer it is a Flax module with the fields `dtype: Any = jnp.float32` and "
                "`param_dtype: Any = jnp.float32`\nwhat has no parameters may be a plain function of x instead"
            )
        return lambda name: layer(**precision, name=name)

    def head(self, x, train: bool):
        """Logits of features [n, c], behind their batch norm if there is one."""
        if self.head_norm:
            x = self.real_layers()[1](name="head_bn")(x, train)
        return Dense(self.num_classes, **self.precision, name="head")(x)


class Staged(Network, kw_only=True):
    """A network in the layout of ResNet: stem, stages of blocks, global average pool, linear head.

    Attributes, beside those of `Network`:
      blocks, widths: how many blocks, or convolutions, each stage has, and their channels. Every stage but the first
        halves the size.
      bottleneck: blocks of a 1x1, a 3x3 and a 1x1 convolution, the last one four times as wide.
      imagenet_stem: 7x7 convolution at stride 2 and max pool, instead of a 3x3 convolution.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool = False
    imagenet_stem: bool = True

    @property
    def total_stride(self) -> int:
        """The product of all strides."""
        return 2 ** (len(self.blocks) - 1) * (4 if self.imagenet_stem else 1)

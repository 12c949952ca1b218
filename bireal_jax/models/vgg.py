"""The two networks without shortcuts that the CIFAR-10 literature calls VGG-small and BinaryNet."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bireal_jax.binary.binarize import clip
from bireal_jax.binary.layers import NO_PADDING, BatchNorm, BinaryConv, Conv, Dense
from bireal_jax.binary.norm import Over

WIDTHS = (128, 128, 256, 256, 512, 512)


def _pool(x):
    return nn.max_pool(x, (2, 2), (2, 2))


class Chain(nn.Module):
    """What networks without shortcuts share.

    Attributes:
      num_classes: outputs of the head; 0 for none, as of `BiRealNet`, in those for CIFAR-10.
      activation, weight: binarizers, from `binarize.activation` and `binarize.weight`.
      latent_init: initializer of the latent or binary weights.
      bn_over: what batch statistics are over, as of `norm.normalize_batch`.
      dtype, param_dtype: of the computation and of the parameters.
    """

    num_classes: int
    activation: Callable
    weight: Callable
    latent_init: Callable
    bn_over: Over = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def layers(self, progress):
        """(arguments that say how precise a layer is, the binary layer)."""
        precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        binarizers = {name: partial(getattr(self, name), progress=progress) for name in ("activation", "weight")}
        return precision, partial(BinaryConv, **binarizers, latent_init=self.latent_init, **precision)


class VGGSmall(Chain):
    """Six 3x3 convolutions, a 2x2 maximum behind every second one, one fully connected layer.

    The first convolution and the fully connected layer are real-valued. Order: convolution, pooling, batch norm, clip,
    sign. The layout of IR-Net's code, which RBNN and ReCU share. The clip is there with every activation, a
    real-valued one included.
    """

    total_stride = 8  # the product of all strides, as of BiRealNet

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        precision, layer = self.layers(progress)
        norm = partial(BatchNorm, self.bn_over, **precision)
        x = Conv(WIDTHS[0], **precision, name="stem_conv")(x)
        x = clip(norm(name="stem_bn")(x, train))
        for i, width in enumerate(WIDTHS[1:], 1):
            x = layer(width, name=f"binary_conv{i}")(x)
            x = clip(norm(name=f"bn{i}")(_pool(x) if i % 2 else x, train))
        return Dense(self.num_classes, **precision, name="head")(x.reshape(len(x), -1)) if self.num_classes else x


class BinaryNet(Chain):
    """BinaryNet as the Bop paper trains it: every weight is binary, in the first convolution and the last layer too.

    3x3 convolutions of `WIDTHS`, the first one on the real-valued image and without padding; a 2x2 maximum behind every
    second one; fully connected layers of 1024, 1024 and num_classes. Order: sign, layer, pooling, batch norm without
    scale, of Keras' momentum 0.99 and epsilon 1e-3. The logits are the last batch norm.
    """

    total_stride = 16  # 2 * 2 * 2, and the two pixels that the first convolution takes off

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        precision, layer = self.layers(progress)
        norm = partial(BatchNorm, self.bn_over, 0.99, 1e-3, use_scale=False, **precision)
        for i, width in enumerate(WIDTHS):
            padding = NO_PADDING if i == 0 else None
            x = layer(width, padding=padding, real_input=i == 0, name=f"binary_conv{i}")(x)
            x = norm(name=f"bn{i}")(_pool(x) if i % 2 else x, train)
        if not self.num_classes:
            return x
        x = x.reshape(len(x), 1, 1, -1)  # fully connected layers are 1x1 convolutions of one pixel
        for i, width in enumerate((1024, 1024, self.num_classes)):
            x = layer(width, kernel_size=(1, 1), name=f"binary_dense{i}")(x)
            x = norm(name=f"dense_bn{i}")(x, train)
        return x.reshape(len(x), -1)

"""ReActNet (Liu et al., ECCV 2020, arXiv 2003.03488): MobileNet's layout with 1-bit convolutions and learned shifts.

The rules of the authors' code, for ReActNet-A. Its ResNet form is `bireal.BiRealNet` with `react=True`. ReActNet-B and
-C are not in that code; by a review of the paper, their 1-bit pointwise convolutions "in the downsampling layers" are
real-valued, in B with 4 groups. Where all five pairs that double the channels are, C costs 2.136e8 OPs, as published
(2.14e8), and B 1.172e8: the 1.63e8 quoted for B does not follow from the paper's own formula, BOPs / 64 + FLOPs.
Whether the sign before them stays is not specified by what we have; here it goes, for a real-valued convolution.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bireal_jax.binary.layers import Dense, RPReLU
from bireal_jax.binary.pool import avg_pool, global_avg_pool
from bireal_jax.models.bireal import BiRealNet
from bireal_jax.models.network import BinaryNetwork

Module = Callable[..., Any]

STEM = 32
# Channels behind each block; the size halves where they change, but for the first block.
WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


class Block(nn.Module):
    """A 3x3 convolution and a pointwise one, each with RSign, batch norm, shortcut and RPReLU.

    y = RPReLU(BN(conv3x3(RSign(x))) + pool(x)), out = RPReLU(BN(conv1x1(RSign(y))) + y). Where the channels double, the
    authors have two pointwise convolutions on the same sign and concatenate; that is one convolution of twice as many
    outputs and a shortcut that repeats y. With `real_groups` these pairs are real-valued, without RSign, and each of
    the two is grouped so; two grouped convolutions side by side are one of twice as many groups that reads [y, y].
    """

    features: int
    strides: int
    real_groups: int
    spatial_conv: Module
    binary_conv: Module
    conv: Module
    norm: Module
    rprelu: Module

    @nn.compact
    def __call__(self, x, train):  # [n, h, w, c] -> [n, h / strides, w / strides, features]
        channels = x.shape[-1]
        y = self.spatial_conv(channels, strides=(self.strides, self.strides), name="binary_conv1")(x)
        y = self.norm(name="bn1")(y, train) + (avg_pool(x, self.strides) if self.strides > 1 else x)
        y = self.rprelu(name="rprelu1")(y)
        copies = self.features // channels
        wide = jnp.concatenate([y] * copies, -1)
        if self.real_groups and copies > 1:
            whole = self.real_groups == 1  # then one convolution without groups is the same
            conv = self.conv(self.features, (1, 1), groups=1 if whole else copies * self.real_groups, name="conv2")
            z = conv(y if whole else wide)
        else:
            z = self.binary_conv(self.features, kernel_size=(1, 1), name="binary_conv2")(y)
        return self.rprelu(name="rprelu2")(self.norm(name="bn2")(z, train) + wide)


class ReActNet(BinaryNetwork):
    """Real-valued 3x3 stem at stride 2, 13 blocks, global average pool, linear head.

    Attributes, beside those of `BinaryNetwork`:
      stem, widths: channels behind the stem and behind each block.
      real_groups: where the channels double, the pointwise convolutions are real-valued, each in so many groups; 0 for
        1-bit ones.
      react: learned thresholds before the sign and RPReLU behind the sum; without them the sign alone is not linear.
    """

    stem: int = STEM
    widths: tuple[int, ...] = WIDTHS
    real_groups: int = 0
    react: bool = True

    @property
    def total_stride(self) -> int:
        """The product of all strides."""
        return 2 ** len({self.stem, *self.widths} - {self.widths[0]})

    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        """`progress`: how far the training is, from 0 to 1, for binarizers that change with it."""
        return self.network(x, train, progress, lambda i, conv: conv)

    @nn.compact
    def network(self, x, train, progress, spatial: Callable[[int, partial], partial]):
        """`spatial`: (block, maker of a binary convolution) -> maker of its 3x3 convolution."""
        conv, norm = self.real_layers()
        binary_conv = self.binary_layer(progress, learned_threshold=self.react)
        rprelu = partial(RPReLU, **self.precision) if self.react else lambda name: lambda y: y
        x = conv(self.stem, strides=(2, 2), name="stem_conv")(x)
        x = norm(name="stem_bn")(x, train)
        for i, features in enumerate(self.widths):
            x = Block(
                features, 2 if i > 0 and features > x.shape[-1] else 1, self.real_groups, spatial(i, binary_conv),
                binary_conv, conv, norm, rprelu, name=f"block{i + 1}",
            )(x, train)  # fmt: skip
        return Dense(self.num_classes, **self.precision, name="head")(global_avg_pool(x)) if self.num_classes else x


REACTNET = {
    "react_a": ReActNet,
    "react_b": partial(ReActNet, real_groups=4),
    "react_c": partial(ReActNet, real_groups=1),
    "react_tiny": partial(ReActNet, stem=16, widths=(32, 64, 64)),
    "react_r18": partial(BiRealNet, blocks=(4, 4, 4, 4), widths=(64, 128, 256, 512), react=True),
    "react_r34": partial(BiRealNet, blocks=(6, 8, 12, 6), widths=(64, 128, 256, 512), react=True),
}

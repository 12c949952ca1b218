"""A network that gives a map, such as depth: an encoder without its head, and a decoder of up-projections.

Bi-Real Net's journal version has a 1-bit ResNet-50 estimate depth; its decoder, losses and data set are not known. This
is our choice, after Laina et al. (3DV 2016): up-projection blocks until half of the image's size, each with half the
channels of the one before. What is different serves the 1-bit convolutions: pixels are repeated instead of interleaved
with zeros, of which the sign would be +1; the kernels are 3x3; and a real-valued shortcut goes around every one.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from bireal_jax.binary.layers import Dense
from bireal_jax.binary.pool import upsample
from bireal_jax.models.network import BinaryNetwork

LEAST = 16  # channels of a block
START = 3.0  # where outputs start, in metres: in a room, so that the first epoch does not go on finding its size


class UpProjection(nn.Module):
    """Twice the size: p = up(BN(conv1x1(x))), y = BN(binary_conv3x3(up(x))) + p, out = BN(binary_conv3x3(y)) + y."""

    features: int
    binary_conv: Callable[..., Any]
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x, train):  # [n, h, w, c] -> [n, 2 h, 2 w, features]
        shortcut = self.norm(name="project_bn")(self.conv(self.features, (1, 1), name="project_conv")(x), train)
        y = self.norm(name="bn1")(self.binary_conv(self.features, name="binary_conv1")(upsample(x, 2)), train)
        y = y + upsample(shortcut, 2)
        return self.norm(name="bn2")(self.binary_conv(self.features, name="binary_conv2")(y), train) + y


class MapNet(BinaryNetwork):
    """Encoder, real-valued 1x1 convolution to half of its channels, up-projections, one linear output a pixel.

    Attributes, beside those of `BinaryNetwork`, which are of the decoder's layers:
      make_encoder: a network of the package that still lacks dtype and param_dtype, with num_classes=0.
    """

    make_encoder: Callable[..., Any]

    @property
    def total_stride(self) -> int:
        """Of the encoder: the smallest image side, in pixels, and what a side should divide by."""
        return self.make_encoder().total_stride

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0):
        """[n, h, w, channels] -> [n, h / 2, w / 2, num_classes]; [n, h, w, ...] of an encoder whose stride is 2."""
        (conv, norm), binary_conv = self.real_layers(), self.binary_layer(progress)
        encoder = self.make_encoder(**self.precision, name="encoder")
        x = encoder(x, train, progress)
        features = max(LEAST, x.shape[-1] // 2)
        x = norm(name="bn")(conv(features, (1, 1), name="conv")(x), train)
        for i in range(max(1, encoder.total_stride.bit_length() - 2)):  # log2 of the stride, less one
            features = max(LEAST, features // 2)
            x = UpProjection(features, binary_conv, conv, norm, name=f"up{i + 1}")(x, train)
        return Dense(self.num_classes, **self.precision, name="output")(x) + START


DECODERS = {"up_projection": MapNet}

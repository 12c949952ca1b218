"""The two 1-bit forms of AlexNet that the Bop paper trains on ImageNet: Binary AlexNet and XNOR-Net."""

from functools import partial

import flax.linen as nn
import jax

from bireal_jax.binary.layers import NO_PADDING, BatchNorm
from bireal_jax.models.network import BinaryNetwork

STEM = {"kernel_size": (11, 11), "strides": (4, 4), "padding": ((3, 4), (3, 4))}  # 224 pixels to 56, Keras' "same"


def _pool(x):
    return nn.max_pool(x, (3, 3), (2, 2))


class BinaryAlexNet(BinaryNetwork):
    """AlexNet with ±1 weights in every layer; the first convolution sees the real-valued image.

    Order: sign, layer, pooling, batch norm of Keras' epsilon 1e-3. Convolutions of 64 to 256 channels, fully connected
    layers of 4096, 4096 and num_classes. The logits are the last batch norm.
    """

    total_stride = 64  # the smallest image of which the three poolings leave something: 64 / 4 = 16, 7, 3, 1

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        layer, norm = self.binary_layer(progress), partial(BatchNorm, self.bn_over, 0.9, 1e-3, **self.precision)
        x = norm(name="bn0")(_pool(layer(64, **STEM, real_input=True, name="binary_conv0")(x)), train)
        for i, (width, size) in enumerate(((192, 5), (384, 3), (384, 3), (256, 3)), 1):
            x = layer(width, kernel_size=(size, size), name=f"binary_conv{i}")(x)
            x = norm(name=f"bn{i}")(_pool(x) if i in (1, 4) else x, train)
        x = x.reshape(len(x), 1, 1, -1)  # fully connected layers are 1x1 convolutions of one pixel
        for i, width in enumerate((4096, 4096, self.num_classes)):
            x = layer(width, kernel_size=(1, 1), name=f"binary_dense{i}")(x)
            x = norm(name=f"dense_bn{i}")(x, train)
        return x.reshape(len(x), -1)


class XNORNet(BinaryNetwork):
    """XNOR-Net as the Bop paper trains it: AlexNet with a real-valued first convolution and last layer, and no scales.

    Real convolution of 96 channels, batch norm, ReLU, pooling, batch norm; then sign, convolution, pooling, batch norm
    with 256 to 4096 channels; ReLU; a fully connected layer without bias. The epsilons are those of the authors' code.
    """

    total_stride = 224  # the 6x6 convolution without padding wants a map of 6x6, which 220 pixels give at the least

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        conv, layer = self.real_layers()[0], self.binary_layer(progress)
        norm = partial(BatchNorm, self.bn_over, 0.9, **self.precision)
        x = norm(epsilon=1e-5, name="stem_bn")(conv(96, **STEM, name="stem_conv")(x), train)
        x = norm(epsilon=1e-4, name="bn0")(_pool(jax.nn.relu(x)), train)
        for i, (width, size) in enumerate(((256, 5), (384, 3), (384, 3), (256, 3), (4096, 6), (4096, 1)), 1):
            padding = None if i < 5 else NO_PADDING
            x = layer(width, kernel_size=(size, size), padding=padding, name=f"binary_conv{i}")(x)
            x = norm(epsilon=1e-3 if i == 6 else 1e-4, name=f"bn{i}")(_pool(x) if i in (1, 4) else x, train)
        x = jax.nn.relu(x).reshape(len(x), 1, 1, -1)
        return conv(self.num_classes, (1, 1), name="head")(x).reshape(len(x), -1)

"""The two networks without shortcuts that the CIFAR-10 literature calls VGG-small and BinaryNet."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from bireal_jax.binary.binarize import clip
from bireal_jax.binary.layers import NO_PADDING, BatchNorm, PReLU
from bireal_jax.binary.norm import by_deviation
from bireal_jax.models.network import BinaryNetwork, Varied

WIDTHS = (128, 128, 256, 256, 512, 512)


def _pool(x):
    return nn.max_pool(x, (2, 2), (2, 2))


class VGGSmall(Varied):
    """Six 3x3 convolutions, a 2x2 maximum behind every second one, one fully connected layer.

    The first convolution and the fully connected layer are real-valued. Order: convolution, pooling, batch norm,
    nonlinearity, sign. The layout of IR-Net's code, which RBNN and ReCU share, with a clip. The nonlinearity is there
    with every activation, a real-valued one included.
    """

    nonlinearity: Callable | None = clip

    total_stride = 8  # the product of all strides, as of BiRealNet

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        conv, norm = self.real_layers()
        layer = self.binary_layer(progress, rescale=self.rescale if train else None)
        x = conv(WIDTHS[0], name="stem_conv")(x)
        x = self.behind("stem_nonlinearity")(norm(name="stem_bn")(x, train))
        for i, width in enumerate(WIDTHS[1:], 1):
            x = layer(width, name=f"binary_conv{i}")(x)
            x = self.behind(f"nonlinearity{i}")(norm(name=f"bn{i}")(_pool(x) if i % 2 else x, train))
        return self.head(x.reshape(len(x), -1), train) if self.num_classes else x


class BinaryNet(BinaryNetwork):
    """BinaryNet as the Bop paper trains it: every weight is binary, in the first convolution and the last layer too.

    3x3 convolutions of `WIDTHS`, the first one on the real-valued image and without padding; a 2x2 maximum behind every
    second one; fully connected layers of 1024, 1024 and num_classes. Order: sign, layer, pooling, batch norm without
    scale, of Keras' momentum 0.99 and epsilon 1e-3. The logits are the last batch norm.
    """

    total_stride = 16  # 2 * 2 * 2, and the two pixels that the first convolution takes off

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        layer = self.binary_layer(progress)
        norm = partial(BatchNorm, self.bn_over, 0.99, 1e-3, use_scale=False, **self.precision)
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


# name -> what differs from VGGSmall's defaults
VGGS = {
    "vgg_small": {},
    "prelu_vgg": {"nonlinearity": PReLU},  # SiMaN
    "recu_vgg": {"rescale": by_deviation},
}

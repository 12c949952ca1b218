"""ResNet (He et al., CVPR 2016), real-valued: the teachers of 1-bit networks.

The architecture of torchvision, whose weights `importers` reads; in a bottleneck the 3x3 convolution has the stride.
"""

from functools import partial

import flax.linen as nn

from bireal_jax.binary.layers import BatchNorm, Conv, Dense
from bireal_jax.binary.pool import global_avg_pool, max_pool
from bireal_jax.models.network import Staged

# torchvision's initialization of convolutions: N(0, 2 / fan_out)
fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """ReLU(BN(conv(... ReLU(BN(conv(x))))) + shortcut(x)).

    Attributes:
      layers: (features, kernel side, stride) of each convolution.
      conv, norm: make them.
    """

    layers: tuple[tuple[int, int, int], ...]
    conv: partial[Conv]
    norm: partial[BatchNorm]

    @nn.compact
    def __call__(self, x, train):  # [n, h, w, c] -> [n, h / stride, w / stride, features of the last]
        y, total_stride = x, 1
        for k, (features, size, stride) in enumerate(self.layers, 1):
            y = self.conv(features, (size, size), (stride, stride), name=f"conv{k}")(y)
            y = self.norm(name=f"bn{k}")(y, train)
            y = nn.relu(y) if k < len(self.layers) else y
            total_stride *= stride
        if x.shape != y.shape:
            x = self.conv(y.shape[-1], (1, 1), (total_stride, total_stride), name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x, train)
        return nn.relu(y + x)


class ResNet(Staged):
    """Stem, stages of blocks, global average pool, linear head. Behind the pooling it computes in float32 or wider."""

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        """`progress` is there for the sake of the other models: nothing changes with it."""
        conv, norm = self.real_layers()
        conv = partial(conv, kernel_init=fan_out_normal)
        size, stride = ((7, 7), (2, 2)) if self.imagenet_stem else ((3, 3), (1, 1))
        x = nn.relu(norm(name="stem_bn")(conv(self.widths[0], size, stride, name="stem_conv")(x), train))
        x = max_pool(x) if self.imagenet_stem else x
        for i, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                layers = (
                    ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
                    if self.bottleneck
                    else ((width, 3, stride), (width, 3, 1))
                )
                x = Block(layers, conv, norm, name=f"stage{i + 1}_block{j + 1}")(x, train)
        if not self.num_classes:
            return x
        x = global_avg_pool(x.astype(self.param_dtype))
        return Dense(self.num_classes, self.param_dtype, self.param_dtype, name="head")(x)


WIDTHS = (64, 128, 256, 512)

# name -> what differs from ResNet's defaults
RESNET = {
    "resnet18": {"blocks": (2, 2, 2, 2), "widths": WIDTHS},
    "resnet34": {"blocks": (3, 4, 6, 3), "widths": WIDTHS},
    "resnet50": {"blocks": (3, 4, 6, 3), "widths": WIDTHS, "bottleneck": True},
    "resnet20": {"blocks": (3, 3, 3), "widths": (16, 32, 64), "imagenet_stem": False},
    "resnet18_cifar": {"blocks": (2, 2, 2, 2), "widths": WIDTHS, "imagenet_stem": False},
    "resnet_tiny": {"blocks": (2, 2), "widths": (32, 64), "imagenet_stem": False},
}

"""Bi-Real Net (Liu et al., ECCV 2018; IJCV 2020): 1-bit networks with a real-valued shortcut around every convolution.

The networks are those of the authors' PyTorch code. No ReLU anywhere: the sign is the nonlinearity.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bireal_jax.binary.binarize import clip, leaky_clip
from bireal_jax.binary.layers import Conv, PReLU, RPReLU, TwoSidedPReLU
from bireal_jax.binary.norm import by_constant_deviation, by_deviation
from bireal_jax.binary.pool import avg_pool, global_avg_pool, max_pool
from bireal_jax.models.network import Staged, Varied

Module = Callable[..., Any]


def pooled_shortcut(x, features, strides, conv, norm, train):
    """Average pool, real-valued 1x1 convolution, batch norm (the authors: binarizing it "causes large degradation")."""
    if strides > 1:
        x = avg_pool(x, strides)
    x = conv(features, (1, 1), name="downsample_conv")(x)
    return norm(name="downsample_bn")(x, train)


def padded_shortcut(x, features, strides, conv, norm, train):
    """Option A of ResNet on CIFAR: every strides-th pixel, new channels zero, half of them in front. No parameters."""
    extra = features - x.shape[-1]
    return jnp.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


def pooled_padded_shortcut(x, features, strides, conv, norm, train):
    """Average pool, then new channels of zero, half of them in front (ReCU). No parameters."""
    x = avg_pool(x, strides) if strides > 1 else x
    return padded_shortcut(x, features, 1, conv, norm, train)


class Block(nn.Module):
    """y = BN(binary_conv3x3(x)) + shortcut(x): one convolution, one shortcut, or as many convolutions as `convs` says.

    Without a `shortcut` nothing is added. With `norm_first` the batch norm stands before the sign (XNOR-Net). `behind`
    makes the layer of that name behind the sum, and behind all convolutions but the last.
    """

    features: int
    strides: int
    binary_conv: Module
    conv: Module
    norm: Module
    shortcut: Callable | None
    behind: Callable[[str], Callable] = lambda name: lambda x: x
    convs: int = 1
    norm_first: bool = False

    @nn.compact
    def __call__(self, x, train):  # [n, h, w, c] -> [n, h / strides, w / strides, features]
        y = x
        for k in range(self.convs):
            number = str(k + 1) if self.convs > 1 else ""
            strides = self.strides if k == 0 else 1
            norm = self.norm(name=f"bn{number}")
            conv = self.binary_conv(self.features, strides=(strides, strides), name=f"binary_conv{number}")
            y = conv(norm(y, train)) if self.norm_first else norm(conv(y), train)
            if k < self.convs - 1:
                y = self.behind(f"nonlinearity{number}")(y)
        if self.shortcut is not None:
            if self.strides > 1 or x.shape[-1] != self.features:
                x = self.shortcut(x, self.features, self.strides, self.conv, self.norm, train)
            y = y + x
        return self.behind("nonlinearity")(y)


class Bottleneck(nn.Module):
    """Three convolutions, three shortcuts, two streams: the narrow x1 carries the shortcut of the 1x1 that shrinks.

    out1 = BN(conv1x1(x2)) + x1, out2 = BN(conv3x3(out1)) + out1, out3 = BN(conv1x1(out2)) + x2; the next block gets
    (out2, out3). In the first block of the network the first convolution is real-valued, behind a leaky clip, and x1 is
    not added: there x1 and x2 are the same array. Rules of the authors' `BiReal_50/birealnet.py`.
    """

    features: int
    strides: int
    binary_conv: Module
    conv: partial[Conv]
    norm: Module
    first_in_stage: bool
    first_in_net: bool

    @nn.compact
    def __call__(self, x1, x2, train):  # narrow [n, h, w, features or half], wide [n, h, w, c]
        narrow, wide = self.features, 4 * self.features
        if self.first_in_net:
            out1 = self.conv(narrow, (1, 1), name="conv1")(leaky_clip(x2))
            out1 = self.norm(name="bn1")(out1, train)
            # The authors' first block owns this weight and never uses it. Kept, so that their state_dict round-trips
            # and the published parameter count holds.
            self.param("unused", nn.initializers.zeros, (1, 1, narrow // 4, narrow), self.conv.keywords["param_dtype"])
        else:
            out1 = self.norm(name="bn1")(self.binary_conv(narrow, kernel_size=(1, 1), name="binary_conv1")(x2), train)
            out1 = out1 + (self.conv(narrow, (1, 1), name="narrow_conv")(x1) if self.first_in_stage else x1)
        out2 = self.binary_conv(narrow, strides=(self.strides, self.strides), name="binary_conv2")(out1)
        out2 = self.norm(name="bn2")(out2, train) + (avg_pool(out1, self.strides) if self.strides > 1 else out1)
        out3 = self.norm(name="bn3")(self.binary_conv(wide, kernel_size=(1, 1), name="binary_conv3")(out2), train)
        if self.first_in_stage:
            x2 = pooled_shortcut(x2, wide, self.strides, self.conv, self.norm, train)
        return out2, out3 + x2


class BiRealNet(Staged, Varied):
    """Stem, stages of blocks, global average pool, linear head.

    `blocks` counts 3x3 convolutions, or `Bottleneck` blocks, whose `widths` are those of the narrow stream.

    Attributes, beside those of `Staged` and `Varied`:
      shortcut: how a `Block` changes size and width beside its convolution.
      convs_per_shortcut: 1 for Bi-Real Net, 2 for ResNet's, 0 for no shortcuts at all. Not with bottlenecks.
      norm_first: batch norm before the sign instead of behind the convolution. Not with bottlenecks.
      conv_bias: binary convolutions have a bias.
      react: learned thresholds before the sign and RPReLU behind the sum, as ReActNet. Not with bottlenecks.
    Nor is `nonlinearity` with bottlenecks.
    """

    shortcut: Callable = pooled_shortcut
    convs_per_shortcut: int = 1
    norm_first: bool = False
    conv_bias: bool = False
    react: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        """`progress`: how far the training is, from 0 to 1, for binarizers that change with it."""
        conv, norm = self.real_layers()
        binary_conv = self.binary_layer(
            progress, use_bias=self.conv_bias, learned_threshold=self.react, rescale=self.rescale if train else None
        )
        rprelu = partial(RPReLU, **self.precision, name="rprelu")  # the stem has none
        behind = (lambda name: rprelu()) if self.react else self.behind
        stem = (
            conv(self.widths[0], (7, 7), (2, 2), name="stem_conv")
            if self.imagenet_stem
            else conv(self.widths[0], name="stem_conv")
        )
        pooled = self.imagenet_stem and self.nonlinearity is None  # nothing between batch norm and pool
        x = self.behind("stem_nonlinearity")(norm(name="stem_bn", pooled=pooled)(stem(x), train))
        x = narrow = max_pool(x) if self.imagenet_stem and not pooled else x
        for i, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for j in range(count // max(1, self.convs_per_shortcut)):
                shared = {
                    "features": width,
                    "strides": 2 if i > 0 and j == 0 else 1,
                    "binary_conv": binary_conv,
                    "conv": conv,
                    "norm": norm,
                }
                name = f"stage{i + 1}_block{j + 1}"
                if self.bottleneck:
                    block = Bottleneck(**shared, first_in_stage=j == 0, first_in_net=i + j == 0, name=name)
                    narrow, x = block(narrow, x, train)
                else:
                    x = Block(
                        **shared, shortcut=self.shortcut if self.convs_per_shortcut else None,
                        behind=behind, convs=max(1, self.convs_per_shortcut), norm_first=self.norm_first, name=name,
                    )(x, train)  # fmt: skip
        return self.head(global_avg_pool(x), train) if self.num_classes else x


IMAGENET_WIDTHS = (64, 128, 256, 512)

# name -> what differs from BiRealNet's defaults. 18 = [4, 4, 4, 4] counts stem, 16 binary convolutions and head. 152 is
# not released by the authors; [3, 8, 36, 3] bottlenecks is ResNet-152's layout.
BIREAL = {
    "bireal18": {"blocks": (4, 4, 4, 4), "widths": IMAGENET_WIDTHS},
    "bireal18_cifar": {"blocks": (4, 4, 4, 4), "widths": IMAGENET_WIDTHS, "imagenet_stem": False},
    "bireal34": {"blocks": (6, 8, 12, 6), "widths": IMAGENET_WIDTHS},
    "bireal50": {"blocks": (3, 4, 6, 3), "widths": IMAGENET_WIDTHS, "bottleneck": True},
    "bireal152": {"blocks": (3, 8, 36, 3), "widths": IMAGENET_WIDTHS, "bottleneck": True},
    "bireal20": {
        "blocks": (6, 6, 6), "widths": (16, 32, 64), "imagenet_stem": False,
        "shortcut": padded_shortcut, "conv_bias": True,
    },
    "bireal_tiny": {"blocks": (4, 4), "widths": (32, 64), "imagenet_stem": False},
}  # fmt: skip

# ResNet-20 and -18 as the codes have them that reach the published numbers on CIFAR-10, their weight binarizers apart.
# Those of ResNet-18 have a plain or a binary 1x1 convolution at stride 2; here the average comes first, and a real one.
R20 = BIREAL["bireal20"] | {"conv_bias": False, "head_norm": True}
R18 = BIREAL["bireal18_cifar"] | {"head_norm": True}
CIFAR = {
    "clip20": R20 | {"nonlinearity": clip},  # IR-Net, RBNN
    "prelu20": R20 | {"nonlinearity": PReLU},  # SiMaN
    "maxout20": R20 | {"nonlinearity": TwoSidedPReLU},  # AdaBin
    "rprelu20": R20 | {"nonlinearity": RPReLU},  # FracBNN, A&B BNN
    "recu20": R20 | {"nonlinearity": clip, "shortcut": pooled_padded_shortcut, "rescale": by_deviation},  # BiPer, too
    "ovsw20": R20 | {"nonlinearity": clip, "shortcut": pooled_padded_shortcut, "rescale": by_constant_deviation},
    "clip18_cifar": R18 | {"nonlinearity": clip, "convs_per_shortcut": 2},  # IR-Net, RBNN, SiMaN; no clip at their stem
    "maxout18_cifar": R18 | {"nonlinearity": TwoSidedPReLU},  # AdaBin
}

# The baselines of the paper's ablation: the same convolutions, with other shortcuts. XNOR-Net's paper sets batch norm,
# sign, convolution in this order; its scale for the activations is left out (our choice).
RESNETS = {
    name.replace("bireal", kind): row | extra
    for name, row in BIREAL.items()
    if name in ("bireal18", "bireal_tiny")
    for kind, extra in {
        "res": {"convs_per_shortcut": 2},
        "plain": {"convs_per_shortcut": 0},
        "xnor": {"convs_per_shortcut": 2, "norm_first": True},
    }.items()
}

"""Bi-Real Net in plain PyTorch, the peer of experiments/speed/train.py and of tests/test_torch.py.

The networks of bireal_jax.models.bireal, module by module, with the same names as the authors' state_dict.
"""

import torch
from torch import nn
from torch.nn import functional as F


class ApproxSign(torch.autograd.Function):
    """sign forward (0 -> +1), max(0, 2 - 2|x|) backward."""

    @staticmethod
    def forward(ctx, x):
        """±1."""
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        """The gradient."""
        (x,) = ctx.saved_tensors
        return g * (2 - 2 * x.abs()).clamp(min=0)


class BinaryConv(nn.Module):
    """alpha * sign(W) with the released gradient 1[|W| <= 1], by the usual detach trick."""

    def __init__(self, cin, cout, stride, bias):
        super().__init__()
        self.stride = stride
        self.weights = nn.Parameter(torch.rand(cout, cin, 3, 3) * 0.001)
        self.bias = nn.Parameter(torch.zeros(cout)) if bias else None

    def forward(self, x):
        """[n, cin, h, w] to [n, cout, h', w']."""
        w = self.weights
        alpha = w.abs().mean((1, 2, 3), keepdim=True).detach()
        hard = alpha * torch.where(w >= 0, 1.0, -1.0)
        soft = w.clamp(-1, 1)
        return F.conv2d(ApproxSign.apply(x), (hard - soft).detach() + soft, self.bias, self.stride, 1)


class Padded(nn.Module):
    """Option A: every second pixel, new channels zero, half of them in front."""

    def __init__(self, extra):
        super().__init__()
        self.extra = extra

    def forward(self, x):
        """[n, c, h, w] to [n, c + extra, h / 2, w / 2]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


class Block(nn.Module):
    """BN(binary convolution) + shortcut."""

    def __init__(self, cin, cout, stride, padded):
        super().__init__()
        self.binary_conv, self.bn1 = BinaryConv(cin, cout, stride, bias=padded), nn.BatchNorm2d(cout)
        self.downsample = None
        if stride > 1 and padded:
            self.downsample = Padded(cout - cin)
        elif stride > 1:
            self.downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        """[n, cin, h, w] to [n, cout, h / stride, w / stride]."""
        return self.bn1(self.binary_conv(x)) + (self.downsample(x) if self.downsample else x)


class BiReal(nn.Module):
    """The network of a row of `ROWS`, by the name that it has in this package."""

    def __init__(self, name, num_classes=1000, channels=3):
        super().__init__()
        blocks, widths, imagenet_stem, padded = ROWS[name]
        kernel, stride = (7, 2) if imagenet_stem else (3, 1)
        cin = widths[0]
        self.conv1, self.bn1 = nn.Conv2d(channels, cin, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(cin)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet_stem else nn.Identity()
        layers = []
        for i, cout in enumerate(widths):
            for j in range(blocks):
                layers.append(Block(cin, cout, 2 if i and j == 0 else 1, padded))
                cin = cout
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers[-blocks:]))
        self.fc = nn.Linear(cin, num_classes)

    def forward(self, x):
        """[n, channels, h, w] to [n, num_classes]."""
        x = self.maxpool(self.bn1(self.conv1(x)))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x) if hasattr(self, f"layer{i}") else x
        return self.fc(x.mean((2, 3)))


# name -> (convolutions of a stage, widths, 7x7 stem, shortcuts without parameters and biased convolutions)
ROWS = {
    "bireal18": (4, (64, 128, 256, 512), True, False),
    "bireal18_cifar": (4, (64, 128, 256, 512), False, False),
    "bireal20": (6, (16, 32, 64), False, True),
}

"""Bi-Real Net 18 in plain PyTorch, the peer of experiments/speed/train.py and of tests/test_torch.py.

The network of bireal_jax.models.bireal, module by module, with the same names as the authors' state_dict.
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

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.stride = stride
        self.weights = nn.Parameter(torch.rand(cout, cin, 3, 3) * 0.001)

    def forward(self, x):
        """[n, cin, h, w] to [n, cout, h', w']."""
        w = self.weights
        alpha = w.abs().mean((1, 2, 3), keepdim=True).detach()
        hard = alpha * torch.where(w >= 0, 1.0, -1.0)
        soft = w.clamp(-1, 1)
        return F.conv2d(ApproxSign.apply(x), (hard - soft).detach() + soft, stride=self.stride, padding=1)


class Block(nn.Module):
    """BN(binary convolution) + shortcut."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.binary_conv, self.bn1 = BinaryConv(cin, cout, stride), nn.BatchNorm2d(cout)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        """[n, cin, h, w] to [n, cout, h / stride, w / stride]."""
        return self.bn1(self.binary_conv(x)) + (self.downsample(x) if self.downsample else x)


class BiReal18(nn.Module):
    """The network; `imagenet_stem` as in bireal_jax.models.bireal.BiRealNet."""

    def __init__(self, num_classes=1000, imagenet_stem=True):
        super().__init__()
        kernel, stride = (7, 2) if imagenet_stem else (3, 1)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet_stem else nn.Identity()
        cin = 64
        for i, cout in enumerate((64, 128, 256, 512)):
            blocks = [Block(cin if j == 0 else cout, cout, 2 if i and j == 0 else 1) for j in range(4)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            cin = cout
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x):
        """[n, 3, h, w] to [n, num_classes]."""
        x = self.maxpool(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))

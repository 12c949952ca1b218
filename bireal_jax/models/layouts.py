"""MobileNetV1, MobileNetV2 (1.4x) and ResNet-50 as tables whose widths are genes (MetaPruning, Liu et al., ICCV 2019).

A width is a slot: a number of channels at scale 1, and the gene that scales it, or None where it is fixed. What prunes,
counts, generates or builds these networks reads the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SCALES = 31  # gene i scales a width by (10 + 3i) / 100: 0.10, 0.13, ... 1.00
IMAGE = -1  # the slot of the image's channels


def scaled(base: int, gene: int) -> int:
    """Channels of a width of `base` under a gene: rounded down, as the authors do."""
    return base * (10 + 3 * gene) // 100


@dataclass(frozen=True)
class Conv:
    """A convolution and its batch norm, between two slots.

    Attributes:
      kernel, stride: of the square convolution.
      source, out: slots; the same one, where it is depthwise.
      act: an activation follows.
      depthwise: one filter a channel.
      affine: the batch norm of the PruningNet has a learned scale and bias.
    """

    kernel: int
    stride: int
    source: int
    out: int
    act: bool = True
    depthwise: bool = False
    affine: bool = False


@dataclass(frozen=True)
class Block:
    """Convolutions one after the other, and a shortcut around them.

    Attributes:
      convs: in order.
      code: slots whose scales the weight generators of the block see.
      shortcut: None, "identity", or a projection.
      act: an activation follows the sum.
      hidden: width of the weight generators.
    """

    convs: tuple[Conv, ...]
    code: tuple[int, ...]
    shortcut: "str | Conv | None" = None
    act: bool = False
    hidden: int = 32


@dataclass(frozen=True)
class Layout:
    """A network.

    Attributes:
      bases, genes: of every slot; the channels at scale 1, and the number of its gene, or None.
      blocks: in order, the first one the stem.
      last: slot of the map that is averaged.
      relu6: activations are min(max(x, 0), 6) instead of max(x, 0).
      resnet: 3x3 maximum at stride 2 behind the stem.
    """

    bases: tuple[int, ...]
    genes: tuple[int | None, ...]
    blocks: tuple[Block, ...]
    last: int
    relu6: bool = False
    resnet: bool = False

    @property
    def num_genes(self) -> int:
        """Length of the genes."""
        return 1 + max(g for g in self.genes if g is not None)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each gene has."""
        return (SCALES,) * self.num_genes

    @property
    def stride(self) -> int:
        """The product of all strides."""
        total = 2 if self.resnet else 1
        for block in self.blocks:
            for conv in block.convs:
                total *= conv.stride
        return total

    def scales(self, genes: Sequence[int]) -> list[int]:
        """The scale of every slot; a fixed one has the last, which is 1."""
        return [SCALES - 1 if gene is None else genes[gene] for gene in self.genes]

    def widths(self, genes: Sequence[int]) -> list[int]:
        """The channels of every slot."""
        return [scaled(base, scale) for base, scale in zip(self.bases, self.scales(genes), strict=True)]


def mobilenet_v1(widths: Sequence[int], strides: Sequence[int]) -> Layout:
    """Depthwise separable convolutions. Gene i: output of layer i; the last layer keeps its width.

    Args:
      widths, strides: of the stem, then of each block.
    """
    blocks = [Block((Conv(3, strides[0], IMAGE, 0, affine=True),), (0,))]
    for i in range(1, len(widths)):
        depthwise = Conv(3, strides[i], i - 1, i - 1, depthwise=True, affine=True)
        blocks.append(Block((depthwise, Conv(1, 1, i - 1, i)), (i - 1, i)))
    last = len(widths) - 1
    return Layout(tuple(widths), (*range(last), None), tuple(blocks), last)


def mobilenet_v2(outputs: Sequence[tuple[int, int, int]], head: int) -> Layout:
    """Inverted bottlenecks. Genes: one an output stage, whose blocks are tied, then one a bottleneck for its inside.

    Args:
      outputs: (channels, blocks, stride of the first one) of every stage; the first stage is the stem.
      head: channels of the last 1x1 convolution, which are fixed.
    """
    rows = [(stage, c, s if j == 0 else 1) for stage, (c, n, s) in enumerate(outputs) for j in range(n)]
    count = len(rows)  # slots: outputs, insides, head
    insides = [(1 if i == 1 else 6) * rows[i - 1][1] for i in range(1, count)]
    blocks = [Block((Conv(3, rows[0][2], IMAGE, 0),), (0,))]
    for i in range(1, count):
        (_, before, _), (_, channels, stride), mid = rows[i - 1], rows[i], count + i - 1
        convs = (
            Conv(1, 1, i - 1, mid), Conv(3, stride, mid, mid, depthwise=True), Conv(1, 1, mid, i, act=False),
        )  # fmt: skip
        shortcut = "identity" if before == channels else None
        blocks.append(Block(convs, (mid, i - 1, i), shortcut, hidden=64))
    top = 2 * count - 1
    blocks.append(Block((Conv(1, 1, count - 1, top),), (count - 1,)))
    genes = (*(stage for stage, _, _ in rows), *range(len(outputs), len(outputs) + count - 1), None)
    return Layout((*(c for _, c, _ in rows), *insides, head), genes, tuple(blocks), top, relu6=True)


def resnet(stem: int, stages: Sequence[tuple[int, int]]) -> Layout:
    """Bottlenecks. Genes: stem, output of every stage but the last, then one a bottleneck for its inside.

    Args:
      stem: channels of the 7x7 convolution.
      stages: (output channels, blocks) of every stage; all but the first halve the size.
    """
    bases, genes = [stem, *(c for c, _ in stages)], [*range(len(stages)), None]
    blocks = [Block((Conv(7, 2, IMAGE, 0),), (0,))]
    for stage, (channels, count) in enumerate(stages, 1):
        for j in range(count):
            source, mid = stage - 1 if j == 0 else stage, len(bases)
            stride = 2 if stage > 1 and j == 0 else 1
            convs = (Conv(1, 1, source, mid), Conv(3, stride, mid, mid), Conv(1, 1, mid, stage, act=False))
            shortcut = Conv(1, stride, source, stage, act=False) if j == 0 else "identity"
            blocks.append(Block(convs, (mid, source, stage), shortcut, act=True))
            bases.append(channels // 4)
            genes.append(mid - 1)  # the last output has a slot and no gene
    return Layout(tuple(bases), tuple(genes), tuple(blocks), len(stages), resnet=True)


LAYOUTS = {
    "mbv1": mobilenet_v1(
        [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024], [2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    ),
    "mbv2": mobilenet_v2(
        [(44, 1, 2), (22, 1, 1), (33, 2, 2), (44, 3, 2), (88, 4, 2), (132, 3, 1), (224, 3, 2), (448, 1, 1)], 1280
    ),
    "r50": resnet(64, [(256, 3), (512, 4), (1024, 6), (2048, 3)]),
    "mbv1_tiny": mobilenet_v1([16, 32, 32, 64, 64, 64], [1, 1, 1, 2, 1, 1]),
}

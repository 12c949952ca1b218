"""Search spaces: what genes mean, and what the network that they name costs, counted in microseconds.

Costs are in millions of operations on one image, counted as the papers' authors do.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from bireal_jax.errors import lookup
from bireal_jax.models.ebn import CHOICES, EBNS, group_numbers
from bireal_jax.models.layouts import IMAGE, LAYOUTS, SCALES, Block, Conv, Layout, scaled
from bireal_jax.models.reactnet import STEM, WIDTHS

MILLION = 1e6
ONE = -2  # a slot whose width is 1, beside those of the layout and IMAGE


@dataclass(frozen=True)
class Widths:
    """The widths of a network, by 31 scales each (MetaPruning).

    Attributes:
      name: key of `layouts.LAYOUTS`.
      image_shape: (h, w, c) of the input; square.
      num_classes: outputs of the head.
    """

    name: str
    image_shape: tuple[int, int, int] = (224, 224, 3)
    num_classes: int = 1000

    costs = ("flops", "macs")  # methods

    @property
    def layout(self) -> Layout:
        """The table of the network."""
        return LAYOUTS[self.name]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each gene has."""
        return self.layout.sizes

    def values(self, genes: Sequence[int]) -> list[int]:
        """The channels of every slot of the layout."""
        return self.layout.widths(genes)

    def macs(self, genes: Sequence[int]) -> float:
        """Multiply-accumulates of convolutions and head, in millions."""
        return self._sum(self._mac_terms, self.values(genes))

    def flops(self, genes: Sequence[int]) -> float:
        """MetaPruning's count, in millions: `flops_of` the widths."""
        return self.flops_of(self.values(genes))

    def flops_of(self, widths: Sequence[int]) -> float:
        """`macs`, the biases of the head, and one operation for each element that a batch norm sees, in millions.

        Pooling and activations count, window by window and element by element, where the authors wrote them as modules:
        in ResNet-50 activations and maximum, in the others the average over the last map.
        """
        biases = self.num_classes / MILLION
        return self._sum(self._mac_terms, widths) + self._sum(self._element_terms, widths) + biases

    def operations(self, widths: Sequence[int]) -> list[str]:
        """Its convolutions and its head, as a table of latencies names them."""
        factors = [*widths, 1, self.image_shape[2]]
        rows = (
            (conv, before, side, factors[conv.source], factors[conv.out]) for conv, before, side, _ in self._convs()
        )
        return [*(_operation(*row) for row in rows), f"dense {widths[self.layout.last]} {self.num_classes}"]

    def all_operations(self) -> set[str]:
        """The operations of all networks of the space."""
        options = [{base} if gene is None else {scaled(base, i) for i in range(SCALES)} for base, gene in self._slots()]
        options += [{1}, {self.image_shape[2]}]
        found = {f"dense {width} {self.num_classes}" for width in options[self.layout.last]}
        for conv, before, side, _ in self._convs():
            for cout in options[conv.out]:
                inputs = {cout} if conv.depthwise else options[conv.source]
                found |= {_operation(conv, before, side, cin, cout) for cin in inputs}
        return found

    def _slots(self):
        return zip(self.layout.bases, self.layout.genes, strict=True)

    def _sum(self, terms, widths):
        factors = [*widths, 1, self.image_shape[2]]  # ONE and IMAGE are the last two
        return sum(count * factors[a] * factors[b] for (a, b), count in terms) / MILLION

    @cached_property
    def _mac_terms(self) -> list[tuple[tuple[int, int], int]]:
        """((slot, slot), count): the sum over products of two widths, which all counts are."""
        terms: Counter = Counter()
        for conv, _, side, _ in self._convs():
            terms[ONE if conv.depthwise else conv.source, conv.out] += (conv.kernel * side) ** 2
        terms[ONE, self.layout.last] += self.num_classes
        return list(terms.items())

    @cached_property
    def _element_terms(self) -> list[tuple[tuple[int, int], int]]:
        terms: Counter = Counter()
        side = pooled = 0
        for conv, before, side, ends in self._convs():
            pooled = pooled or (before if conv.source != IMAGE else 0)
            acts = conv.act or (ends is not None and ends.act)
            terms[ONE, conv.out] += side**2 * (2 if self.layout.resnet and acts else 1)
        if self.layout.resnet:  # the maximum behind the stem, over windows of 3x3
            terms[ONE, 0] += 9 * pooled**2
        else:
            terms[ONE, self.layout.last] += side**2
        return list(terms.items())

    def _convs(self) -> Iterator[tuple[Conv, int, int, Block | None]]:
        """Every convolution, the sides of its input and output, and the block whose last one it is."""
        side = self.image_shape[0]
        for i, block in enumerate(self.layout.blocks):
            begin = side
            for conv in block.convs:
                before, side = side, -(-side // conv.stride)
                yield conv, before, side, block if conv is block.convs[-1] else None
            if isinstance(block.shortcut, Conv):
                yield block.shortcut, begin, side, None
            if i == 0 and self.layout.resnet:
                side = -(-side // 2)


def _operation(conv, before, side, cin, cout):
    kind = "depthwise" if conv.depthwise else "conv"
    return f"{kind} {conv.kernel}x{conv.kernel}/{conv.stride} {before}x{before}x{cin} {side}x{side}x{cout}"


@dataclass(frozen=True)
class Groups:
    """Group numbers of the 3x3 convolutions of a binary MobileNet (EBN, Phan et al., CVPR 2020).

    A real-valued 3x3 stem at stride 2, then blocks of a binary 3x3 group convolution and a binary 1x1 convolution, and
    a real-valued head. Which numbers the paper chooses from, and its exact widths, are not known: these are ours.

    Attributes:
      choices: group numbers; a layer has those of them that divide its channels.
      stem, widths: channels behind the stem and each block; the size halves where they change, but for the first block.
      image_shape: (h, w, c) of the input; square.
      num_classes: outputs of the head.
    """

    choices: tuple[int, ...] = CHOICES
    stem: int = STEM
    widths: tuple[int, ...] = WIDTHS
    image_shape: tuple[int, int, int] = (224, 224, 3)
    num_classes: int = 1000

    costs = ("ops", "bops")  # methods

    @cached_property
    def _layers(self) -> list[tuple[int, int, int, list[int]]]:
        """(inputs, outputs, side of the output, group numbers to choose from) of every block."""
        found, channels, side = [], self.stem, -(-self.image_shape[0] // 2)
        numbers = group_numbers(self.choices, self.stem, self.widths)
        for i, (out, options) in enumerate(zip(self.widths, numbers, strict=True)):
            side = -(-side // 2) if i and out > channels else side
            found.append((channels, out, side, options))
            channels = out
        return found

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each gene has."""
        return tuple(len(choices) for *_, choices in self._layers)

    def values(self, genes: Sequence[int]) -> list[int]:
        """The group number of every 3x3 convolution."""
        return [choices[gene] for gene, (*_, choices) in zip(genes, self._layers, strict=True)]

    def bops(self, genes: Sequence[int]) -> float:
        """Multiply-accumulates of 1-bit inputs with 1-bit weights, in millions."""
        layers = zip(self.values(genes), self._layers, strict=True)
        return sum(side**2 * cin * (9 * cin // groups + out) for groups, (cin, out, side, _) in layers) / MILLION

    def ops(self, genes: Sequence[int]) -> float:
        """OPs = FLOPs + BOPs / 64, in millions."""
        side = -(-self.image_shape[0] // 2)
        flops = 9 * self.image_shape[2] * self.stem * side**2 + self.widths[-1] * self.num_classes
        return flops / MILLION + self.bops(genes) / 64

    def operations(self, groups: Sequence[int]) -> list[str]:
        """Its convolutions and its head, as a table of latencies names them."""
        found, before = self._ends(), -(-self.image_shape[0] // 2)
        for number, (cin, out, side, _) in zip(groups, self._layers, strict=True):
            found += _pair(number, before, cin, out, side)
            before = side
        return found

    def all_operations(self) -> set[str]:
        """The operations of all networks of the space."""
        longest = max(self.sizes)
        networks = ([options[min(i, len(options) - 1)] for *_, options in self._layers] for i in range(longest))
        return {name for groups in networks for name in self.operations(groups)}

    def _ends(self):
        (size, _, channels), side = self.image_shape, -(-self.image_shape[0] // 2)
        stem = f"conv 3x3/2 {size}x{size}x{channels} {side}x{side}x{self.stem}"
        return [stem, f"dense {self.widths[-1]} {self.num_classes}"]


def _pair(groups, before, cin, out, side):
    """The two convolutions of a block."""
    spatial = f"binary 3x3/{before // side} {before}x{before}x{cin} {side}x{side}x{cin} groups {groups}"
    return [spatial, f"binary 1x1/1 {side}x{side}x{cin} {side}x{side}x{out} groups 1"]


# name of a network that genes name -> its space, which lacks image_shape and num_classes
SPACES: dict[str, Callable[..., Widths | Groups]] = {f"metaprune_{name}": partial(Widths, name) for name in LAYOUTS}
SPACES |= {name: partial(Groups, **row) for name, row in EBNS.items()}


def of(name: str, image_shape: tuple[int, int, int], num_classes: int) -> Widths | Groups:
    """The space of a network that genes name.

    Args:
      name: a key of `models.SEARCHED`.
      image_shape: (h, w, c) of the input; square.
      num_classes: outputs of the head.

    Raises:
      BadInput: no such network.
    """
    return lookup(SPACES, name, "search space")(image_shape=image_shape, num_classes=num_classes)

"""Binary MobileNets whose 3x3 convolutions have groups, and a supernet of them (EBN, Phan et al., CVPR 2020).

The paper has no code. Known is: MobileNet with binary group convolutions in place of depthwise ones, a network trained
"with a wide range of random group combinations", an evolutionary search for the group numbers, training from scratch.
Our choice is the rest: ReActNet's layout without its learned shifts and activations, its parameter-free shortcut around
every convolution, real-valued stem and head, the numbers to choose from, and how weights are shared: group i of a
convolution with g groups takes its diagonal block of one dense latent kernel. As a mask: a dense convolution with zeros
outside of the blocks, whose shapes do not depend on g.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bireal_jax.binary.binarize import WeightBinarizer
from bireal_jax.models.reactnet import ReActNet

CHOICES = (1, 2, 4, 8, 16, 32)


def group_numbers(choices: Sequence[int], stem: int, widths: Sequence[int]) -> list[list[int]]:
    """For the 3x3 convolution of every block, those of the choices that divide its channels, which are its input's."""
    return [[g for g in choices if channels % g == 0] for channels in (stem, *widths[:-1])]


class EBN(ReActNet):
    """The network of given group numbers, with weights of its own.

    Attributes, beside those of `ReActNet`:
      choices: group numbers; a 3x3 convolution has those of them that divide its channels.
      genes: for every block, which of its numbers; () for the first ones.
    """

    react: bool = False
    choices: tuple[int, ...] = CHOICES
    genes: tuple[int, ...] = ()

    @property
    def numbers(self) -> list[list[int]]:
        """`group_numbers` of this network."""
        return group_numbers(self.choices, self.stem, self.widths)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each gene has."""
        return tuple(map(len, self.numbers))

    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        genes = self.genes or (0,) * len(self.widths)
        groups = [numbers[gene] for numbers, gene in zip(self.numbers, genes, strict=True)]
        return self.network(x, train, progress, lambda i, conv: partial(conv, groups=groups[i]))


class GroupSupernet(EBN):
    """Every network of `EBN`, by genes.

    With `train` and no genes, random ones are drawn: uniform, one draw for a batch, from the generator "genes". Batch
    norms are shared by all group numbers; their running statistics are of the mixture, and to be calibrated anew for
    each network.
    """

    def __call__(self, x, train: bool = False, progress=1.0, genes=None):  # [n, h, w, channels] -> [n, num_classes]
        """`genes`: integers [blocks]; in a vector, not in the shapes, so that all networks share one program."""
        if genes is None:
            random = train and not self.is_initializing()
            sizes = jnp.asarray(self.sizes)
            genes = jax.random.randint(self.make_rng("genes"), sizes.shape, 0, sizes) if random else sizes * 0
        groups = [jnp.asarray(numbers)[genes[i]] for i, numbers in enumerate(self.numbers)]

        def spatial(i, conv):
            return partial(conv, weight=grouped(conv.keywords["weight"], groups[i]))

        return self.network(x, train, progress, spatial)


# name -> what differs from EBN's defaults
EBNS = {"ebn": {}, "ebn_tiny": {"stem": 16, "widths": (32, 32, 32, 64, 64, 64), "choices": CHOICES[:5]}}


def group_mask(cin: int, cout: int, groups: Any) -> jax.Array:
    """Whether input i and output o are in the same group: bool [cin, cout]. `groups`, an integer, may be traced."""
    return (jnp.arange(cin) // (cin // groups))[:, None] == jnp.arange(cout) // (cout // groups)


def grouped(rule: WeightBinarizer, groups: Any) -> WeightBinarizer:
    """A weight binarizer for the dense latent kernel of which a convolution with `groups` groups uses the blocks.

    The rule is given a kernel of the same shape in which the block of every output is repeated over all inputs: means
    and deviations over a filter are then those of its block, so every rule has the scale and the gradient that it has
    on the kernel of the group convolution itself.

    Args:
      rule: w [kh, kw, cin, cout] -> (±1, scale [cout] or None).
      groups: integer, a divisor of cin and cout; may be traced, so that one program serves all.

    Returns:
      w [kh, kw, cin, cout] -> (±1 in the blocks and 0 elsewhere, scale [cout] or None).
    """

    def binarize(w):
        cin, cout = w.shape[2:]
        size = cin // groups  # inputs of a group
        begin = jnp.arange(cout) // (cout // groups) * size
        source = begin + jnp.arange(cin)[:, None] % size  # [cin, cout]; i itself, where i is in the block
        b, alpha = rule(jnp.take_along_axis(w, source[None, None], axis=2))
        return b * group_mask(cin, cout, groups).astype(b.dtype), alpha

    return binarize

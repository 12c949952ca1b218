"""Shared weights of group convolutions, for a supernet of binary ones (EBN, Phan et al., CVPR 2020).

Group i of a convolution with g groups takes its diagonal block of one dense latent kernel. As a mask: a dense
convolution with zeros outside of the blocks, whose shapes do not depend on g. The paper has no code; that blocks are
diagonal is our choice.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bireal_jax.binarize import WeightBinarizer


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

"""The masked form of group convolutions against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bireal_jax.binary import binarize
from bireal_jax.models.ebn import group_mask, grouped

GROUPS = (1, 2, 4, 8, 16, 32, 64)


def blocks(w, groups):
    """The kernel of the group convolution, [kh, kw, cin / groups, cout], block by block in numpy."""
    cin, cout = w.shape[2] // groups, w.shape[3] // groups
    parts = [w[:, :, g * cin : (g + 1) * cin, g * cout : (g + 1) * cout] for g in range(groups)]
    return np.concatenate(parts, -1)


def convolve(x, w, groups=1):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout, feature_group_count=groups
    )


def test_masked_is_grouped_bit_for_bit_in_one_compilation():
    """Latent weights in 256ths, so that means are exact in float32 in any order."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random((2, 5, 5, 64)) < 0.5, -1, 1).astype(np.float32)
    w = (rng.integers(-256, 257, (3, 3, 64, 128)) / 256).astype(np.float32)
    traced = []

    @jax.jit
    def masked(w, groups):
        traced.append(groups)
        b, alpha = grouped(binarize.weight("released"), groups)(w)
        return convolve(x, b), alpha

    for groups in GROUPS:
        b, alpha = binarize.weight("released")(blocks(w, groups))
        ours, scale = masked(w, groups)
        np.testing.assert_array_equal(ours, convolve(x, b, groups))
        np.testing.assert_allclose(scale, alpha, rtol=3e-7)  # the division is by another count
        assert np.sum(group_mask(64, 128, groups)) == 64 * 128 // groups
    assert len(traced) == 1


@pytest.mark.parametrize("rule", [r for r in binarize.WEIGHTS if r not in ("standardized", "clamped")])
def test_gradients_are_those_of_the_group_convolution(rule, x64):
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(2, 3, 3, 8)), rng.uniform(-1.5, 1.5, (3, 3, 8, 16))
    g = rng.normal(size=(2, 3, 3, 16))

    def loss(w, weight, groups):
        b, alpha = weight(w)
        return jnp.sum(g * convolve(x, b, groups) * (1 if alpha is None else alpha))

    for groups in (1, 2, 4, 8):
        weight = binarize.weight(rule)
        ours = jax.grad(loss)(w, grouped(weight, groups), 1)
        theirs = jax.grad(loss)(blocks(w, groups), weight, groups)
        np.testing.assert_allclose(blocks(np.asarray(ours), groups), theirs, rtol=0, atol=1e-10)
        outside = ~np.asarray(group_mask(8, 16, groups))
        assert not np.any(np.asarray(ours)[:, :, outside])

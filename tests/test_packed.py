"""Packed products equal XLA's, and the gradients are those of the plain convolution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tables import drawn, shapes

from bireal_jax.binary import binarize, conv, layers, packed

compiled = pytest.mark.skipif(not packed.available(), reason="no compiler when the package was installed")

# (n, h, w, cin, cout, kernel, stride, padding)
SHAPES = [
    (2, 9, 7, 64, 16, 3, 1, 1),
    (1, 8, 8, 48, 40, 3, 2, 1),
    (3, 5, 13, 130, 33, 1, 1, 0),
    (2, 6, 6, 3, 5, 5, 2, 2),
    (1, 1, 1, 64, 64, 3, 1, 1),
    (5, 4, 4, 1, 1, 3, 1, 2),
    (1, 16, 3, 65, 129, 3, 1, 0),
    (1, 2, 9, 2200, 17, 3, 1, 1),  # more than a byte can count
    (2, 7, 9, 16, 16, 3, 1, 1),  # taps of a row share words
    (1, 9, 8, 32, 33, 3, 2, 1),
    (2, 6, 5, 22, 5, 7, 3, 6),
]


def signs(rng, *shape, zeros=0.0):
    return jnp.asarray(rng.choice([-1.0, 1.0], shape) * (rng.random(shape) >= zeros), jnp.float32)


@compiled
@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_every_sum_is_that_of_the_plain_convolution(zeros, monkeypatch):
    rng = np.random.default_rng(0)
    for n, h, w, cin, cout, k, stride, pad in SHAPES:
        x, b = signs(rng, n, h, w, cin), signs(rng, k, k, cin, cout, zeros=zeros)
        how = {"strides": (stride, stride), "padding": ((pad, pad), (pad, pad))}
        expected = conv.xla_conv(x, b, **how)
        for newest in (2, 1, 0):
            monkeypatch.setattr(packed, "NEWEST", newest)
            found = packed.product(x, b, **how)
            np.testing.assert_array_equal(found, expected, f"{x.shape} {b.shape} {how} {newest}")


@compiled
@settings(max_examples=20, deadline=None, derandomize=True)
@given(shapes(), st.sampled_from([0.0, 0.1]), st.sampled_from([0, 1, 2]))
def test_random_shapes(shape, zeros, newest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "NEWEST", newest)
        x, w, _, how = drawn(shape, zeros=zeros)
        found = packed.product(jnp.asarray(x), jnp.asarray(w), **how)
        np.testing.assert_array_equal(found, conv.xla_conv(jnp.asarray(x), jnp.asarray(w), **how))


@compiled
def test_threads_and_uneven_padding_change_nothing(monkeypatch):
    monkeypatch.setattr(packed, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(packed.os, "sched_getaffinity", lambda _: range(24))  # three for each of eight devices
    rng = np.random.default_rng(0)
    x, b = signs(rng, 7, 6, 5, 70), signs(rng, 3, 2, 70, 20)
    how = {"strides": (2, 1), "padding": ((0, 2), (1, 0))}
    np.testing.assert_array_equal(packed.product(x, b, **how), conv.xla_conv(x, b, **how))


@compiled
def test_gradients_and_vmap_are_those_of_the_plain_convolution():
    rng = np.random.default_rng(0)
    x, b, g = signs(rng, 2, 1, 4, 4, 32), signs(rng, 2, 3, 3, 32, 16), rng.normal(size=(2, 1, 4, 4, 16))
    how = ((1, 1), ((1, 1), (1, 1)))

    def both(product):
        pull = lambda x, b, g: jax.vjp(lambda x, b: conv.conv(x, b, *how, product), x, b)[1](g)
        networks = jax.vmap(lambda x, b: conv.conv(x, b, *how, product))(x, b)
        return networks, jax.jit(pull)(x[0], b[0], jnp.asarray(g[0], jnp.float32))

    jax.tree.map(np.testing.assert_array_equal, both(packed.product), both(conv.xla_conv))


@compiled
def test_the_binary_layer_uses_them():
    module = layers.BinaryConv(16, binarize.activation("ste"), binarize.weight("released"))
    x = jnp.ones((1, 4, 4, 8))
    assert "ffi_call" in str(jax.make_jaxpr(partial(module.init_with_output, jax.random.key(0)))(x))


def test_other_types_are_left_to_xla():
    how = {"strides": (1, 1), "padding": ((1, 1), (1, 1))}
    x, b = jnp.ones((1, 4, 4, 8), jnp.bfloat16), jnp.ones((3, 3, 8, 8), jnp.bfloat16)
    assert "ffi_call" not in str(jax.make_jaxpr(partial(packed.product, **how))(x, b))
    empty = packed.product(jnp.ones((0, 4, 4, 8)), jnp.ones((3, 3, 8, 8)), **how)
    assert empty.shape == (0, 4, 4, 8)

"""What batch norms sum up: as exact as two passes, with the same bits whoever computes it."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bireal_jax.binary import layers, norm, packed, pool

compiled = pytest.mark.skipif(not packed.available(), reason="no compiler when the package was installed")
WAYS = {
    "compiled": pytest.param(norm._counted_moments, marks=compiled),
    "two passes": partial(norm._two_passes, dtype=jnp.float32),
    "one pass": partial(norm._shifted, dtype=jnp.float32),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("mean", [0.3, 3.0, 30.0])
def test_small_variances_far_from_zero_keep_their_digits(mean, way):
    """E[x²] - E[x]² would be wrong by 2e-4, 1e-2 and 2.2 times the variance."""
    x = np.random.default_rng(0).normal(mean, 1e-2, (16, 14, 14, 24)).astype(np.float32)
    found = way(jnp.asarray(x))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(found[0], wide.mean((0, 1, 2)), rtol=3e-7)
    np.testing.assert_allclose(found[1], wide.var((0, 1, 2)), rtol=1e-6)


@st.composite
def maps(draw):
    """(x, g) [n, h, w, c] with channels of very different size and place."""
    shape = tuple(draw(st.integers(1, most)) for most in (33, 9, 9, 200))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.normal(rng.normal(0, 10, shape[3]), 10 ** rng.uniform(-3, 3, shape[3]), shape)
    return x.astype(np.float32), rng.normal(size=shape).astype(np.float32)


@compiled
@settings(max_examples=30, deadline=None, derandomize=True)
@given(maps(), st.integers(1, 8))
def test_compiled_sums_are_those_in_float64(drawing, threads):
    x, g = drawing
    wide, back = x.astype(np.float64), g.astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "threads_for", lambda _: threads)
        mean, var = norm._counted_moments(jnp.asarray(x))
        sums = norm._counted_sums(jnp.asarray(x), jnp.asarray(g), mean)
    size = np.abs(wide).max((0, 1, 2))
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=0, atol=2e-7 * size.max())
    np.testing.assert_allclose(var, wide.var((0, 1, 2)), rtol=2e-6, atol=1e-12 * size.max() ** 2)
    centred = wide - np.asarray(mean, np.float64)
    for found, terms in zip(sums, (back, back * centred), strict=True):
        near = 1e-6 * np.abs(terms).sum((0, 1, 2))
        assert (np.abs(found - terms.sum((0, 1, 2))) <= near).all()


@compiled
@pytest.mark.parametrize("shape", [(9, 13, 7, 16), (3, 5, 7, 3), (5, 4, 4, 70), (40, 24, 24, 1), (2, 3, 1, 130)])
def test_bits_depend_on_neither_threads_nor_instructions(shape, monkeypatch):
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(1, 2, shape), jnp.float32) for _ in range(2))

    def both():
        mean, var = norm._counted_moments(x)
        return mean, var, *norm._counted_sums(x, g, mean)

    expected = both()
    for newest in (2, 1, 0):
        monkeypatch.setattr(packed, "NEWEST", newest)
        for threads in (1, 2, 3, 8):
            monkeypatch.setattr(packed, "threads_for", lambda _, threads=threads: threads)
            jax.tree.map(np.testing.assert_array_equal, both(), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_channel_and_is_not_cleaned(value):
    x = np.ones((4, 5, 5, 20), np.float32)
    x[1, 2, 3, 4] = value
    module = layers.BatchNorm()
    variables = module.init(jax.random.key(0), jnp.asarray(x), True)
    y = module.apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])[0]
    others = np.arange(20) != 4
    assert np.isnan(y[..., 4]).all() and np.isfinite(y[..., others]).all()


def test_devices_are_joined_as_if_they_were_one():
    """In float32, where each device's images are far from the others'."""
    rng = np.random.default_rng(0)
    x = rng.normal(np.arange(8)[:, None, None, None, None], 1e-2, (8, 2, 5, 5, 16)).astype(np.float32)
    mean, var = jax.pmap(lambda x: norm.moments(x, jnp.float32, "batch"), "batch")(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, np.broadcast_to(wide.mean((0, 1, 2, 3)), (8, 16)), rtol=1e-6)
    np.testing.assert_allclose(var, np.broadcast_to(wide.var((0, 1, 2, 3)), (8, 16)), rtol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_other_platforms_read_a_map_once(platform):
    """Both sums are of the map itself, and one reduction: first of each image, then over all."""
    traced = jax.jit(lambda x: norm.moments(x, jnp.float32)).trace(jnp.ones((8, 4, 4, 16)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("custom_call" in text) == (platform == "cpu" and packed.available())
    if platform == "cuda":
        assert text.count("stablehlo.reduce(") == 2
        assert re.findall(r"across dimensions = (\[.*?\])", text) == ["[1, 2]", "[0]"], "both sums in either of them"
        assert "tensor<1x1x1x16xf32>" in text, "the mean of two pixels is taken off"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("groups", [1, 2])
def test_scale_and_bias_of_a_binary_convolution_have_the_gradients_of_their_sums(groups, dtype):
    """That by the scale is no sum over the map. In 16 bit gradients are rounded, products are not."""
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (8, 6, 6, 16))
    b = rng.choice([-1.0, 1.0], (3, 3, 16 // groups, 32))
    alpha, bias, g = rng.normal(size=32), rng.normal(size=32), rng.normal(size=(8, 6, 6, 32))
    if dtype == jnp.float16:
        alpha, g = 1e-5 * alpha, 1e4 * g  # whose sums are more than float16 can say until they are scaled
    how = ((1, 1), ((1, 1), (1, 1)), groups, True)

    def pull(dtype, wide):
        layer = lambda x, b, alpha, bias: layers.binary_conv2d(x, b, alpha, *how, bias)
        args = (jnp.asarray(x, dtype), jnp.asarray(b, dtype), jnp.asarray(alpha, wide), jnp.asarray(bias, wide))
        y, vjp = jax.vjp(layer, *args)
        return y, *vjp(jnp.asarray(g, dtype))

    found = jax.jit(pull, static_argnums=(0, 1))(dtype, jnp.float32)
    with jax.enable_x64(True):
        expected = jax.jit(pull, static_argnums=(0, 1))(jnp.float64, jnp.float64)
    near = 1e-6 if dtype == jnp.float32 else 4 * float(jnp.finfo(dtype).eps)
    for a, right in zip(found, expected, strict=True):
        assert a.dtype in (dtype, jnp.float32)
        np.testing.assert_allclose(np.asarray(a, np.float64), right, rtol=0, atol=near * np.abs(right).max())


@pytest.mark.parametrize("over", [None, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_norm_and_pool_at_once_are_one_after_the_other(size, dtype, over):
    """Whole numbers, so that equal maxima are common; scales of either sign, and 0, which the result does not need."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-3, 4, (4, *size, 12)), dtype)
    scale, bias = (
        jnp.asarray(np.r_[rng.normal(size=11), 0.0], jnp.float32),
        jnp.asarray(rng.normal(size=12), jnp.float32),
    )
    ours = lambda x, scale, bias: norm.normalize_batch(x, scale, bias, 1e-5, over, True)
    apart = lambda *a: (lambda y, *rest: (pool.max_pool(y), *rest))(*norm.normalize_batch(*a, 1e-5, over))
    (y, *stats), vjp = jax.vjp(ours, x, scale, bias)
    (expected, *others), expected_vjp = jax.vjp(apart, x, scale, bias)
    np.testing.assert_array_equal(y, expected)
    jax.tree.map(np.testing.assert_array_equal, stats, others)
    g = jnp.asarray(rng.normal(size=y.shape), dtype)
    zeros = [jnp.zeros_like(s) for s in stats]
    near = 1e-5 if dtype == jnp.float32 else 2e-2
    for a, b, channels in zip(vjp((g, *zeros)), expected_vjp((g, *zeros)), (12, 11, 12), strict=True):
        a, b = (np.asarray(v, np.float32)[..., :channels] for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=near, atol=near)


def test_a_channel_of_scale_0_has_the_gradient_of_a_rising_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 3)), jnp.float32)
    loss = lambda scale: jnp.sum(norm.normalize_batch(x, scale, jnp.zeros(3), 1e-5, None, True)[0])
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(3)), jax.grad(loss)(jnp.full(3, 1e-20)), rtol=1e-6)


@compiled
@pytest.mark.parametrize("shape", [(3, 8, 8, 16), (2, 7, 5, 70), (4, 1, 2, 3), (1, 9, 4, 33)])
def test_the_compiled_pooling_is_the_other_one_bit_for_bit(shape, monkeypatch):
    """Equal maxima, either sign of the scale, NaN; with every number of threads and all instructions."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, shape).astype(np.float32)
    x[-1, 0, 0, 0] = np.nan
    scale, mean, mean_g, slope, factor = (jnp.asarray(rng.normal(size=shape[3]), jnp.float32) for _ in range(5))
    seen, which = norm._plain_largest(jnp.asarray(x), scale)
    g = jnp.asarray(rng.normal(size=seen.shape), jnp.float32)
    given = jnp.asarray(x), which, g, mean, mean_g, slope, factor
    expected = norm._plain_back(*given)
    for newest in (2, 1, 0):
        monkeypatch.setattr(packed, "NEWEST", newest)
        for threads in (1, 2, 5):
            monkeypatch.setattr(packed, "threads_for", lambda _, threads=threads: threads)
            jax.tree.map(np.testing.assert_array_equal, norm._compiled_largest(jnp.asarray(x), scale), (seen, which))
            np.testing.assert_array_equal(norm._compiled_back(*given), expected)

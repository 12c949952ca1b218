import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bireal_jax.binary import binarize, conv, layers, norm, pool


def conv_by_hand(x, w, stride, pad):
    """Direct convolution in numpy, NHWC and HWIO, zero padding."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    kh, kw = w.shape[:2]
    h, v = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    y = np.zeros((len(x), h, v, w.shape[3]))
    for i in range(h):
        for j in range(v):
            y[:, i, j] = np.einsum("nabc,abco->no", x[:, i * stride : i * stride + kh, j * stride : j * stride + kw], w)
    return y


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 5), (3, 2, 6), (3, 2, 7), (1, 1, 4), (7, 2, 11)])
def test_conv_matches_direct_convolution_and_its_gradients(kernel, stride, size, x64):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, size, size, 3)), rng.normal(size=(kernel, kernel, 3, 4))
    pad = kernel // 2
    conv = lambda x, w: layers.conv2d(x, w, (stride, stride), layers.symmetric((kernel, kernel)))
    y, vjp = jax.vjp(conv, jnp.asarray(x), jnp.asarray(w))
    np.testing.assert_allclose(y, conv_by_hand(x, w, stride, pad), rtol=1e-12, atol=1e-12)
    g = rng.normal(size=y.shape)
    dx, dw = vjp(jnp.asarray(g))
    # The convolution is linear in each argument, so <g, conv(v, w)> = <dx, v> must hold for every v; same for w.
    v, u = rng.normal(size=x.shape), rng.normal(size=w.shape)
    np.testing.assert_allclose(np.sum(g * conv_by_hand(v, w, stride, pad)), np.sum(dx * v), rtol=1e-11)
    np.testing.assert_allclose(np.sum(g * conv_by_hand(x, u, stride, pad)), np.sum(dw * u), rtol=1e-11)


def test_binary_conv_is_alpha_times_integers_and_pads_zeros(x64):
    module = layers.BinaryConv(
        4, binarize.activation("ste"), binarize.weight("magnitude_aware"), latent_init=jax.nn.initializers.normal(0.5),
        dtype=jnp.float64, param_dtype=jnp.float64,
    )  # fmt: skip
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 3, 2)))
    variables = module.init(jax.random.key(0), x)
    w = np.asarray(variables["params"]["latent"])
    y = module.apply(variables, x)
    z = conv_by_hand(np.where(x >= 0, 1, -1), np.where(w >= 0, 1, -1), 1, 1)
    np.testing.assert_allclose(y, z * np.abs(w).mean((0, 1, 2)), rtol=1e-12)
    assert abs(z[0, 0, 0]).max() <= 2 * 4  # a corner sees 4 pixels of 9: the border counts nothing


def test_sixteen_bit_binary_convolution_is_exact():
    """±1 products in bf16 have the sums of float32, which are rounded once: the running sum passes 256, where bf16 no
    longer counts by ones.
    """
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (2, 5, 5, 512), p=[0.2, 0.8])
    b = rng.choice([-1.0, 1.0], (3, 3, 512, 4), p=[0.2, 0.8])
    args = (jnp.ones(4), (1, 1), ((1, 1), (1, 1)))
    wide = layers.binary_conv2d(jnp.asarray(x, jnp.float32), jnp.asarray(b, jnp.float32), *args)
    half = layers.binary_conv2d(jnp.asarray(x, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16), *args)
    by_hand = conv_by_hand(x[:1], b, 1, 1)
    assert by_hand.max() > 1024
    np.testing.assert_array_equal(wide[:1], by_hand)
    np.testing.assert_array_equal(half, wide.astype(jnp.bfloat16))


def test_batch_norm_against_numpy_with_torch_statistics(x64):
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 3, 5))
    norm = layers.BatchNorm(dtype=jnp.float64, param_dtype=jnp.float64)
    variables = norm.init(jax.random.key(0), jnp.asarray(x), True)
    y, updated = norm.apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-12)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-12)
    still = norm.apply(variables | updated, jnp.asarray(x), False)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(still, (x - stats["mean"]) / np.sqrt(np.asarray(stats["var"]) + 1e-5), rtol=1e-12)


def test_cross_replica_statistics_are_those_of_the_whole_batch(x64):
    x = np.random.default_rng(0).normal(1, 2, (8, 2, 2, 3))
    norm = layers.BatchNorm("batch", dtype=jnp.float64, param_dtype=jnp.float64)
    variables = norm.init(jax.random.key(0), jnp.asarray(x), True)
    apply = lambda v, x: norm.apply(v, x, True, mutable=["batch_stats"])
    y, updated = jax.pmap(apply, "batch", in_axes=(None, 0))(variables, x.reshape(8, 1, 2, 2, 3))
    alone = layers.BatchNorm(dtype=jnp.float64, param_dtype=jnp.float64)
    expected, stats = alone.apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.reshape(x.shape), expected, rtol=1e-11, atol=1e-13)
    for name in ("mean", "var"):
        np.testing.assert_allclose(updated["batch_stats"][name][5], stats["batch_stats"][name], rtol=1e-12)


def test_statistics_of_groups_are_those_of_each_alone(x64):
    """Whatever the batch is divided by; the running ones are the mean over the groups."""
    x = jnp.asarray(np.random.default_rng(0).normal(1, 2, (6, 2, 2, 3)))
    norm, alone = (layers.BatchNorm(over, dtype=jnp.float64, param_dtype=jnp.float64) for over in (2, None))
    variables = norm.init(jax.random.key(0), x, True)
    y, updated = norm.apply(variables, x, True, mutable=["batch_stats"])
    each = [alone.apply(variables, x[i : i + 2], True, mutable=["batch_stats"]) for i in (0, 2, 4)]
    np.testing.assert_allclose(y, np.concatenate([y for y, _ in each]), rtol=1e-12)
    for name in ("mean", "var"):
        expected = np.mean([stats["batch_stats"][name] for _, stats in each], axis=0)
        np.testing.assert_allclose(updated["batch_stats"][name], expected, rtol=1e-12)


def test_pooling():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    # The fifth row and column drop.
    np.testing.assert_array_equal(pool.avg_pool(x, 2)[0, :, :, 0], [[3, 5], [13, 15]])
    np.testing.assert_array_equal(pool.max_pool(-x)[0, :, :, 0], [[0, -1, -3], [-5, -6, -8], [-15, -16, -18]])


def test_max_pool_sends_the_gradient_to_the_first_maximum():
    """As PyTorch does: among equal values the first in the window wins."""
    g = jax.grad(lambda x: jnp.sum(pool.max_pool(x)))(jnp.zeros((1, 4, 4, 1)))
    np.testing.assert_array_equal(g[0, :, :, 0], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_latent_init_starts_all_positive_and_below_a_thousandth():
    w = layers.uniform_001(jax.random.key(0), (3, 3, 64, 64))
    assert w.min() >= 0 and w.max() < 0.001
    np.testing.assert_allclose(w.mean(), 0.0005, rtol=0.02)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
def test_max_pool_has_xlas_gradient(size, dtype):
    """Bit for bit: few values, so that equal maxima are common, and sums of up to four terms, which must be added in
    the scatter's order.
    """
    rng = np.random.default_rng(size)
    x = jnp.asarray(rng.integers(0, 4, (2, size, size + 1, 3)), dtype)
    y, vjp = jax.vjp(pool.max_pool, x)
    expected, expected_vjp = jax.vjp(pool.xla_max_pool, x)
    g = jnp.asarray(rng.normal(size=y.shape), dtype)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(vjp(g)[0], expected_vjp(g)[0])


def test_max_pool_is_the_same_on_every_platform():
    """No scatter anywhere: on GPUs it is slow, and adds in another order every time."""
    gradient = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(pool.max_pool(x))))(jnp.zeros((1, 4, 4, 1)))
    assert not any(word in str(gradient) for word in ("scatter", "platform_index"))


@pytest.mark.parametrize(
    ("kernel", "strides", "pads"), [((3, 3), (1, 1), (1, 1)), ((7, 7), (2, 2), (3, 3)), ((3, 2), (2, 1), (1, 0))]
)
def test_unfolded_weight_gradient_is_xlas(kernel, strides, pads, x64, monkeypatch):
    """In one chunk and in many."""
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(6, 9, 8, 3))), jnp.asarray(rng.normal(size=(*kernel, 3, 5)))
    how = {"strides": strides, "padding": tuple((p, p) for p in pads)}
    g = jnp.asarray(rng.normal(size=conv.conv(x, w, *how.values()).shape))
    expected = conv.weight_gradient(x, w, g, **how)
    for most in (conv.PATCH_BYTES, 1):
        monkeypatch.setattr(conv, "PATCH_BYTES", most)
        np.testing.assert_allclose(conv.weight_gradient_unfolded(x, w, g, **how), expected, rtol=1e-11, atol=1e-12)


# kernel, padding, size, channels: the stem of ImageNet first; odd sizes, even kernels, uneven padding
BY_DEPTH = [
    ((7, 7), ((3, 3), (3, 3)), (14, 16), 3),
    ((7, 7), ((3, 3), (3, 3)), (13, 9), 3),
    ((4, 5), ((1, 0), (4, 2)), (7, 10), 4),
]


@pytest.mark.parametrize(("kernel", "padding", "size", "channels"), BY_DEPTH)
def test_a_stem_by_space_to_depth_is_the_plain_convolution(kernel, padding, size, channels, x64):
    """With its gradients, in float64; of whole numbers bit for bit."""
    rng = np.random.default_rng(0)
    shapes = (2, *size, channels), (*kernel, channels, 5)

    def both(function, x, w, g):
        y, vjp = jax.vjp(function, x, w)
        return y, *vjp(g[:, : y.shape[1], : y.shape[2]])

    plain = lambda x, w: conv.conv(x, w, (2, 2), padding)
    ours = lambda x, w: conv.by_depth(x, w, padding)
    for draw, near in ((rng.normal, 4e-14), (lambda size: rng.integers(-9, 9, size), 0)):
        x, w, g = (jnp.asarray(draw(size=s), jnp.float64) for s in (*shapes, (2, 16, 16, 5)))
        for a, b in zip(both(ours, x, w, g), both(plain, x, w, g), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=0, atol=near * np.abs(b).max())


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_stem_goes_by_depth_where_that_is_faster(platform):
    stem = layers.Conv(64, (7, 7), (2, 2))
    x = jnp.ones((2, 32, 32, 3))
    variables = stem.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (7, 7, 3, 64)
    text = jax.jit(stem.apply).trace(variables, x).lower(lowering_platforms=(platform,)).as_text()
    assert ("tensor<4x4x16x64xf32>" in text) == (platform != "cpu")


@pytest.mark.parametrize(("platform", "size", "strides", "convolved"), [
    ("cpu", 1, 1, False), ("cuda", 1, 1, True), ("cpu", 1, 2, True), ("cpu", 3, 1, True)
])  # fmt: skip
def test_single_pixels_are_multiplied_as_matrices_on_cpus(platform, size, strides, convolved):
    """Forward and both gradients; test_conv_matches_direct_convolution_and_its_gradients looks at the values."""
    x, w = jnp.ones((2, 8, 8, 5)), jnp.ones((size, size, 5, 6))
    both = jax.value_and_grad(lambda x, w: jnp.sum(layers.conv2d(x, w, (strides, strides)) ** 2), (0, 1))
    text = jax.jit(both).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == convolved


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("shared", [None, "x", "w"])
def test_vmapped_convolutions_are_one_by_one(strides, shared, x64, monkeypatch):
    """On CPUs a loop, elsewhere XLA's grouped convolution: both against each network on its own."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 2, 6, 6, 4)), rng.normal(size=(3, 3, 3, 4, 5))
    axes = [None if shared == name else 0 for name in ("x", "w")]
    x, w = (a[0] if axis is None else a for a, axis in zip((x, w), axes, strict=True))
    weight = jnp.asarray(rng.normal(size=(2, -(-6 // strides[0]), -(-6 // strides[0]), 5)))

    def both(x, w):
        loss = lambda x, w: jnp.sum(weight * jnp.sin(conv.conv(x, w, strides, ((1, 1), (1, 1)))))
        return loss(x, w), *jax.grad(loss, (0, 1))(x, w)

    together = jax.vmap(both, axes)(x, w)
    for i, ours in enumerate(zip(*together, strict=True)):
        alone = both(*(a if axis is None else a[i] for a, axis in zip((x, w), axes, strict=True)))
        for a, b in zip(ours, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
    everywhere = lambda *args, default, **_: default(*args)  # what other platforms run
    monkeypatch.setattr(conv.lax, "platform_dependent", everywhere)
    for ours, theirs in zip(jax.vmap(both, axes)(x, w), together, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


def test_batch_norm_gradient_is_that_of_its_formula(x64):
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(2, 3, (5, 2, 3, 4))) for _ in range(2))
    scale, bias = (jnp.asarray(rng.normal(size=4)) for _ in range(2))

    def formula(x, scale, bias):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    ours = jax.vjp(lambda *a: norm.normalize_batch(*a, 1e-5, None)[0], x, scale, bias)[1](g)
    for a, b in zip(ours, jax.vjp(formula, x, scale, bias)[1](g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_cross_replica_batch_norm_gradient_is_that_of_the_whole_batch(x64):
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(2, 3, (8, 2, 3, 4))) for _ in range(2))
    scale, bias = (jnp.asarray(rng.normal(size=4)) for _ in range(2))
    whole = jax.vjp(lambda *a: norm.normalize_batch(*a, 1e-5, None)[0], x, scale, bias)[1](g)
    split = lambda x, g: jax.vjp(lambda *a: norm.normalize_batch(*a, 1e-5, "batch")[0], x, scale, bias)[1](g)
    dx, dscale, dbias = jax.pmap(split, "batch")(x[:, None], g[:, None])
    np.testing.assert_allclose(dx[:, 0], whole[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dscale.sum(0), whole[1], rtol=1e-10)
    np.testing.assert_allclose(dbias.sum(0), whole[2], rtol=1e-10)


@pytest.mark.parametrize("act", ["relu", "clip", "sign by hand", "ste"])
def test_binary_weights_meet_real_valued_activations_too(act, x64):
    """In float32, too, where products of ±1 have code of their own; a function of one's own may give anything."""
    rng = np.random.default_rng(0)
    rule = binarize.sign if act == "sign by hand" else binarize.activation(act)
    module = layers.BinaryConv(16, rule, binarize.weight("released"))
    x, latent = rng.normal(size=(4, 8, 8, 16)), rng.normal(0, 0.6, (3, 3, 16, 16))

    def pull(dtype):
        layer = module.clone(dtype=dtype, param_dtype=dtype)
        loss = lambda x, w: jnp.sum(jnp.sin(layer.apply({"params": {"latent": w}}, x)))
        return jax.value_and_grad(loss, (0, 1))(jnp.asarray(x, dtype), jnp.asarray(latent, dtype))

    for found, expected in zip(*map(jax.tree.leaves, (pull(jnp.float32), pull(jnp.float64))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

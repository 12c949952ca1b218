import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bireal_jax.binary import binarize, layers
from bireal_jax.binary.norm import normalize_batch
from bireal_jax.errors import BadInput
from bireal_jax.training import optim

POINTS = np.array([-2, -1, -0.5, -0.0, 0, 0.5, 1, 2])

PROGRESS = (0.0, 0.3, 1.0)


def swish_sign(x, p, beta=5.0):
    """The published form; our code uses another."""
    with np.errstate(over="ignore"):
        return beta * (2 - beta * x * np.tanh(beta * x / 2)) / (1 + np.cosh(beta * x))


def tanh(x, p):
    t = 10 ** (-1 + 2 * p)
    return max(1 / t, 1) * t * (1 - np.tanh(t * x) ** 2)


def triangle(x, p):
    t = max(10 ** (-2 + 3 * p), 1.0)
    return np.clip(2 * np.sqrt(t**2 / 2) - np.abs(t**2 * x), 0, None)


def power(x, p):
    o = 1 + (1 - np.cos(p * np.pi / 2)) * (3 - 1)
    inner, outer = np.abs(x) <= 0.1, np.abs(x) > 1.5
    slope = (1 / o) * np.power(np.abs(np.where(inner, 1, x)), (1 - o) / o)
    return np.where(outer, 0, np.where(inner, 0.1 ** (1 / o) / 0.1, slope))


# Independent formulas d(x, progress), as the papers and their code write them, not as the package does.
DERIVATIVES = {
    "ste": lambda x, p: ((x >= -1) & (x <= 1)).astype(float),
    "approx_sign": lambda x, p: np.where((x >= -1) & (x < 0), 2 + 2 * x, np.where((x >= 0) & (x < 1), 2 - 2 * x, 0)),
    "swish_sign": swish_sign,
    "tanh": tanh,
    "triangle": triangle,
    "power": power,
}
# name -> (area under d, where it ends) at a given progress, by hand
SHAPES = {
    "ste": lambda p: (2, 1),
    "approx_sign": lambda p: (2, 1),
    "swish_sign": lambda p: (2, np.inf),
    "tanh": lambda p: (2 * max(1, 10 ** (1 - 2 * p)), np.inf),
    "triangle": lambda p: (2, np.sqrt(2) * min(1, 10 ** (2 - 3 * p))),
    "power": lambda p: (2 * 1.5 ** (1 / (1 + 2 * (1 - np.cos(np.pi / 2 * p)))), 1.5),
}


def standardize(w, epsilon):
    """(V, s): every filter centred and divided by s, its deviation with n - 1."""
    s = np.sqrt(w.var((0, 1, 2), ddof=1) + epsilon)
    return (w - w.mean((0, 1, 2))) / s, s


def through_standardization(dv, v, s):
    """dL/dW from dL/dV, written out."""
    n = v[..., 0].size
    return (dv - dv.mean((0, 1, 2)) - v * (dv * v).sum((0, 1, 2)) / (n - 1)) / s


def standardized(g, w, p):
    v, s = standardize(w, 1e-12)
    size = np.maximum(np.abs(v).mean((0, 1, 2)), 1e-12)
    alpha = np.power(2, np.round(np.log(size) / np.log(2)))
    return alpha * np.where(v >= 0, 1, -1), through_standardization(g * alpha * tanh(v, p), v, s)


def clamped(g, w, p):
    v, s = standardize(w, 1e-5)
    v1 = v / (1 / 2 / np.sqrt(2))
    tau = 0.14 / (np.e - 1) * np.power(np.e, p) + 0.85 - 0.14 / (np.e - 1)
    q = -np.abs(v1).mean() * np.log(2 - 2 * tau)
    return np.where(v1 >= 0, 1, -1), through_standardization(g * (np.abs(v1) <= q) * np.sqrt(8), v, s)


def scaled(rule):
    """W_b = alpha sign(W), and the gradient of `rule`(g, alpha, w)."""

    def pair(g, w, p):
        alpha = np.abs(w).mean((0, 1, 2))
        return alpha * np.where(w >= 0, 1, -1), rule(g, alpha, w)

    return pair


# name -> (W_b, dL/dW) for g = dL/dW_b, W and progress, from the papers and the released code
WEIGHT_RULES = {
    "sign": lambda g, w, p: (np.where(w >= 0, 1, -1), g * (np.abs(w) <= 1)),
    "magnitude_aware": scaled(lambda g, alpha, w: g * alpha * (np.abs(w) < 1)),
    "released": scaled(lambda g, alpha, w: g * (np.abs(w) <= 1)),
    "identity": scaled(lambda g, alpha, w: g),
    "through_scale": scaled(
        lambda g, alpha, w: (
            g * alpha * (np.abs(w) <= 1)
            + np.where(w >= 0, 1, -1) * (g * np.where(w >= 0, 1, -1)).sum((0, 1, 2)) / w[..., 0].size
        )
    ),
    "standardized": standardized,
    "clamped": clamped,
    "direct": lambda g, w, p: (np.where(w >= 0, 1, -1), g),
    "real": lambda g, w, p: (w, g),
}


def points():
    rng = np.random.default_rng(1)
    return np.concatenate([POINTS, rng.normal(0, 1.2, 500), np.nextafter([1, -1, 1], [2, -2, 0]), [-1e-300]])


def test_tables_have_an_independent_formula_for_every_row():
    assert set(DERIVATIVES) == set(binarize.DERIVATIVES)
    assert set(WEIGHT_RULES) == set(binarize.WEIGHTS)


@pytest.mark.parametrize("name", binarize.DERIVATIVES)
@pytest.mark.parametrize("progress", PROGRESS)
def test_activation_forward_and_gradient(name, progress, x64):
    x, g = points(), np.random.default_rng(2).normal(size=len(points()))
    y, vjp = jax.vjp(lambda x: binarize.activation(name)(x, jnp.asarray(progress)), jnp.asarray(x))
    np.testing.assert_array_equal(y, np.where(x >= 0, 1, -1))
    np.testing.assert_allclose(vjp(jnp.asarray(g))[0], g * DERIVATIVES[name](x, progress), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", binarize.DERIVATIVES)
@pytest.mark.parametrize("progress", PROGRESS)
def test_area_support_and_symmetry_of_every_derivative(name, progress, x64):
    area, end = SHAPES[name](progress)
    d = binarize.with_progress(binarize.DERIVATIVES[name])
    edge = min(end, 200.0)
    middles = (np.arange(2_000_000) + 0.5) * (edge / 2_000_000)
    one_side = np.asarray(d(jnp.asarray(middles), progress))
    np.testing.assert_allclose(2 * one_side.sum() * (edge / 2_000_000), area, rtol=1e-5)
    np.testing.assert_array_equal(d(jnp.asarray(-middles[::1000]), progress), one_side[::1000])
    if end < np.inf:
        beyond = jnp.asarray([np.nextafter(end, 1e9) + 1e-12, end * 2, 1e6])
        assert not np.any(d(beyond, progress)) and np.all(d(beyond[:1] - 1e-3 * end, progress) > 0)


def test_gradient_table_of_the_released_code():
    d = jax.vmap(jax.grad(binarize.activation("approx_sign")))(jnp.asarray(POINTS, jnp.float32))
    np.testing.assert_array_equal(d, [0, 0, 1, 2, 2, 1, 0, 0])
    d = jax.vmap(jax.grad(binarize.activation("ste")))(jnp.asarray(POINTS, jnp.float32))
    np.testing.assert_array_equal(d, [0, 1, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("name", binarize.DERIVATIVES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bit_inputs_give_no_nan(name, dtype):
    x = jnp.asarray([-6e4, -300.0, -1.0, 0.0, 0.3, 300.0, 6e4], dtype)
    y, vjp = jax.vjp(binarize.activation(name), x)
    (g,) = vjp(jnp.ones_like(x))
    assert y.dtype == g.dtype == dtype
    assert np.isfinite(np.asarray(g, np.float32)).all()
    np.testing.assert_allclose(np.asarray(g, float), DERIVATIVES[name](np.asarray(x, float), 1.0), atol=0.05)


@pytest.mark.parametrize("name", binarize.DERIVATIVES)
def test_backward_keeps_one_array(name):
    x = jnp.ones((4, 5, 5, 3), jnp.bfloat16)
    residuals = jax.tree.leaves(jax.vjp(binarize.activation(name), x)[1])
    assert [(r.shape, r.dtype) for r in residuals if r.ndim] == [(x.shape, x.dtype)]


def binary_weight(name, progress=1.0):
    def rule(w):
        b, scale = binarize.weight(name)(w, progress)
        return b if scale is None else b * scale

    return rule


@pytest.mark.parametrize("name", binarize.WEIGHTS)
@pytest.mark.parametrize("progress", PROGRESS)
def test_weight_forward_and_gradient(name, progress, x64):
    rng = np.random.default_rng(3)
    w = rng.normal(0, 0.7, (3, 3, 4, 5))
    w[0, 0, :, 0] = [0.0, -0.0, 1.0, -1.0]
    w[0, 0, :2, 1] = np.nextafter(1, 2), np.nextafter(-1, -2)
    w[..., 4] = 0.0  # an all-zero filter
    g = rng.normal(size=w.shape)  # dL/dW_b
    w_b, vjp = jax.vjp(binary_weight(name, jnp.asarray(progress)), jnp.asarray(w))
    expected, gradient = WEIGHT_RULES[name](g, w, progress)
    np.testing.assert_allclose(w_b, expected, rtol=1e-14, atol=2e-12)
    ours = vjp(jnp.asarray(g))[0]
    np.testing.assert_allclose(ours[..., :4], gradient[..., :4], rtol=1e-11, atol=2e-11)
    assert np.isfinite(ours).all()
    if name not in ("standardized", "clamped", "through_scale"):  # there a zero filter has no derivative of its own
        np.testing.assert_allclose(ours[..., 4], gradient[..., 4], rtol=1e-12, atol=2e-11)


@pytest.mark.parametrize("name", binarize.WEIGHTS)
def test_weights_are_plus_or_minus_one_times_a_scale_per_channel(name):
    w = jnp.asarray(np.random.default_rng(5).normal(0, 0.1, (1, 1, 30, 3)), jnp.float32)
    b, alpha = binarize.weight(name)(w)
    assert (alpha is None) == (name == "real")
    if alpha is not None:
        assert set(np.unique(b)) == {-1, 1} and alpha.shape == (3,) and alpha.dtype == b.dtype == jnp.float32


def test_released_rule_is_one_over_alpha_larger(x64):
    w = jnp.asarray(np.random.default_rng(4).normal(0, 0.1, (3, 3, 8, 6)))
    g = {
        n: jax.grad(
            lambda w, n=n: jnp.sum(jnp.sin(jnp.prod(jnp.stack(jnp.broadcast_arrays(*binarize.weight(n)(w))), 0)))
        )(w)
        for n in ("released", "magnitude_aware")
    }
    ratio = np.asarray(g["released"] / g["magnitude_aware"])
    np.testing.assert_allclose(ratio, np.broadcast_to(1 / np.abs(w).mean((0, 1, 2)), ratio.shape), rtol=1e-12)


def test_own_rules_and_unknown_names():
    triangle = lambda x: jnp.maximum(0, 1 - jnp.abs(x))
    assert jax.grad(binarize.activation(triangle))(0.25) == 0.75
    narrowing = lambda x, width=2.0, *, progress: jnp.where(jnp.abs(x) < width - progress, 1.0, 0.0)
    d = jax.grad(binarize.activation(narrowing))
    assert (d(1.5, 0.25), d(1.5, 0.75)) == (1.0, 0.0)
    own = binarize.weight(lambda w: (binarize.sign(w), jnp.full(w.shape[-1], 2.0)))
    np.testing.assert_array_equal(own(jnp.ones((1, 1, 2, 3)), 0.5)[1], [2, 2, 2])
    with pytest.raises(
        BadInput,
        match=r"unknown activation derivative 'aprox'; did you mean approx_sign\? known: approx_sign, clip, .*, ste",
    ):
        binarize.activation("aprox")
    with pytest.raises(BadInput, match="unknown weight binarizer"):
        binarize.weight("paper")


def test_real_valued_activations():
    x = jnp.asarray([-3.0, -1.0, -0.5, 0.5, 2.0])
    expected = {
        "relu": [0, 0, 0, 0.5, 2], "clip": [-1, -1, -0.5, 0.5, 1], "leaky_clip": [-1.2, -1, -0.5, 0.5, 1.1]
    }  # fmt: skip
    assert set(expected) == set(binarize.REAL)
    for name, values in expected.items():
        np.testing.assert_allclose(binarize.activation(name)(x, 0.5), values, rtol=1e-6)


# ------------------------------------------------------------------ what the weight rules do in front of a batch norm


def conv_and_norm(name, epsilon):
    """(w, x) -> BN(conv(sign(x), W_b)) with the weight rule of that name."""

    def layer(w, x):
        b, alpha = binarize.weight(name)(w)
        y = layers.binary_conv2d(binarize.sign(x), b, alpha, (1, 1), ((1, 1), (1, 1)))
        return normalize_batch(y, jnp.ones(w.shape[-1]), jnp.zeros(w.shape[-1]), epsilon, None)[0]

    return layer


def test_the_law_of_one_over_alpha(x64):
    """Batch norm makes the output blind to alpha, so dL/dW_b grows as 1/alpha. The paper's rule multiplies it by alpha
    again and is the plain straight-through estimator; the released code does not, and its gradient is 1/alpha larger,
    filter by filter. The gradient through alpha is nothing.
    """
    rng = np.random.default_rng(6)
    x, g = rng.normal(size=(8, 6, 6, 16)), rng.normal(size=(8, 6, 6, 12))
    w = rng.normal(size=(3, 3, 16, 12)) * np.linspace(0.02, 0.3, 12)  # filters of different magnitude
    gradients = {
        name: np.asarray(jax.grad(lambda w, name=name: jnp.sum(g * conv_and_norm(name, 0.0)(w, x)))(jnp.asarray(w)))
        for name in ("sign", "magnitude_aware", "released", "identity", "through_scale")
    }
    inside = np.abs(w) < 1
    plain = np.where(inside, gradients["sign"], 0)
    np.testing.assert_allclose(np.where(inside, gradients["magnitude_aware"], 0), plain, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.where(inside, gradients["through_scale"], 0), plain, rtol=1e-9, atol=1e-11)
    alpha = np.abs(w).mean((0, 1, 2))
    for name in ("released", "identity"):
        np.testing.assert_allclose(np.where(inside, gradients[name], 0), plain / alpha, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("optimizer", "rate", "same"), [("adam", 1e-3, True), ("sgd", 1e-2, False)])
def test_adam_does_not_see_the_weight_rule_and_sgd_does(optimizer, rate, same, x64):
    """After 20 steps: Adam divides the 1/alpha away, SGD makes more of the weights flip."""
    rng = np.random.default_rng(7)
    x, target = jnp.asarray(rng.normal(size=(8, 6, 6, 16))), jnp.asarray(rng.normal(size=(8, 6, 6, 12)))
    start = {"conv": {"latent": jnp.asarray(rng.normal(0, 0.02, (3, 3, 16, 12)))}}
    ends = {}
    for name in ("sign", "magnitude_aware", "released"):
        tx = optim.make(optimizer, lambda _: rate, start)
        params, state = start, tx.init(start)
        layer = conv_and_norm(name, 1e-12)
        loss = lambda p, layer=layer: jnp.mean((layer(p["conv"]["latent"], x) - target) ** 2)
        grad = jax.jit(jax.grad(loss))
        for _ in range(20):
            updates, state = tx.update(grad(params), state, params)
            params = jax.tree.map(jnp.add, params, updates)
        ends[name] = np.asarray(params["conv"]["latent"])
    flips = {name: np.mean((end >= 0) != (np.asarray(start["conv"]["latent"]) >= 0)) for name, end in ends.items()}
    np.testing.assert_array_equal(ends["sign"] >= 0, ends["magnitude_aware"] >= 0)
    if same:
        assert np.mean((ends["sign"] >= 0) == (ends["released"] >= 0)) > 0.99 and flips["sign"] > 0.05
    else:
        assert flips["released"] > 4 * flips["sign"] > 0

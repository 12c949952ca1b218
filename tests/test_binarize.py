import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bireal_jax import binarize
from bireal_jax.errors import BadInput

POINTS = np.array([-2, -1, -0.5, -0.0, 0, 0.5, 1, 2])

# Independent formulas: piecewise, not in the closed form of the package.
DERIVATIVES = {
    "ste": lambda x: ((x >= -1) & (x <= 1)).astype(float),
    "approx_sign": lambda x: np.where((x >= -1) & (x < 0), 2 + 2 * x, np.where((x >= 0) & (x < 1), 2 - 2 * x, 0)),
}
# name -> value of dL/dW for dL/dW_b, alpha and W, from the papers and the released code
WEIGHT_RULES = {
    "magnitude_aware": lambda g, alpha, w: g * alpha * (np.abs(w) < 1),
    "released": lambda g, alpha, w: g * (np.abs(w) <= 1),
}


def points():
    rng = np.random.default_rng(1)
    return np.concatenate([POINTS, rng.normal(0, 1.2, 500), np.nextafter([1, -1, 1], [2, -2, 0]), [-1e-300]])


def test_tables_have_an_independent_formula_for_every_row():
    assert set(DERIVATIVES) == set(binarize.DERIVATIVES)
    assert set(WEIGHT_RULES) == set(binarize.WEIGHTS)


@pytest.mark.parametrize("name", binarize.DERIVATIVES)
def test_activation_forward_and_gradient(name, x64):
    x, g = points(), np.random.default_rng(2).normal(size=len(points()))
    y, vjp = jax.vjp(binarize.activation(name), jnp.asarray(x))
    np.testing.assert_array_equal(y, np.where(x >= 0, 1, -1))
    np.testing.assert_allclose(vjp(jnp.asarray(g))[0], g * DERIVATIVES[name](x), rtol=1e-15, atol=0)


def test_gradient_table_of_the_released_code():
    d = jax.vmap(jax.grad(binarize.activation("approx_sign")))(jnp.asarray(POINTS, jnp.float32))
    np.testing.assert_array_equal(d, [0, 0, 1, 2, 2, 1, 0, 0])
    d = jax.vmap(jax.grad(binarize.activation("ste")))(jnp.asarray(POINTS, jnp.float32))
    np.testing.assert_array_equal(d, [0, 1, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("name", binarize.DERIVATIVES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bit_inputs_give_no_nan(name, dtype):
    x = jnp.asarray([-1e4, -300.0, -1.0, 0.0, 0.3, 300.0, 1e4], dtype)
    y, vjp = jax.vjp(binarize.activation(name), x)
    (g,) = vjp(jnp.ones_like(x))
    assert y.dtype == g.dtype == dtype
    assert np.isfinite(np.asarray(g, np.float32)).all()
    np.testing.assert_allclose(np.asarray(g, float), DERIVATIVES[name](np.asarray(x, float)), atol=0.01)


@pytest.mark.parametrize("name", binarize.DERIVATIVES)
def test_backward_keeps_one_array(name):
    x = jnp.ones((4, 5, 5, 3), jnp.bfloat16)
    residuals = jax.tree.leaves(jax.vjp(binarize.activation(name), x)[1])
    assert [(r.shape, r.dtype) for r in residuals] == [(x.shape, x.dtype)]


@pytest.mark.parametrize("name", binarize.WEIGHTS)
def test_weight_forward_and_gradient(name, x64):
    rng = np.random.default_rng(3)
    w = rng.normal(0, 0.7, (3, 3, 4, 5))
    w[0, 0, :, 0] = [0.0, -0.0, 1.0, -1.0]
    w[..., 4] = 0.0  # an all-zero filter
    g = rng.normal(size=w.shape)  # dL/dW_b
    alpha = np.abs(w).mean((0, 1, 2))

    def binary_weight(w):
        b, scale = binarize.weight(name)(w)
        return b * scale

    w_b, vjp = jax.vjp(binary_weight, jnp.asarray(w))
    np.testing.assert_allclose(w_b, alpha * np.where(w >= 0, 1, -1), rtol=1e-14, atol=2e-12)
    np.testing.assert_allclose(vjp(jnp.asarray(g))[0], WEIGHT_RULES[name](g, alpha, w), rtol=1e-12, atol=2e-11)


def test_released_rule_is_one_over_alpha_larger(x64):
    w = jnp.asarray(np.random.default_rng(4).normal(0, 0.1, (3, 3, 8, 6)))
    g = {
        n: jax.grad(
            lambda w, n=n: jnp.sum(jnp.sin(jnp.prod(jnp.stack(jnp.broadcast_arrays(*binarize.weight(n)(w))), 0)))
        )(w)
        for n in WEIGHT_RULES
    }
    ratio = np.asarray(g["released"] / g["magnitude_aware"])
    np.testing.assert_allclose(ratio, np.broadcast_to(1 / np.abs(w).mean((0, 1, 2)), ratio.shape), rtol=1e-12)


def test_own_derivative_and_unknown_name():
    triangle = lambda x: jnp.maximum(0, 1 - jnp.abs(x))
    assert jax.grad(binarize.activation(triangle))(0.25) == 0.75
    with pytest.raises(BadInput, match="unknown activation derivative 'aprox'; known: approx_sign, ste"):
        binarize.activation("aprox")
    with pytest.raises(BadInput, match="unknown weight binarizer"):
        binarize.weight("paper")

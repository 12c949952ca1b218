"""Binarizers: a forward to ±1 and a derivative to train through it.

The forward of every binarizer is `sign`, with sign(0) = sign(-0) = +1 (paper: a >= 0 gives +1). What differs is the
derivative that the backward pass uses in place of the true one, which is zero almost everywhere.

Two tables hold all there is. `DERIVATIVES`: name -> d(x), the derivative of a binary activation. `WEIGHTS`: name ->
function from a latent weight to (±1 weight, scale). A function of your own can be passed wherever a name is taken.

References: Bi-Real Net, Liu et al., ECCV 2018 (arXiv 1808.00278) and IJCV 2020 (arXiv 1811.01335); XNOR-Net, Rastegari
et al., ECCV 2016.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bireal_jax.errors import lookup

Derivative = Callable[[jax.Array], jax.Array]
WeightBinarizer = Callable[[jax.Array], tuple[jax.Array, jax.Array]]

# A filter of zeros has scale 0 and the rules below that divide by the scale would give 0/0. With this floor they give
# what the released code gives there, to 1e-12.
MIN_SCALE = 1e-12


def sign(x: jax.Array) -> jax.Array:
    """+1 where x >= 0, else -1, in the dtype of x. Zero of either sign gives +1; its own derivative is zero."""
    return jnp.where(x >= 0, jnp.ones_like(x), -jnp.ones_like(x))


def sign_with(derivative: Derivative) -> Callable[[jax.Array], jax.Array]:
    """sign in the forward pass, `derivative` in the backward pass: dL/dx = dL/dy * derivative(x).

    The residual is x itself in its own dtype. Writing the polynomial of which `derivative` is the derivative, masked,
    and leaving the rest to autodiff keeps several arrays of that size and is NaN in float16 for |x| > 256.
    """

    @jax.custom_vjp
    def binarize(x):
        return sign(x)

    binarize.defvjp(lambda x: (sign(x), x), lambda x, g: (g * derivative(x),))
    return binarize


# ---------------------------------------------------------------------------------------------- activation derivatives


def ste(x):
    """Clipped straight-through estimator, d(x) = 1[|x| <= 1] (BinaryNet, Courbariaux et al. 2016)."""
    return (jnp.abs(x) <= 1).astype(x.dtype)


def approx_sign(x):
    """Derivative of the piecewise polynomial ApproxSign, d(x) = max(0, 2 - 2|x|) (Bi-Real Net).

    Equal to 2 + 2x on [-1, 0), 2 - 2x on [0, 1) and 0 elsewhere. In this closed form no intermediate overflows to NaN.
    """
    return jnp.maximum(0, 2 - 2 * jnp.abs(x))


DERIVATIVES: dict[str, Derivative] = {"approx_sign": approx_sign, "ste": ste}


def activation(derivative: str | Derivative) -> Callable[[jax.Array], jax.Array]:
    """The binary activation with the derivative of that name, or with a function d(x) of yours.

    Raises:
      BadInput: no such name.
    """
    return sign_with(
        lookup(DERIVATIVES, derivative, "activation derivative") if isinstance(derivative, str) else derivative
    )


# --------------------------------------------------------------------------------------------------- weight binarizers
# A weight binarizer takes a latent weight w [kh, kw, cin, cout] and returns (b, alpha), b = sign(w) and alpha [cout].
# The convolution uses W_b = alpha * b, as alpha * conv(x, b), so the cotangent that reaches b is alpha * dL/dW_b.


def mean_abs(w: jax.Array) -> jax.Array:
    """alpha_o = mean |W_o|, one scale per output channel: [kh, kw, cin, cout] -> [cout]."""
    return jnp.maximum(jnp.mean(jnp.abs(w), axis=tuple(range(w.ndim - 1))), MIN_SCALE)


@jax.custom_vjp
def divide_gradient(x, alpha):
    """x in the forward pass; in the backward pass dL/dx is divided by alpha, and alpha gets none."""
    return x


divide_gradient.defvjp(lambda x, alpha: (x, alpha), lambda alpha, g: (g / alpha, jnp.zeros_like(alpha)))


def magnitude_aware(w):
    """The paper's magnitude-aware gradient: W_b = alpha sign(W), dL/dW = dL/dW_b * alpha * 1[|W| < 1] (Bi-Real Net).

    Under batch normalization the factor alpha cancels the 1/alpha by which dL/dW_b grows, so this equals the plain
    clipped straight-through estimator.
    """
    b = sign_with(lambda w: (jnp.abs(w) < 1).astype(w.dtype))(w)
    return b, jax.lax.stop_gradient(mean_abs(w))


def released(w):
    """The rule of the authors' PyTorch code: W_b = alpha sign(W), dL/dW = dL/dW_b * 1[|W| <= 1], alpha detached.

    1/alpha larger than the paper's rule, and inclusive at |W| = 1.
    """
    alpha = jax.lax.stop_gradient(mean_abs(w))
    return divide_gradient(sign_with(ste)(w), alpha), alpha


WEIGHTS: dict[str, WeightBinarizer] = {"magnitude_aware": magnitude_aware, "released": released}


def weight(rule: str | WeightBinarizer) -> WeightBinarizer:
    """The weight binarizer of that name, or a function w -> (b, alpha) of yours.

    Raises:
      BadInput: no such name.
    """
    return lookup(WEIGHTS, rule, "weight binarizer") if isinstance(rule, str) else rule

"""Binarizers: a forward to ±1 and a derivative to train through it.

The forward of every binarizer is `sign`, with sign(0) = sign(-0) = +1 (paper: a >= 0 gives +1). What differs is the
derivative that the backward pass uses in place of the true one, which is zero almost everywhere.

Three tables hold all there is. `DERIVATIVES`: name -> d(x), the derivative of a binary activation. `REAL`: name -> a
real-valued activation, for the networks that binary ones start from. `WEIGHTS`: name -> function from a latent weight
to (±1 weight, scale). A function of your own can be passed wherever a name is taken. A rule that changes during the
training takes a second argument, progress, which goes from 0 to 1.

References: Bi-Real Net, Liu et al., ECCV 2018 (arXiv 1808.00278) and IJCV 2020 (arXiv 1811.01335); BinaryNet,
Courbariaux et al., 2016; XNOR-Net, Rastegari et al., ECCV 2016; BNN+, Darabi et al., 2018; IR-Net, Qin et al., CVPR
2020; RBNN, Lin et al., NeurIPS 2020; ReCU, Xu et al., ICCV 2021; ReSTE, Wu et al., ICCV 2023. The schedules of the last
four are those of the authors' public code.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from bireal_jax.binary import rule as rules
from bireal_jax.binary.rule import with_progress
from bireal_jax.errors import BadInput, lookup

# d(x), or d(x, progress)
Derivative = Callable[..., jax.Array]
# w -> (b, alpha), or (w, progress) -> (b, alpha)
WeightBinarizer = Callable[..., tuple[jax.Array, jax.Array | None]]

# A filter of zeros has scale 0 and the rules below that divide by the scale would give 0/0. With this floor they give
# what the released code gives there, to 1e-12.
MIN_SCALE = 1e-12


@jax.jit
def sign(x: jax.Array) -> jax.Array:
    """+1 where x >= 0, else -1, in the dtype of x. Zero of either sign gives +1; its own derivative is zero.

    The jit gives the operation its name in the jaxpr, here and below: the op graph finds it by that.
    """
    return jnp.where(x >= 0, jnp.ones_like(x), -jnp.ones_like(x))


def sign_with(derivative: Derivative) -> Callable[..., jax.Array]:
    """sign in the forward pass, `derivative` in the backward pass: dL/dx = dL/dy * derivative(x[, progress]).

    The residual is x itself in its own dtype. Writing the polynomial of which `derivative` is the derivative, masked,
    and leaving the rest to autodiff keeps several arrays of that size and is NaN in float16 for |x| > 256.

    Returns:
      A function of (x, progress=1.0).
    """
    derivative = with_progress(derivative)

    @jax.custom_vjp
    def binarize(x, progress):
        return sign(x)

    def backward(residuals, g):
        x, progress = residuals
        return (g * derivative(x, progress)).astype(x.dtype), None

    binarize.defvjp(lambda x, progress: (sign(x), (x, progress)), backward)
    return partial(_signs, binarize)


def _signs(binarize, x, progress=1.0):
    return binarize(x, progress)


def gives_signs(activation: Callable) -> bool:
    """Whether an activation is known to give ±1: one of `sign_with`, its progress given or not."""
    return getattr(activation, "func", None) is _signs


# ---------------------------------------------------------------------------------------------- activation derivatives
# Every one integrates to 2, the step of the sign, but for `tanh` in the first half and `power`.


def ste(x):
    """Clipped straight-through estimator, d(x) = 1[|x| <= 1] (BinaryNet)."""
    return (jnp.abs(x) <= 1).astype(x.dtype)


def approx_sign(x):
    """Derivative of the piecewise polynomial ApproxSign, d(x) = max(0, 2 - 2|x|) (Bi-Real Net).

    Equal to 2 + 2x on [-1, 0), 2 - 2x on [0, 1) and 0 elsewhere. In this closed form no intermediate overflows to NaN.
    """
    return jnp.maximum(0, 2 - 2 * jnp.abs(x))


def swish_sign(x):
    """Derivative of SignSwish, 2 sigma(bx) (1 + bx (1 - sigma(bx))) - 1, with b = 5 (BNN+).

    d(x) = b (2 - bx tanh(bx / 2)) / (1 + cosh(bx)); negative beyond |x| = 0.48. Written with 1 / (1 + cosh(u)) =
    2 s (1 - s), s = sigma(u), which does not overflow.
    """
    u = jnp.clip(5 * x, -50, 50)
    s = jax.nn.sigmoid(-jnp.abs(u))
    return 10 * s * (1 - s) * (2 - u * jnp.tanh(u / 2))


def _sharpness(progress, low, high):
    """From `low` to `high`, by equal factors."""
    return low * (high / low) ** progress


def tanh(x, progress):
    """Derivative of k tanh(tx), d(x) = k t (1 - tanh²(tx)), k = max(1/t, 1), t from 0.1 to 10 (EDE of IR-Net).

    At first close to the identity, at the end close to the sign. t grows by equal factors (the code of IR-Net, which
    starts at 0.001 for ResNet-20). The area is 2k.
    """
    t = _sharpness(progress, 0.1, 10.0)
    s = jax.nn.sigmoid(-2 * jnp.abs(t * x))
    return (jnp.maximum(1.0, t) * 4 * s * (1 - s)).astype(x.dtype)  # 1 - tanh²(u) = 4 sigma(2u) (1 - sigma(2u))


def triangle(x, progress):
    """d(x) = max(0, sqrt(2) t - t² |x|), t = max(1, what grows from 0.01 to 10 by equal factors) (RBNN).

    The derivative of RBNN's activations; the one of its weights has a factor max(1/t, 1) and t below 1, too.
    """
    t = jnp.maximum(1.0, _sharpness(progress, 0.01, 10.0))
    return (t * jnp.maximum(0, 2**0.5 - t * jnp.abs(x))).astype(x.dtype)


def power(x, progress):
    """Derivative of sign(x) |x|^(1/o), d(x) = |x|^((1 - o) / o) / o on [0.1, 1.5], o from 1 to 3 (ReSTE).

    Below 0.1, where it would diverge, the slope of the chord, 0.1^(1/o) / 0.1; beyond 1.5 zero.
    o = 1 + 2 (1 - cos(pi progress / 2)). The area is 2 * 1.5^(1/o).
    """
    o = 1 + 2 * (1 - jnp.cos(jnp.pi / 2 * progress))
    size = jnp.abs(x)
    slope = jnp.where(size > 0.1, jnp.maximum(size, 0.1) ** ((1 - o) / o) / o, 0.1 ** (1 / o - 1))
    return jnp.where(size <= 1.5, slope, 0).astype(x.dtype)


DERIVATIVES: dict[str, Derivative] = {
    "approx_sign": approx_sign, "ste": ste, "swish_sign": swish_sign,
    "tanh": tanh, "triangle": triangle, "power": power,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- real-valued activations


@jax.jit
def leaky_clip(x: jax.Array) -> jax.Array:
    """x on [-1, 1], slope 0.1 beyond (Bi-Real Net's bridge from ReLU to clip)."""
    clipped = clip(x)
    return clipped + 0.1 * (x - clipped)


def clip(x: jax.Array) -> jax.Array:
    """min(max(x, -1), 1), closer to the sign than ReLU is (Bi-Real Net)."""
    return jnp.clip(x, -1, 1)


REAL: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": jax.nn.relu, "leaky_clip": leaky_clip, "clip": clip}


def activation(name: str | Derivative) -> Callable[..., jax.Array]:
    """The activation as a function of (x, progress=1.0).

    Args:
      name: a key of `DERIVATIVES` for the sign with that derivative, a key of `REAL` for a real-valued activation, or a
        function d(x) or d(x, progress) of yours for the sign with that derivative.

    Raises:
      BadInput: no such name, or a derivative of other arguments or another shape.
    """
    if not isinstance(name, str):
        return _checked(name)
    rule = lookup(DERIVATIVES | REAL, name, "activation derivative")
    return (lambda x, progress=1.0: rule(x)) if name in REAL else _checked(rule)


def _checked(derivative):
    shape = 2, 3, 4, 5
    rules.check_shape(rules.tried(derivative, "the derivative", shape), shape, "the result", derivative)
    return sign_with(derivative)


# --------------------------------------------------------------------------------------------------- weight binarizers
# A weight binarizer takes a latent weight w [kh, kw, cin, cout] and returns (b, alpha), b = sign(w) and alpha [cout].
# The convolution uses W_b = alpha * b, as alpha * conv(x, b), so the cotangent that reaches b is alpha * dL/dW_b.


def mean_abs(w: jax.Array) -> jax.Array:
    """alpha_o = mean |W_o|, one scale per output channel: [..., cout] -> [cout].

    |W| is written W sign(W), so that its derivative at 0 is sign(0) = +1.
    """
    return jnp.maximum(jnp.mean(w * sign(w), axis=tuple(range(w.ndim - 1))), MIN_SCALE)


@jax.custom_vjp
def divide_gradient(x, alpha):
    """x in the forward pass; in the backward pass dL/dx is divided by alpha, and alpha gets none."""
    return x


divide_gradient.defvjp(lambda x, alpha: (x, alpha), lambda alpha, g: (g / alpha, jnp.zeros_like(alpha)))


def plain(w):
    """No scale: W_b = sign(W), dL/dW = dL/dW_b * 1[|W| <= 1] (BinaryNet)."""
    return sign_with(ste)(w), jnp.ones(w.shape[-1], w.dtype)


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


def identity(w):
    """The rule of the authors' Caffe code: W_b = alpha sign(W), dL/dW = dL/dW_b. No mask."""
    alpha = jax.lax.stop_gradient(mean_abs(w))
    return divide_gradient(sign_with(lambda w: jnp.ones_like(w))(w), alpha), alpha


def through_scale(w):
    """The gradient also through the scale: dL/dW = dL/dW_b * alpha * 1[|W| <= 1] + sign(W) dL/dalpha / n (XNOR-Net).

    dL/dalpha = sum of dL/dW_b * sign(W) over the n weights of the filter. This is the chain rule; XNOR-Net's paper
    writes it weight by weight, dL/dW = dL/dW_b (1/n + alpha * 1[|W| <= 1]).
    """
    return sign_with(ste)(w), mean_abs(w)


def _standardize(w, epsilon):
    """Each filter centred and divided by its standard deviation (n - 1 in the denominator, as in torch)."""
    rest = tuple(range(w.ndim - 1))
    centred = w - jnp.mean(w, rest)
    return centred / jnp.sqrt(jnp.sum(centred**2, rest) / (w[..., 0].size - 1) + epsilon)


def standardized(w, progress):
    """b = sign(V), V the filter centred and standardized; alpha = 2^round(log2 mean |V|); derivative `tanh` (IR-Net).

    dL/dW goes through the standardization, dL/db through alpha * tanh(V, progress); alpha is detached.
    """
    v = _standardize(w, MIN_SCALE)
    return sign_with(tanh)(v, progress), jax.lax.stop_gradient(2.0 ** jnp.round(jnp.log2(mean_abs(v)))).astype(w.dtype)


def clamped(w, progress):
    """b = sign(clip(V, ±Q)), V = sqrt(8) times the standardized filter, gradient 1[|V| <= Q] to V (ReCU).

    Q = -mean|V| ln(2 - 2 tau), the quantile of a Laplace distribution, over the whole layer. tau goes from 0.85 to 0.99
    as 0.85 + 0.14 (e^progress - 1) / (e - 1). dL/dW goes through the standardization. No scale: the learned one of the
    authors, a factor per channel, is left to the batch norm behind.
    """
    v = 8**0.5 * _standardize(w, 1e-5)
    tau = 0.85 + 0.14 * (jnp.exp(progress) - 1) / (jnp.e - 1)
    q = jax.lax.stop_gradient(-jnp.mean(jnp.abs(v)) * jnp.log(2 - 2 * tau)).astype(w.dtype)
    return sign_with(lambda v: jnp.ones_like(v))(jnp.clip(v, -q, q)), jnp.ones(w.shape[-1], w.dtype)


def direct(w):
    """The parameter is the binary weight: W_b = W = ±1, dL/dW = dL/dW_b. No latent weight, no scale (Bop).

    The sign, which leaves ±1 as it is, names the operation and makes latent weights of an earlier stage binary.
    """
    return sign_with(lambda w: jnp.ones_like(w))(w), jnp.ones(w.shape[-1], w.dtype)


def real(w):
    """No binarization: the weight itself, and None for the scale."""
    return w, None


WEIGHTS: dict[str, WeightBinarizer] = {
    "sign": plain, "magnitude_aware": magnitude_aware, "released": released, "identity": identity,
    "through_scale": through_scale, "standardized": standardized, "clamped": clamped, "direct": direct, "real": real,
}  # fmt: skip
OURS = {"act": DERIVATIVES | REAL, "weight": dict(WEIGHTS)}  # before a recipe adds any


def weight(rule: str | WeightBinarizer) -> WeightBinarizer:
    """The weight binarizer as a function of (w, progress=1.0).

    Args:
      rule: a key of `WEIGHTS`, or a function w -> (b, alpha) or (w, progress) -> (b, alpha) of yours.

    Raises:
      BadInput: no such name, or a rule of other arguments, or that gives something else.
    """
    rule = lookup(WEIGHTS, rule, "weight binarizer") if isinstance(rule, str) else rule
    shape = 3, 3, 4, 5
    found = rules.tried(rule, "the weight rule", shape)
    if not isinstance(found, tuple) or len(found) != 2:
        name = getattr(rule, "__name__", rule)
        raise BadInput(
            f"the weight rule {name} gives {rules.shown(found)}; it must give two: (b, alpha), or (w, None)\n"
            "b: the weights as ±1, of the shape of w; alpha: their scale in each output channel, jnp.ones(w.shape[-1]) "
            "for none"
        )
    for what, part, wanted in (("b", found[0], shape), ("alpha", found[1], shape[-1:])):
        if part is not None or what == "b":
            rules.check_shape(part, wanted, what, rule)
    whole = with_progress(rule)
    return lambda w, progress=1.0: whole(w, progress)

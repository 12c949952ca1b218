"""The layers of 1-bit networks: real and binary convolution, batch normalization, pooling.

Arrays are NHWC, kernels HWIO, padding is explicit and symmetric as in PyTorch (`SAME` is asymmetric at stride 2).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from bireal_jax.binary import packed, stem, tables
from bireal_jax.binary.binarize import WeightBinarizer, gives_signs
from bireal_jax.binary.conv import OF_PIXELS, Padding, affine, by_depth, conv, pixel_product, xla_conv
from bireal_jax.binary.norm import Over, normalize_batch
from bireal_jax.binary.pool import max_pool

MOMENTUM = 0.9  # share of the old running statistics that a batch norm keeps (PyTorch's momentum is 1 - this)
NO_PADDING: Padding = ((0, 0), (0, 0))
CONV = "conv"  # what convolutions give is called for `jax.checkpoint`


def symmetric(kernel_size: tuple[int, int]) -> Padding:
    """Padding that keeps the size at stride 1: half of the kernel on every side, for odd kernels."""
    kh, kw = kernel_size
    return (kh // 2, kh // 2), (kw // 2, kw // 2)


@partial(jax.jit, static_argnames=("strides", "padding", "groups"))
def conv2d(
    x: jax.Array, w: jax.Array, strides: tuple[int, int] = (1, 1), padding: Padding = NO_PADDING, groups: int = 1
) -> jax.Array:
    """Real-valued convolution of x [n, h, w, cin] with w [kh, kw, cin / groups, cout], zero padding.

    On CPUs groups of more than one channel are convolved one after the other, which is 10 to 100 times faster than what
    XLA makes of them, forward and backward (3x3, 32 to 512 channels, 2 to 32 groups).

    The stem of an ImageNet network, a large kernel at stride 2 on few channels, goes elsewhere by `conv.by_depth`.
    """
    if strides == (2, 2) and min(w.shape[:2]) > 3 and x.shape[3] <= 4 and groups == 1:
        how = {"product": stem.product, "gradients": stem.GRADIENTS, "strides": strides, "padding": padding}
        plain, other = partial(conv, **how), partial(by_depth, padding=padding)
        return checkpoint_name(lax.platform_dependent(x, w, cpu=plain, default=other), CONV)
    pixels = (*w.shape[:2], *strides) == (1, 1, 1, 1) and padding == NO_PADDING
    products = (pixel_product, OF_PIXELS) if pixels else (stem.product, stem.GRADIENTS)
    return _convolution(x, w, (), strides, padding, groups, *products)


def _convolution(x, w, scale_and_bias, strides, padding, groups, *products):
    def one(x, w, *more):
        return conv(x, w, strides, padding, *products, *more)

    def together(x, w, *more):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, feature_group_count=groups)
        return affine(y, *more)

    def apart(*arrays):
        parts = zip(*(jnp.split(a, groups, -1) for a in arrays), strict=True)
        return jnp.concatenate([one(*part) for part in parts], -1)

    if groups == 1:
        y = one(x, w, *scale_and_bias)
    elif w.shape[2] == 1:
        y = together(x, w, *scale_and_bias)
    else:
        y = lax.platform_dependent(x, w, *scale_and_bias, cpu=apart, default=together)
    return checkpoint_name(y, CONV)


@partial(jax.jit, static_argnames=("strides", "padding", "groups", "signs"))
def binary_conv2d(
    x: jax.Array,
    b: jax.Array,
    alpha: jax.Array,
    strides: tuple[int, int],
    padding: Padding,
    groups: int = 1,
    signs: bool = True,
    bias: jax.Array | None = None,
) -> jax.Array:
    """alpha * conv(x, b) + bias: convolution of ±1 activations with ±1 weights, then one scale per output channel.

    Zero padding after the sign: beyond the border the activation is 0, neither +1 nor -1, as in the authors' code. The
    jit gives the operation its name in the jaxpr, by which the op graph finds it; it costs nothing.

    Args:
      x: [n, h, w, cin], +1 or -1.
      b: [kh, kw, cin / groups, cout], +1 or -1.
      alpha: [cout], float32 or wider.
      strides, groups: of the convolution.
      padding: ((top, bottom), (left, right)).
      signs: x is ±1; else of any values.
      bias: [cout], or None.

    Returns:
      [n, h', w', cout] in the dtype of x.
    """
    products = (packed.product, tables.GRADIENTS) if signs else (xla_conv, tables.OF_REAL_INPUTS)
    more = (alpha,) if bias is None else (alpha, bias)
    if x.dtype == jnp.float16:  # gradients that are not yet multiplied by alpha could be more than it can say
        return affine(_convolution(x, b, (), strides, padding, groups, *products), *more)
    return _convolution(x, b, more, strides, padding, groups, *products)


def uniform_001(key, shape, dtype=jnp.float32):
    """Latent weights from U[0, 0.001), the released code's: every binary weight starts at +1 and flips easily."""
    return jax.random.uniform(key, shape, dtype, 0.0, 0.001)


def random_signs(key, shape, dtype=jnp.float32):
    """+1 or -1 with equal chances: the signs of any symmetric initialization, for weights without latent ones (Bop)."""
    return jax.random.rademacher(key, shape, dtype)


def torch_uniform(fan_in: int) -> Callable:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for the weights and biases of real-valued layers."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class BinaryConv(nn.Module):
    """1-bit convolution: y = alpha * conv(binarize(x), sign(latent)) [+ bias].

    With a real-valued activation or weight it is the layer that a binary one starts from, with the same parameters.

    Attributes:
      features: output channels.
      activation: x -> ±1, from `binarize.activation`.
      weight: latent -> (±1, alpha), or (latent, None) for a real-valued one, from `binarize.weight`.
      kernel_size, strides, groups: of the convolution.
      padding: zeros around the activation; None for half of the kernel.
      real_input: the input is not binarized, as in the first layer of BinaryNet.
      learned_threshold: a parameter `shift` [cin], at first 0, is added before the activation (RSign of ReActNet).
      rescale: x -> x of the same signs, between threshold and activation, or None. It shapes the gradient alone, so a
        network gives it in training only; for real-valued activations there is none.
      use_bias: add a real-valued bias per output channel.
      latent_init: initializer of the latent weight, the parameter `latent` [kh, kw, cin / groups, cout].
      dtype, param_dtype: of the computation and of the parameters.
    """

    features: int
    activation: Callable
    weight: WeightBinarizer
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding | None = None
    groups: int = 1
    real_input: bool = False
    learned_threshold: bool = False
    rescale: Callable | None = None
    use_bias: bool = False
    latent_init: Callable = uniform_001
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # [n, h, w, cin] -> [n, h', w', features]
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        latent = self.param("latent", self.latent_init, shape, self.param_dtype)
        b, alpha = self.weight(latent)
        x, b = x.astype(self.dtype), b.astype(self.dtype)
        if self.learned_threshold:
            x = x + self.param("shift", nn.initializers.zeros, x.shape[-1:], self.param_dtype).astype(self.dtype)
        if self.rescale is not None and not self.real_input:
            x = self.rescale(x)
        how = (self.strides, symmetric(self.kernel_size) if self.padding is None else self.padding, self.groups)
        bias = None
        if self.use_bias:
            bias = self.param("bias", torch_uniform(shape[0] * shape[1] * shape[2]), (self.features,), self.param_dtype)
        if self.real_input or alpha is None:
            return affine(conv2d(x if self.real_input else self.activation(x), b, *how), alpha, bias)
        return binary_conv2d(self.activation(x), b, alpha, *how, gives_signs(self.activation), bias)


@jax.jit
def rprelu(x: jax.Array, shift_in: jax.Array, slope: jax.Array, shift_out: jax.Array) -> jax.Array:
    """PReLU with shifts [c]: y = max(u, 0) + slope min(u, 0) + shift_out, u = x + shift_in (ReActNet)."""
    u = x + shift_in
    return jnp.where(u >= 0, u, slope * u) + shift_out


class RPReLU(nn.Module):
    """`rprelu` with learned shifts and slopes, per channel (ReActNet).

    Shifts start at 0, slopes at 0.25.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # [..., c] -> [..., c]
        def param(name, value):
            init = nn.initializers.constant(value)
            return self.param(name, init, x.shape[-1:], self.param_dtype).astype(self.dtype)

        return rprelu(x, param("shift_in", 0.0), param("slope", 0.25), param("shift_out", 0.0))


class PReLU(nn.Module):
    """max(x, 0) + slope min(x, 0), a learned slope per channel that starts at 0.25, as PyTorch's."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # [..., c] -> [..., c]
        slope = self.param("slope", nn.initializers.constant(0.25), x.shape[-1:], self.param_dtype).astype(self.dtype)
        zeros = jnp.zeros_like(slope)
        return rprelu(x, zeros, slope, zeros)


@jax.jit
def two_slopes(x: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """positive max(x, 0) + negative min(x, 0), slopes [c]."""
    return jnp.where(x >= 0, positive * x, negative * x)


class TwoSidedPReLU(nn.Module):
    """`two_slopes` with learned slopes per channel that start at 1 and 0.25: the Maxout of AdaBin's code."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # [..., c] -> [..., c]
        starts = {"positive": 1.0, "negative": 0.25}
        slopes = [
            self.param(name, nn.initializers.constant(start), x.shape[-1:], self.param_dtype).astype(self.dtype)
            for name, start in starts.items()
        ]
        return two_slopes(x, *slopes)


class Conv(nn.Module):
    """Real-valued convolution without bias; parameter `kernel` [kh, kw, cin / groups, cout].

    Zero padding, None for half of the kernel. `kernel_init` is by default PyTorch's initializer.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding | None = None
    groups: int = 1
    kernel_init: Callable | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # [n, h, w, cin] -> [n, h', w', features]
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        init = self.kernel_init or torch_uniform(shape[0] * shape[1] * shape[2])
        kernel = self.param("kernel", init, shape, self.param_dtype).astype(self.dtype)
        padding = symmetric(self.kernel_size) if self.padding is None else self.padding
        return conv2d(x.astype(self.dtype), kernel, self.strides, padding, self.groups)


class Dense(nn.Module):
    """Real-valued fully connected layer; parameters `kernel` [cin, cout] and `bias`, PyTorch's initializers."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # [n, cin] -> [n, features]
        init = torch_uniform(x.shape[-1])
        return nn.Dense(
            self.features, True, self.dtype, self.param_dtype, kernel_init=init, bias_init=init, name="linear"
        )(x)


class BatchNorm(nn.Module):
    """Batch normalization over all but the last axis, with PyTorch's running statistics.

    Differs from `flax.linen.BatchNorm` in one point that parity needs: the running variance is the unbiased one
    (n / (n - 1) times the variance that normalizes the batch).

    Attributes:
      over: what batch statistics are over, as of `norm.normalize_batch`.
      momentum: share of the old running statistics kept.
      epsilon: added to the variance. Keep 1e-5: see `uniform_001`.
      use_scale: has a learned scale.
      pooled: gives `pool.max_pool` of what is normalized.
      dtype, param_dtype: of the result and of the parameters; statistics are float32 or wider.
    """

    over: Over = None
    momentum: float = MOMENTUM
    epsilon: float = 1e-5
    use_scale: bool = True
    pooled: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):  # [..., c] -> [..., c], or [n, h, w, c] -> [n, h / 2, w / 2, c]
        shape = (x.shape[-1],)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        ones = nn.initializers.ones
        scale = (
            self.param("scale", ones, shape, self.param_dtype).astype(wide) if self.use_scale else jnp.ones(shape, wide)
        )
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype).astype(wide)
        if not train:
            mean, var = running_mean.value.astype(wide), running_var.value.astype(wide)
            y = ((x.astype(wide) - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias).astype(self.dtype)
            return max_pool(y) if self.pooled else y
        over = None if self.is_initializing() else self.over
        y, mean, var = normalize_batch(x.astype(self.dtype), scale, bias, self.epsilon, over, self.pooled)
        if not self.is_initializing():
            running_mean.value = self._blend(running_mean.value, mean)
            running_var.value = self._blend(running_var.value, var)
        return y

    def _blend(self, old, new):
        return self.momentum * old + (1 - self.momentum) * new.astype(old.dtype)

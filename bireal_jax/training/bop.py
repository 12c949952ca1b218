"""Bop: binary weights without latent ones behind them, and its second-order form, as optax transformations.

The parameter is the weight itself, +1 or -1. A moving average of its gradient tells how strongly, and how steadily, the
loss pulls at it; a weight flips where that pull is against it and above a threshold:

    m <- (1 - gamma) m + gamma g;    w <- -w where |m| > threshold and sign(m) = sign(w)

gamma takes the place of the learning rate. g is the gradient by the binary weight, of the mean loss over all devices:
a loss times c needs a threshold times c. m starts at 0, has no bias correction and is kept when a weight flips.

References: Bop, Helwegen et al., "Latent weights do not exist", NeurIPS 2019 (arXiv 1906.02107); second order,
Suarez-Ramirez et al., "Bop and beyond", CVPR workshops 2021 (arXiv 2104.05124).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bireal_jax.binary.binarize import sign
from bireal_jax.errors import BadInput, lookup

EPSILON = 1e-10  # added to the square root of v, as in the authors' code

Schedule = Callable[[Any], Any]  # step -> value


class BopState(NamedTuple):
    """What Bop remembers."""

    count: Any  # int32 [], updates done
    m: Any  # average gradient; float32 or wider, of the shapes of the weights. 16 bits lose what gamma adds.


class SecondOrderBopState(NamedTuple):
    """What second-order Bop remembers."""

    count: Any  # int32 [], updates done
    log_m: jax.Array  # [], log of the share that the zeros of the start have in m: the sum of log(1 - gamma)
    log_v: jax.Array  # [], the same of v
    m: Any  # as of BopState
    v: Any  # average squared gradient


def bop(gamma: Schedule, threshold: Schedule) -> optax.GradientTransformation:
    """Bop: a weight flips where m pulls against it with more than the threshold.

    A pull of exactly the threshold flips nothing, so without gradients nothing flips at threshold 0 either.

    Args:
      gamma: step -> share of the new gradient in the average, in (0, 1].
      threshold: step -> 0 or above.

    Returns:
      A transformation whose updates are 0 or -2w. Weights that are not ±1, latent ones of an earlier stage, become
      their signs.
    """

    def init(params):
        return BopState(jnp.zeros((), jnp.int32), _zeros(params))

    def update(updates, state, params=None):
        m = _average(state.m, updates, gamma(state.count))
        updates = jax.tree.map(partial(_flip, threshold=threshold(state.count)), params, m)
        return updates, BopState(optax.safe_increment(state.count), m)

    return optax.GradientTransformation(init, update)


def second_order_bop(
    gamma: Schedule, threshold: Schedule, sigma: Schedule, unbiased: bool = False
) -> optax.GradientTransformation:
    """Second-order Bop: the pull is m / (sqrt(v) + 1e-10), v <- (1 - sigma) v + sigma g².

    Args:
      gamma, threshold: as of `bop`.
      sigma: step -> share of the new squared gradient, in (0, 1].
      unbiased: m and v are divided by what is not left in them of the zeros they start from, as in Adam: by
        1 - (1 - gamma)^t at constant gamma. With a schedule that power is the product over the steps.
    """

    def init(params):
        zero = jnp.zeros(())
        return SecondOrderBopState(jnp.zeros((), jnp.int32), zero, zero, _zeros(params), _zeros(params))

    def update(updates, state, params=None):
        shares = gamma(state.count), sigma(state.count)
        m = _average(state.m, updates, shares[0])
        v = _average(state.v, jax.tree.map(jnp.square, _like(updates, state.v)), shares[1])
        # log1p and expm1: 1 - (1 - 1e-7)^t is lost in float32
        logs = [log + jnp.log1p(-share) for log, share in zip((state.log_m, state.log_v), shares, strict=True)]
        full = [-jnp.expm1(log) if unbiased else 1.0 for log in logs]
        pull = jax.tree.map(lambda m, v: m / full[0] / (jnp.sqrt(v / full[1]) + EPSILON), m, v)
        updates = jax.tree.map(partial(_flip, threshold=threshold(state.count)), params, pull)
        log_m, log_v = (log.astype(state.log_m.dtype) for log in logs)
        return updates, SecondOrderBopState(optax.safe_increment(state.count), log_m, log_v, m, v)

    return optax.GradientTransformation(init, update)


def _zeros(params):
    return jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)), params)


def _like(tree, other):
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, other)


def _average(old, new, share):
    return jax.tree.map(lambda a, b: (a + share * (b - a)).astype(a.dtype), old, _like(new, old))


def _flip(w, pull, threshold):
    """The update that makes w its sign, or the opposite where `pull` exceeds the threshold in the direction of w."""
    b = sign(w)
    return jnp.where(pull * b.astype(pull.dtype) > threshold, -b, b) - w


BOPS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "bop": lambda gamma, threshold, sigma: bop(gamma, threshold),
    "bop2": second_order_bop,
    "bop2_unbiased": partial(second_order_bop, unbiased=True),
}


# ------------------------------------------------------------------------------------------------- values by the step


def _constant(value, total_steps, epoch_steps):
    return lambda step: jnp.asarray(value)


def _linear(start, end, total_steps, epoch_steps):
    def value(step):
        share = jnp.minimum(step / total_steps, 1.0)
        return start * (1 - share) + end * share  # exact at both ends, which may lie five powers of ten apart

    return value


def _tenth(start, epochs, total_steps, epoch_steps):
    return lambda step: start * 0.1 ** jnp.floor(step / (epochs * epoch_steps))


# name -> (function, what it takes)
RATES: dict[str, tuple[Callable[..., Schedule], str]] = {
    "constant": (_constant, "value"), "linear": (_linear, "from, to"), "tenth": (_tenth, "from, epochs"),
}  # fmt: skip


def rate(name: str, spec: Sequence[Any], total_steps: int, epoch_steps: float) -> Schedule:
    """gamma, threshold or sigma by the step.

    Args:
      name: which of them.
      spec: a number or ("constant", a); ("linear", a, b), from a to b over all steps; or ("tenth", a, n), a tenth every
        n epochs.
      total_steps: length of the training.
      epoch_steps: length of an epoch, in steps; need not be whole.

    Raises:
      BadInput: no such schedule, or a value out of its limits: (0, 1], for the threshold 0 or more.
    """
    kind, *values = ("constant", *spec) if len(spec) == 1 and not isinstance(spec[0], str) else spec or ("",)
    if not isinstance(kind, str):
        raise BadInput(f"optim.bop.{name} is {tuple(spec)}; it must be a number or a schedule such as ('linear', a, b)")
    function, takes = lookup(RATES, kind, f"schedule in optim.bop.{name}")
    numbers = len(values) == len(takes.split()) and all(isinstance(v, (int, float)) for v in values)
    own = values[:1] if "epochs" in takes else values
    limits = "0 or more" if name == "threshold" else "in (0, 1]"
    fit = numbers and all(0 <= v < float("inf") if name == "threshold" else 0 < v <= 1 for v in own)
    if not fit or ("epochs" in takes and not 0 < values[1] < float("inf")):
        raise BadInput(f"optim.bop.{name} is {tuple(spec)}; it must be ({kind!r}, {takes}), numbers {limits}")
    return function(*values, total_steps, epoch_steps)


def make(
    name: str, gamma: Sequence[Any], threshold: Sequence[Any], sigma: Sequence[Any], total_steps: int,
    epoch_steps: float,
) -> optax.GradientTransformation:  # fmt: skip
    """The transformation of that name, for binary weights alone.

    Args:
      name: a key of BOPS.
      gamma, threshold, sigma: as `rate` wants them; sigma is of the second order only.
      total_steps, epoch_steps: of the training.

    Raises:
      BadInput: an unknown name, or a schedule that cannot be.
    """
    specs = {"gamma": gamma, "threshold": threshold, "sigma": sigma}
    rates = {key: rate(key, spec, total_steps, epoch_steps) for key, spec in specs.items()}
    return lookup(BOPS, name, "optimizer of binary weights")(**rates)

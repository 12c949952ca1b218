"""What a derivative or a weight rule of one's own must be: looked at before a network is built with it."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bireal_jax.errors import BadInput, first_line


def with_progress(rule: Callable) -> Callable:
    """The rule as a function of (x, progress), whether or not it has a parameter of that name."""
    if "progress" not in inspect.signature(rule).parameters:
        return lambda x, progress: rule(x)
    return lambda x, progress: rule(x, progress=progress)


def tried(rule: Callable, what: str, shape: tuple[int, ...]) -> Any:
    """What a rule gives for an array of this shape, as `jax.eval_shape` tells.

    Raises:
      BadInput: it is no function of (x) or (x, progress), or fails.
    """
    name = getattr(rule, "__name__", repr(rule))
    if not callable(rule):
        raise BadInput(f"{what} is {rule!r}, no function")
    parameters = inspect.signature(rule).parameters
    needed = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not parameters or len([n for n in needed if n != "progress"]) > 1:
        raise BadInput(
            f"{what} {name} takes ({', '.join(parameters)}); it must take (x), or (x, progress) where it changes with "
            "the training, from 0 to 1"
        )
    try:
        return jax.eval_shape(with_progress(rule), *(jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, ())))
    except Exception as error:  # it is the user's code, traced: it can raise anything
        raise BadInput(f"{what} {name} fails on an array of {shape}: {first_line(error)}") from error


def check_shape(found: Any, wanted: tuple[int, ...], what: str, rule: Callable) -> None:
    """Raises BadInput unless `found`, what a rule gives of the name `what`, is a real array of the shape wanted."""
    if tuple(getattr(found, "shape", ())) != wanted or jnp.issubdtype(found.dtype, jnp.complexfloating):
        shown = f"{found.dtype} {found.shape}" if hasattr(found, "shape") else type(found).__name__
        raise BadInput(
            f"{what} of {getattr(rule, '__name__', rule)} is {shown}; it must be real and of the shape {wanted}\n"
            "a constant is jnp.ones_like(x); sums over an axis are not meant"
        )

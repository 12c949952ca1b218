"""What a derivative or a weight rule of one's own must be: looked at before a network is built with it."""

import inspect
import itertools
import re
import traceback
from collections.abc import Callable
from pathlib import Path
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
      BadInput: it is no function of (x) or (x, progress), fails, or returns nothing.
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
        found = jax.eval_shape(with_progress(rule), *(jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, ())))
    except Exception as error:  # it is the user's code, traced: it can raise anything
        hint = "\nJAX traces it: jnp.where(x > 0, a, b) chooses, not if; jnp computes, not numpy or math"
        if not isinstance(error, jax.errors.JAXTypeError) and not re.search("truth value|scalar arrays", str(error)):
            hint = ""
        raise BadInput(
            f"{_place(error)}{what} {name} fails on an array of {shape}: {first_line(error)}{hint}"
        ) from error
    if found is None:
        raise BadInput(f"{what} {name} returns nothing; did you forget `return`?")
    return found


def _place(error):
    """Where the code of a rule has failed, "FILE, line N: ", or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    last = max(i for i, frame in enumerate(frames) if frame.filename == __file__)  # what calls the rule
    own = list(itertools.takewhile(lambda frame: frame.filename == frames[last + 1].filename, frames[last + 1 :]))
    theirs = own and own[-1].filename.startswith(str(Path(jax.__file__).parent))  # np.tanh itself is the rule
    return f"{own[-1].filename}, line {own[-1].lineno}: " if own and not theirs else ""


def shown(found: Any) -> str:
    """What a rule has returned, in words."""
    if hasattr(found, "shape"):
        return f"an array, {found.dtype} {found.shape}"
    return f"{len(found)} values" if isinstance(found, tuple) else f"a {type(found).__name__}"


def check_shape(found: Any, wanted: tuple[int, ...], what: str, rule: Callable) -> None:
    """Raises BadInput unless `found`, what a rule gives of the name `what`, is a real array of the shape wanted."""
    if tuple(getattr(found, "shape", ())) != wanted or jnp.issubdtype(found.dtype, jnp.complexfloating):
        raise BadInput(
            f"{what} of {getattr(rule, '__name__', rule)} is {shown(found)}; it must be real and of the shape {wanted}"
            "\na constant is jnp.ones_like(x); sums over an axis are not meant"
        )

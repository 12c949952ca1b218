"""What the values of a recipe's fields may be."""

import math
from collections.abc import Callable
from typing import Any

from bireal_jax.errors import BadInput


def _at_least(low):
    return (lambda v: low <= v < math.inf), f"at least {low} and finite"


def _between(low, high):
    return (lambda v: low <= v < high), f"in [{low}, {high})"


NUMBERS = ((lambda v: all(isinstance(x, (int, float)) for x in v)), "numbers, one for each channel")
COUNTS = ((lambda v: all(isinstance(x, int) and 0 < x < 2**16 for x in v)), "whole numbers above 0, one for each stage")
POSITIVE = ((lambda v: 0 < v < math.inf), "above 0 and finite")

# field -> (test, what it must be)
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": ((lambda v: 0 <= v < 2**31), "in [0, 2147483648)"),
    "model.dtype": ((lambda v: v in ("float32", "bfloat16", "float64")), "float32, bfloat16 or float64"),
    "teacher.dtype": (
        (lambda v: v in ("auto", "float32", "bfloat16", "float64")),
        "auto, float32, bfloat16 or float64",
    ),
    "teacher.temperature": POSITIVE,
    "teacher.share": ((lambda v: 0 <= v <= 1), "in [0, 1]"),
    "data.image_size": _between(1, 2**14),  # XLA ends the process where a shape overflows, and asks nobody
    "data.resize": _between(0, 2**14),
    "data.mean": NUMBERS,
    "data.std": ((lambda v: NUMBERS[0](v) and all(s > 0 for s in v)), "numbers above 0, one for each channel"),
    "data.threads": _between(1, 2**10),
    "data.workers": _between(0, 2**10),
    "data.depth.unit": POSITIVE,
    "data.depth.low": POSITIVE,
    "data.depth.high": POSITIVE,
    "data.depth.zoom": _at_least(1),
    "data.depth.crop": (
        (lambda v: v == () or (len(v) == 4 and 0 <= v[0] < v[1] and 0 <= v[2] < v[3])),
        "() or (top, bottom, left, right), in pixels",
    ),
    "data.cutout": _at_least(0),
    "data.held_out": _at_least(0),
    "data.val_share": ((lambda v: 0 < v <= 1), "above 0 and at most 1"),
    "data.val_seed": ((lambda v: 0 <= v < 2**31), "in [0, 2147483648)"),
    "search.max_cost": _at_least(0),
    "search.min_cost": _at_least(0),
    "search.population": _at_least(1),
    "search.generations": _at_least(1),
    "search.parents": _at_least(1),
    "search.mutations": _at_least(0),
    "search.crossovers": _at_least(0),
    "search.mutate_prob": ((lambda v: 0 <= v <= 1), "in [0, 1]"),
    "search.bn_batches": _at_least(1),
    "search.together": _at_least(0),
    "model.bn_group": _at_least(0),
    "model.blocks": COUNTS,
    "model.widths": COUNTS,
    "batch_size": _at_least(1),
    "accumulate": _at_least(1),
    "call_steps": (
        (lambda v: v == "auto" or (v.isdecimal() and 1 <= int(v) <= 10_000)),
        "'auto' or '1' to '10000'; calls end at logs, evaluations and checkpoints too, so that all their intervals fit",
    ),
    "total_epochs": _at_least(0),
    "total_steps": _at_least(0),
    "label_smoothing": _between(0, 1),
    "optim.lr": POSITIVE,
    "optim.lr_end": _at_least(0),
    "optim.milestones": (
        (lambda v: all(isinstance(m, (int, float)) and 0 < m < math.inf for m in v)),
        "epochs, numbers above 0",
    ),
    "optim.warmup_epochs": _at_least(0),
    "optim.warmup_steps": _at_least(0),
    "optim.weight_decay": _at_least(0),
    "optim.binary_lr": POSITIVE,
    "optim.latent_clip": _at_least(0),
    "optim.gradient_floor": _at_least(0),
    "optim.silent_decay": _at_least(0),
    "ema_decay": _between(0, 1),
    "log_epochs": _at_least(0),
    "log_steps": _at_least(0),
    "eval_epochs": _at_least(0),
    "eval_steps": _at_least(0),
    "save_epochs": _at_least(0),
    "save_steps": _at_least(0),
    "skip_nonfinite": _at_least(0),
    "watchdog_seconds": _at_least(0),
    "keep_last": _at_least(1),
    "profile_steps": _at_least(0),
}


def check_kind(field: str, value: Any, like: Any) -> None:
    """Raises BadInput for a value that is of another kind than the default `like`.

    Python takes True for 1, and ConfigDict takes None for anything.
    """
    if value is None or isinstance(value, bool) != isinstance(like, bool):
        raise BadInput(f"config.{field} is {value}; it must be a value like {like!r}")


LARGEST, SMALLEST, MOST = 3.4028234663852886e38, 2.0**-126, 2**31 - 1  # of float32, without subnormal ones; of int32


def check_size(field: str, value: Any) -> None:
    """Raises BadInput for a number that float32 or int32 cannot hold, whatever Python can: these are computed with."""
    for v in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(v, bool) and v is not value:
            raise BadInput(f"config.{field} is {value}; {v} is no number")
        if isinstance(v, float) and v and not SMALLEST <= abs(v) <= LARGEST:
            raise BadInput(f"config.{field} is {value}; float32 holds 0 and sizes from {SMALLEST:.2g} to {LARGEST:.2g}")
        if isinstance(v, int) and abs(v) > MOST:
            raise BadInput(f"config.{field} is {value}; its size must be at most {MOST}")

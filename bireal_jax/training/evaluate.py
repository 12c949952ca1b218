"""Evaluation: every example exactly once, on any number of devices."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bireal_jax.data import Source
from bireal_jax.data.normalize import normalize
from bireal_jax.errors import BadInput
from bireal_jax.running import metrics, parallel


def make_eval_step(model: nn.Module, loss: Callable, source: Source, replica: int = 0) -> parallel.Step:
    """(variables, batch) -> sums over all devices, to be pmapped. Plain loss: no label smoothing.

    `replica` is as of `parallel.Step`.
    """
    task = metrics.task(source.depth_range, source.num_classes)

    @parallel.full_precision
    def part(variables, batch):
        outputs: Any = model.apply(variables, normalize(batch["image"], source, model.dtype))
        return task.sums(outputs, batch["label"], loss(outputs, batch["label"]), batch["mask"])

    return parallel.Step(part, lambda variables, total, count: total, replica=replica)


def score(batches: Iterable[Mapping[str, Any]], variables: Any, source: Source) -> dict[str, float]:
    """The metrics of the data set's task over source.eval: for classes mean loss, top-1 and top-5 in percent.

    Args:
      batches: what the pmapped result of `make_eval_step` gave for each, as numpy arrays.
      variables: {"params", "batch_stats"} that were evaluated, replicated.
      source: the data set.

    Raises:
      BadInput: outputs that are not finite; depth maps without any depth.
      RuntimeError: not every example was seen exactly once, an error in the pipeline.
    """
    totals: dict[str, float] = {}
    for sums in batches:
        totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
    if totals["seen"] != len(source.eval):
        raise RuntimeError(f"evaluation saw {totals['seen']:.0f} of {len(source.eval)} examples")
    if not all(map(math.isfinite, totals.values())):
        raise BadInput(_not_finite(totals, parallel.fetch(variables)))
    return metrics.task(source.depth_range, source.num_classes).means(totals)


def chance(top1: float, source: Source) -> str:
    """A line that says that a top-1 is no better than one answer for all images, or ""; of maps there is none.

    Args:
      top1: in percent.
      source: whose evaluation images these are. Where their labels are not known before they are read, or are of one
        class, which one answer always gets right, it is compared with a guess.
    """
    if source.depth_range:
        return ""
    share, always = 100 / source.num_classes, f"guessing one of {source.num_classes} classes"
    labels = getattr(source.eval, "labels", None)
    counts = np.bincount(labels) if labels is not None and len(labels) else np.zeros(1, int)
    if np.count_nonzero(counts) > 1:
        share = 100 * float(counts.max() / counts.sum())
        always = f"the answer {source.classes([int(counts.argmax())])} for every image"
    if top1 > share + 1e-6:
        return ""
    where = "the docs, page 'Your images', 'No better than chance'"
    return f"note: that is no better than {always}, {share:.2f} %; what to look at: {where}"


def _not_finite(totals, variables):
    """What of an evaluation is no number, and where that may come from, in words."""
    name = next(name for name, value in totals.items() if not math.isfinite(value))
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    bad = [path for path, leaf in leaves if not np.isfinite(leaf).all() or (path[-1].key == "var" and np.any(leaf < 0))]
    where = jax.tree_util.keystr(bad[0], simple=True, separator="/") if bad else ""
    why = (
        f"{len(bad)} arrays are no weights, {where} for one" if bad else "the weights are finite, and a layer overflows"
    )
    return (
        f"the {name} of the evaluation is {totals[name]}: the network's outputs are not finite; {why}\n"
        "take an earlier checkpoint or other weights, or train anew with a lower config.optim.lr"
    )

"""Evaluation: every example exactly once, on any number of devices."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from bireal_jax.data import Source, batching
from bireal_jax.data.normalize import normalize
from bireal_jax.running import metrics, parallel, preempt


def make_eval_step(model: nn.Module, loss: Callable, source: Source, replica: int = 0) -> parallel.Step:
    """(variables, batch) -> sums over all devices, to be pmapped. Plain loss: no label smoothing.

    `replica` is as of `parallel.Step`.
    """
    task = metrics.task(source.depth_range)

    @parallel.full_precision
    def part(variables, batch):
        outputs: Any = model.apply(variables, normalize(batch["image"], source, model.dtype))
        return task.sums(outputs, batch["label"], loss(outputs, batch["label"]), batch["mask"])

    return parallel.Step(part, lambda variables, total, count: total, replica=replica)


def evaluate(
    eval_step: Callable, variables: Mapping[str, Any], source: Source, batch_size: int,
    asked: Callable[[], bool] = lambda: False, **loading,
) -> dict[str, float]:  # fmt: skip
    """The metrics of the data set's task over source.eval: for classes mean loss, top-1 and top-5 in percent.

    Args:
      eval_step: the pmapped result of `make_eval_step`.
      variables: {"params", "batch_stats"}, replicated.
      source: the data set.
      batch_size: images per step over all devices; any size.
      asked: whether the run was asked to stop, which explains the death of a worker process.
      **loading: `threads` and `workers` of `batching.eval_batches`.

    Raises:
      BadInput: depth maps without any depth; a worker process died.
      RuntimeError: not every example was seen exactly once, an error in the pipeline.
    """

    def batches(start, **more):
        return batching.eval_batches(
            source, batch_size, start, devices=jax.local_device_count(), process=jax.process_index(),
            processes=jax.process_count(), **(loading | more),
        )  # fmt: skip

    totals: dict[str, float] = {}
    for batch in parallel.prefetch(preempt.unbroken(batches, 0, asked)):
        sums = parallel.fetch(eval_step(variables, batch))
        totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
    if totals["seen"] != len(source.eval):
        raise RuntimeError(f"evaluation saw {totals['seen']:.0f} of {len(source.eval)} examples")
    return metrics.task(source.depth_range).means(totals)

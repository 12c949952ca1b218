"""Many seeds for the price of few: networks that differ in their seed alone, trained as one vmapped program."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bireal_jax import build
from bireal_jax import config as config_lib
from bireal_jax.data import batching
from bireal_jax.errors import BadInput
from bireal_jax.running import checkpoint, known, parallel
from bireal_jax.training.step import Plan, close_window, teacher_arguments


def train(config: ConfigDict, seeds: Sequence[int], variables: Any = None) -> tuple[Any, list[dict[str, Any]]]:
    """Trains one network per seed through all stages, in memory: no workdir, no checkpoints.

    Each network sees the batches and starts from the weights of a run of its own with config.seed = seed, and gets
    where that run gets, but for the rounding of sums, if it runs on one device or with config.model.sync_bn. All share
    one compiled program, and one teacher if the loss asks one, and divide over the local devices, as many on each:
    where their number does not divide, the last one is trained again to fill up.

    Args:
      config: a recipe. config.seed is not used.
      seeds: of the networks.
      variables: to start from, with a leading axis over seeds; None to start as the config says.

    Returns:
      (variables at the end, with a leading axis over seeds; one record a log line or evaluation). A record has stage,
      step, split ("train" or "eval") and a numpy array over seeds of every metric that metrics.jsonl has.

    Raises:
      BadInput: the config cannot work, or there are no seeds.
    """
    if not len(seeds):
        raise BadInput("no seeds; give one or more")
    records: list[dict[str, Any]] = []
    wanted, (_, count) = len(seeds), parallel.layout(len(seeds))

    def fill(row):
        return [*row, *[row[-1]] * (count - wanted)]

    plans = [Plan(stage) for stage in build.stages(config)]
    for plan in plans:
        plan.check(1)
    for before, after in itertools.pairwise(plans):
        known.check_order(before.source, after.source, "of the stage before")
    teacher = teacher_arguments(plans)
    for index, plan in enumerate(plans):
        if variables is None:
            fresh = lambda plan=plan: plan.initial(seeds[0])  # noqa: E731
            drawn = build.variables(plan.config, plan.shapes, fresh, plan.source) if config.init_from else None
            each = [drawn or parallel.fetch(plan.initial(seed)) for seed in seeds]
            variables = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        else:
            name = f"stage {config_lib.stage_name(config, index)!r}: the networks of the stage before"
            shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct((len(seeds), *s.shape), s.dtype), plan.shapes)
            variables = checkpoint.merge(variables, shapes, name)
            if index == 1 and config.reinit_step2:
                rows = [jax.tree.map(lambda leaf, i=i: leaf[i], variables) for i in range(wanted)]
                each = [plan.redrawn(row, seed) for row, seed in zip(rows, seeds, strict=True)]
                variables = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        variables = jax.tree.map(lambda leaf: np.stack(fill(leaf)), variables)
        frozen = teacher if plan.teacher is not None else ()
        variables = _train_stage(plan, index, fill(seeds), variables, frozen, records)
        variables = jax.tree.map(lambda leaf: leaf[:wanted], variables)
    for record in records:
        record |= {name: v[:wanted] for name, v in record.items() if isinstance(v, np.ndarray)}
    return variables, records


def _train_stage(plan, index, seeds, variables, frozen, records):
    count = len(seeds)
    step = parallel.networks(plan.train_step, count, (False, False, *(True for _ in frozen)), donate=True)
    closing = parallel.networks(close_window, count, (False,), donate=True)
    eval_step = parallel.networks(plan.eval_step, count, (False, True))
    state = parallel.networks(plan.fresh, count)(variables, jnp.asarray(seeds))
    batches = _batches(plan, [batching.stage_seed(seed, index) for seed in seeds])
    for number in range(1, plan.total + 1):
        state, loss = step(state, next(batches), *frozen)
        if number % 2 == 0:
            jax.block_until_ready(loss)  # no further ahead of the device
        head = {"stage": index, "step": number}
        last = number == plan.total
        if last or (plan.log_every and number % plan.log_every == 0):
            state, totals, flips = closing(state)
            values = _means(plan, totals) | plan.flip_rates(totals, flips)
            records.append(head | {"split": "train", "learning_rate": float(plan.rate(number - 1))} | values)
        if last or (plan.eval_every and number % plan.eval_every == 0):
            totals = _evaluate(plan, eval_step, state.variables)
            records.append(head | {"split": "eval"} | _means(plan, totals))
    return jax.tree.map(np.asarray, state.variables)


def _evaluate(plan, eval_step, variables):
    """The sums over source.eval, of every network."""
    totals: dict[str, Any] = {}
    for batch in batching.eval_batches(plan.source, plan.config.batch_size, devices=1, **plan.loading):
        sums = eval_step(variables, {name: array[0] for name, array in batch.items()})
        totals = {name: totals.get(name, 0.0) + np.asarray(value, np.float64) for name, value in sums.items()}
    if (totals["seen"] != len(plan.source.eval)).any():
        raise RuntimeError(f"evaluation saw {totals['seen']} of {len(plan.source.eval)} examples")
    return totals


def _batches(plan, seeds):
    """One batch for each seed, stacked: image [seeds, n, h, w, c], label and mask [seeds, n]."""
    size = plan.config.batch_size
    streams = [batching.train_batches(plan.source, size, seed, 0, devices=1, **plan.loading) for seed in seeds]
    for batches in zip(*streams, strict=True):
        yield jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def _means(plan, totals):
    """The metrics of every network."""
    each = [plan.task.means(dict(zip(totals, row, strict=True))) for row in zip(*totals.values(), strict=True)]
    return {name: np.asarray([row[name] for row in each]) for name in each[0]}

"""Many seeds for the price of few: networks that differ in their seed alone, trained as one vmapped program."""

import contextlib
import itertools
import json
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from bireal_jax import build, places
from bireal_jax import config as config_lib
from bireal_jax.data import batching
from bireal_jax.errors import BadInput
from bireal_jax.running import checkpoint, known, parallel, workdir
from bireal_jax.training import calls
from bireal_jax.training.step import Plan, State, close_window, teacher_arguments


def train(
    config: ConfigDict, seeds: Sequence[int], variables: Any = None, directory: Path | None = None
) -> tuple[Any, list[dict[str, Any]]]:
    """Trains one network per seed through all stages.

    Each network sees the batches and starts from the weights of a run of its own with config.seed = seed, and gets
    where that run gets, but for the rounding of sums, if it runs on one device or with config.model.sync_bn. All share
    one compiled program, and one teacher if the loss asks one, and divide over the local devices, as many on each:
    where their number does not divide, the last one is trained again to fill up. A network that diverges goes on, with
    numbers that are none; the others do not feel it. Images in memory lie on the devices, and config.call_steps says
    how many steps are one call, as in a run of its own.

    Args:
      config: a recipe. config.seed is not used.
      seeds: of the networks.
      variables: to start from, with a leading axis over seeds; None to start as the config says.
      directory: where checkpoints of all networks are kept, as often as the config says and at the end of every stage;
        the same call goes on from there, to the same bits. None: in memory alone.

    Returns:
      (variables at the end, with a leading axis over seeds; one record a log line or evaluation). A record has stage,
      step, split ("train" or "eval") and a float64 array over seeds of every metric that metrics.jsonl has.

    Raises:
      BadInput: the config cannot work, there are no seeds, or other networks live in the directory.
    """
    if not len(seeds):
        raise BadInput("no seeds; give one or more")
    plans = [Plan(stage) for stage in build.stages(config)]
    for plan in plans:
        plan.check(1)
    for before, after in itertools.pairwise(plans):
        known.check_order(before.source, after.source, "of the stage before")
    teacher = teacher_arguments(plans)
    with _claim(directory, config, plans, seeds, variables):
        records = _Records(directory)
        for index, plan in enumerate(plans):
            with contextlib.ExitStack() as stack:
                frozen = teacher if plan.teacher is not None else ()
                stage = _Stage(plan, index, seeds, frozen, records)
                found = None
                if directory:
                    place = directory / f"stage_{index}" / "checkpoints"
                    stage.checkpoints = stack.enter_context(checkpoint.Checkpoints(place, config.keep_last))
                    found = stage.checkpoints.restore_latest(stage.template())
                if found:
                    records.back_to(index, found[0])
                    state = stage.placed(State.from_trees(found[1]))
                else:
                    state = stage.fresh(_start(config, plan, index, seeds, variables))
                variables = stage.run(state, found[0] if found else 0)
    return variables, records.rows


def _start(config, plan, index, seeds, variables):
    """What the networks of a stage start from, stacked."""
    if variables is None:
        fresh = lambda: plan.initial(seeds[0])  # noqa: E731
        drawn = build.variables(plan.config, plan.shapes, fresh, plan.source) if config.init_from else None
        return _stacked([drawn or parallel.fetch(plan.initial(seed)) for seed in seeds])
    name = f"stage {config_lib.stage_name(config, index)!r}: the networks of the stage before"
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct((len(seeds), *s.shape), s.dtype), plan.shapes)
    variables = checkpoint.merge(variables, shapes, name)
    if index == 1 and config.reinit_step2:
        rows = [jax.tree.map(lambda leaf, i=i: leaf[i], variables) for i in range(len(seeds))]
        variables = _stacked([plan.redrawn(row, seed) for row, seed in zip(rows, seeds, strict=True)])
    return variables


def _stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


@contextlib.contextmanager
def _claim(directory, config, plans, seeds, variables):
    """Holds the directory, after a check that it is of these networks; does nothing for None."""
    if directory is None:
        yield
        return
    config = config.copy_and_resolve_references()
    config.seed = 0
    start = variables if variables is None else checkpoint.digest(variables)
    path, wanted = directory / "networks.json", {"seeds": [int(seed) for seed in seeds], "start": start}
    with workdir.claim(directory, config, [plan.source for plan in plans]):
        if not path.exists():
            workdir.write(path, json.dumps(wanted) + "\n")
        found = places.read_json(path)
        if found != wanted:
            what = f"seeds {found['seeds']}, not {wanted['seeds']}"
            what = what if found["seeds"] != wanted["seeds"] else "networks that started from other weights"
            raise BadInput(f"{directory} holds {what}\nuse another directory")
        yield


class _Records:
    """The records so far, and the file they are kept in, written before every checkpoint."""

    def __init__(self, directory):
        self.path, self.rows = directory and directory / "records.json", []

    def write(self):
        rows = [{name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in row.items()} for row in self.rows]
        workdir.write(self.path, json.dumps(rows) + "\n")

    def back_to(self, stage, step):
        """Drops what was written after this checkpoint."""
        rows = [row for row in places.read_json(self.path) if (row["stage"], row["step"]) <= (stage, step)]
        self.rows = [
            {name: np.asarray(v, np.float64) if isinstance(v, list) else v for name, v in row.items()} for row in rows
        ]


class _Stage:
    """One stage of all networks. What is kept is of the `wanted` ones; the program's last ones may be there to fill."""

    checkpoints: checkpoint.Checkpoints | None = None

    def __init__(self, plan, index, seeds, frozen, records):
        self.plan, self.index, self.frozen, self.records, self.wanted = plan, index, frozen, records, len(seeds)
        _, self.count = parallel.layout(self.wanted)
        self.seeds = np.asarray(self._filled(np.asarray(seeds)))

    def _filled(self, row):
        return np.stack([*row, *[row[-1]] * (self.count - self.wanted)])

    def template(self):
        """Shapes of the trees of a checkpoint."""
        stacked = jax.tree.map(lambda s: jax.ShapeDtypeStruct((self.wanted, *s.shape), s.dtype), self.plan.shapes)
        return jax.eval_shape(jax.vmap(self.plan.fresh), stacked, self.seeds[: self.wanted]).trees()

    def fresh(self, variables):
        """The state of all networks before the first step."""
        return parallel.networks(self.plan.fresh, self.count)(jax.tree.map(self._filled, variables), self.seeds)

    def placed(self, state):
        """A state from a checkpoint, where the step's results lie."""
        return parallel.networks(lambda state: state, self.count, (False,))(jax.tree.map(self._filled, state))

    def run(self, state, start):
        """The variables at the end."""
        plan = self.plan
        programs = Programs(plan, self.count, self.frozen)
        closing = parallel.networks(close_window, self.count, (False,), donate=True)
        every = (programs.most, plan.log_every, plan.eval_every, plan.save_every)
        stops = partial(calls.ends, start, plan.total, *every)
        seeds = [batching.stage_seed(seed, self.index) for seed in self.seeds.tolist()]
        with contextlib.closing(programs.inputs(seeds, start, stops())) as inputs:
            before = None
            for number, given in zip(stops(), inputs, strict=False):
                state, report = programs.call(state, given)
                jax.block_until_ready(before)  # no further ahead of the device than a call
                before, last = report, number == plan.total
                if last or (plan.log_every and number % plan.log_every == 0):
                    state, totals, flips = closing(state)
                    values = _means(plan, totals) | plan.flip_rates(totals, flips)
                    self._note(number, "train", {"learning_rate": float(plan.rate(number - 1))} | values)
                if last or (plan.eval_every and number % plan.eval_every == 0):
                    self._note(number, "eval", _means(plan, programs.evaluate(state.variables)))
                if last or (plan.save_every and number % plan.save_every == 0):
                    self._save(number, state)
        return self._kept(state.variables)

    def _kept(self, tree):
        return jax.tree.map(lambda leaf: np.array(leaf)[: self.wanted], tree)  # a copy: donation overwrites a view

    def _note(self, step, split, values):
        rows = {
            n: np.asarray(v, np.float64)[: self.wanted] if isinstance(v, np.ndarray) else v for n, v in values.items()
        }
        self.records.rows.append({"stage": self.index, "step": step, "split": split, **rows})

    def _save(self, step, state):
        if self.checkpoints:
            self.records.write()
            self.checkpoints.save(step, self._kept(state).trees(), None)


class Programs:
    """The calls of a stage, of several networks at once: what `calls.Training` and `calls.Evaluation` are to one.

    Args:
      plan: of the stage.
      count: how many networks; one that `parallel.layout` gave.
      frozen: what a step takes behind the batch.

    Attributes:
      most: steps of a call at most.
    """

    def __init__(self, plan: Plan, count: int, frozen: tuple[Any, ...] = ()):
        put = partial(parallel.share, count=count)
        held, longest = calls.hold(plan.source, put), calls.longest(plan.config)
        self.plan, self.train, self.eval, self.frozen = plan, held.get("train"), held.get("eval"), put(frozen)
        self.most, self.whole = longest if self.train else 1, longest > 1
        more = tuple(True for _ in frozen)
        self._one = parallel.networks(plan.train_step, count, (False, False, *more), donate=True)
        self._evaluate = parallel.networks(plan.eval_step, count, (False, True))
        if self.train:
            self._gather = parallel.networks(self.train.batch, count, (True, False))
            shared = (False, {"rows": False, "count": True}, True, *more)
            some = calls.loop(self._step, self.train, self.most, plan.form)
            self._some = parallel.networks(some, count, shared, donate=True)
        if held := self.eval:
            self._pick = jax.jit(held.batch)
            sums = lambda variables, rows, data: lax.map(lambda r: plan.eval_step(variables, held.batch(data, r)), rows)  # noqa: E731
            self._evaluate_all = parallel.networks(sums, count, (False, True, True))

    def _step(self, state, batch, *frozen):
        """For `calls.loop`: nothing is withheld."""
        return self.plan.loop_step(state, batch, *frozen)[0], (jnp.asarray(True), jnp.zeros((), jnp.int32))

    def inputs(self, seeds: Sequence[int], start: int, stops: Iterator[int]) -> Generator[Any]:
        """What `call` takes, call by call: batches, or the rows of some; fetched in a thread.

        Args:
          seeds: of the batches of each network.
          start: the step before the first one.
          stops: of `calls.ends`.
        """
        if not self.train:
            return parallel.prefetch(_batches(self.plan, seeds, start), then=lambda batch: batch)
        size = self.plan.config.batch_size
        streams = (batching.train_rows(self.train.examples, size, seed, start, devices=1) for seed in seeds)
        rows = (np.concatenate(each) for each in zip(*streams, strict=True))  # [networks, n, ...]
        if self.most == 1:
            return parallel.prefetch(rows, then=partial(self._gather, self.train.data))
        some = calls.some(rows, start, stops, self.most)
        return parallel.prefetch(some, then=lambda given: given | {"count": given["count"][0]})

    def call(self, state: Any, given: Any) -> tuple[Any, Any]:
        """Begins a call: (state, what is there when it is done)."""
        if self.most == 1:
            return self._one(state, given, *self.frozen)
        assert self.train
        return self._some(state, given, self.train.data, *self.frozen)

    def evaluate(self, variables: Any) -> dict[str, Any]:
        """The sums over source.eval, of every network."""
        totals: dict[str, Any] = {}
        for sums in self._sums(variables):
            totals = {name: totals.get(name, 0.0) + np.asarray(value, np.float64) for name, value in sums.items()}
        if (totals["seen"] != len(self.plan.source.eval)).any():
            raise RuntimeError(f"evaluation saw {totals['seen']} of {len(self.plan.source.eval)} examples")
        return totals

    def _sums(self, variables):
        size = self.plan.config.batch_size
        if not self.eval:
            for batch in batching.eval_batches(self.plan.source, size, devices=1, **self.plan.loading):
                yield self._evaluate(variables, {name: array[0] for name, array in batch.items()})
            return
        rounds = batching.eval_rows(self.eval.examples, size, devices=1)[:, 0]
        if self.whole:
            sums = self._evaluate_all(variables, rounds, self.eval.data)
            yield from ({name: value[:, i] for name, value in sums.items()} for i in range(len(rounds)))
            return
        for rows in rounds:
            yield self._evaluate(variables, self._pick(self.eval.data, rows))


def _batches(plan, seeds, start):
    """One batch for each seed, stacked, from step `start` on: image [seeds, n, h, w, c], label and mask [seeds, n]."""
    size = plan.config.batch_size
    streams = [batching.train_batches(plan.source, size, seed, start, devices=1, **plan.loading) for seed in seeds]
    for batches in zip(*streams, strict=True):
        yield jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def _means(plan, totals):
    """The metrics of every network."""
    each = [plan.task.means(dict(zip(totals, row, strict=True))) for row in zip(*totals.values(), strict=True)]
    return {name: np.asarray([row[name] for row in each]) for name in each[0]}

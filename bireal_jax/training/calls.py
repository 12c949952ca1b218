"""How training and evaluation are cut into calls of the devices: some steps in one where the examples lie there.

A call ends where the config says, wherever a run was cut off: at every multiple of its length and of the intervals of
logs, evaluations and checkpoints, and at the last step. So all of these find the state of the step that they are of.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from bireal_jax.data import Source, batching
from bireal_jax.data.augment import gather
from bireal_jax.data.source import Arrays, check_labels
from bireal_jax.errors import BadInput
from bireal_jax.running import health, parallel, preempt, progress
from bireal_jax.training.evaluate import score
from bireal_jax.training.flat import APART, Form

AUTO = 100  # steps of a call on an accelerator: a fifth of a second of a small network, against 1 ms to begin a call
SHARE = 4  # examples may take so much of the memory of an accelerator, a quarter


def longest(config: ConfigDict) -> int:
    """How many steps a call has at most. A CPU gains nothing by more than one, and would answer signals late.

    Raises:
      BadInput: more than one, in the mode that computes one logical replica after the other.
    """
    if config.deterministic and config.call_steps not in ("auto", "1"):
        raise BadInput(
            f"config.call_steps is {config.call_steps!r}, and config.deterministic computes one logical replica after "
            "the other, in calls of their own\nleave call_steps at 'auto'"
        )
    if config.deterministic:
        return 1
    if config.call_steps == "auto":
        return 1 if jax.default_backend() == "cpu" else AUTO
    return int(config.call_steps)


def ends(start: int, total: int, *every: int) -> Iterator[int]:
    """The last step of every call behind step `start`: each multiple of any of `every` that is above 0, and `total`."""
    step = start
    while step < total:
        step = min(total, *(step - step % n + n for n in every if n))
        yield step


class Held:
    """Examples that lie whole on every device, uint8, and are gathered and augmented there.

    Args:
      examples: in memory.
      num_classes: what their labels are counted to.
      put: places them on the devices.

    Attributes:
      examples: on the host.
      data: {"image", "label"} of all of them, placed.
      batch: (data, rows [n, len(augment.ROW)]) -> a batch, to be part of a program.

    Raises:
      BadInput: a label is out of range.
    """

    def __init__(self, examples: Arrays, num_classes: int, put: Callable = parallel.replicate):
        self.examples = examples
        check_labels(examples.labels, num_classes, "the data set")
        data = {"image": examples.images, "label": examples.labels.astype(np.int32)}
        self.data: Any = put(data)
        self.batch = partial(gather, augment=examples.augment)
        self._apart = parallel.apart(self.batch)

    def gather(self, rows: Any) -> dict[str, jax.Array]:
        """The batch of rows [devices, n, ...], each part of it on its own device."""
        return self._apart(self.data, parallel.place(rows))

    def rounds(self, batch_size: int) -> np.ndarray:
        """The rows of an evaluation, as `batching.eval_rows`."""
        return batching.eval_rows(self.examples, batch_size, **local())


def hold(source: Source, put: Callable = parallel.replicate) -> dict[str, Held]:
    """A data set in memory, placed on the devices by `put`: its parts "train" and "eval"; {} for one that streams.

    One that does not fit is among these, which a line says.

    Raises:
      BadInput: a label is out of range.
    """
    parts = {"train": source.train, "eval": source.eval}
    arrays = {name: part for name, part in parts.items() if isinstance(part, Arrays)}
    size = sum(part.images.nbytes for part in arrays.values())
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)  # none on a CPU
    if memory and size * SHARE > memory:
        progress.say(
            f"note: the images take {size / 1e9:,.1f} GB, more than a quarter of the {memory / 1e9:,.1f} GB of a "
            "device: they come from the host, a step a call"
        )
        return {}
    return {name: Held(part, source.num_classes, put) for name, part in arrays.items()}


def local() -> dict[str, int]:
    """Which part of a batch is computed here, as `batching` takes it."""
    return {
        "devices": jax.local_device_count(), "process": jax.process_index(), "processes": jax.process_count(),
    }  # fmt: skip


class Training:
    """The calls of a stage.

    Args:
      plan: the `step.Plan` of the stage.
      skip: as of `health.guard`.
      most: steps of a call at most; examples that stream have one.
      held: the training examples, None if they stream.
      frozen: what a step takes behind the batch.
    """

    def __init__(self, plan: Any, skip: int, most: int, held: Held | None, frozen: tuple[Any, ...] = ()):
        self.held, self.frozen, self.most = held, frozen, most if held else 1
        self._one = parallel.pmap(health.guard(plan.train_step, skip), donate=True, more=len(frozen))
        if held:
            some = loop(health.guard(plan.loop_step, skip), held, self.most, plan.form)
            self._some = parallel.pmap(some, donate=True, more=1 + len(frozen))

    def inputs(self, source: Source, batch_size: int, seed: int, start: int, stops: Iterator[int],
               asked: Callable[[], bool], **loading) -> Generator[Any]:  # fmt: skip
        """What `__call__` takes, call by call, fetched in a thread: batches, or the rows of some.

        Args:
          source, batch_size, seed, start: as of `batching.train_batches`.
          stops: of `ends`.
          asked: whether the run was asked to stop, which explains the death of a worker process.
          **loading: `threads` and `workers` of `batching.train_batches`.

        Raises:
          BadInput: an example that cannot be used; a worker process died.
        """
        if not self.held:
            make = partial(batching.train_batches, source, batch_size, seed, **local(), **loading)
            return parallel.prefetch(preempt.unbroken(make, start, asked))
        rows = batching.train_rows(self.held.examples, batch_size, seed, start, **local())
        if self.most == 1:
            return parallel.prefetch(rows, then=self.held.gather)
        return parallel.prefetch(some(rows, start, stops, self.most))

    def __call__(self, state: Any, given: Mapping[str, Any]) -> tuple[Any, Any]:
        """Does the steps of a call: (state, (whether each was finite, whether a host is asked to stop))."""
        if self.most == 1:
            return self._one(state, given, *self.frozen)
        assert self.held
        return self._some(state, given, self.held.data, *self.frozen)

    def again(self, given: Mapping[str, Any], index: int) -> tuple[Any, ...]:
        """What a single step takes behind the state, for number `index` of a call."""
        if self.most > 1:
            assert self.held
            given = self.held.gather(given["rows"][:, index])
        return given, *self.frozen


def some(rows: Iterator[np.ndarray], start: int, stops: Iterator[int], most: int) -> Generator[dict[str, np.ndarray]]:
    """The rows [devices, n, ...] of steps behind `start`, stacked for the calls of `loop` that end at `stops`."""
    for stop in stops:
        found = np.stack([next(rows) for _ in range(stop - start)], 1)  # [devices, steps, n, ...]
        missing = np.zeros((len(found), most - (stop - start), *found.shape[2:]), found.dtype)
        count = np.full(len(found), stop - start, np.int32)
        yield {"rows": np.concatenate([found, missing], 1), "count": count}
        start = stop


def loop(step: Callable, held: Held, most: int, form: Form = APART) -> Callable:
    """Some steps as one program, whose number is an argument: so it is compiled once, and the same for every call.

    Args:
      step: (state, batch, ...) -> (state, (whether it was finite, whether a host is asked to stop)).
      held: the examples.
      most: steps at most.
      form: in which `step` takes the state and gives it.

    Returns:
      (state, given, held.data, ...) -> (state, report); given holds "rows" [most, n, ...], of which as many are used
      as "count" [] says, and perhaps "asked" [], which goes to every step. The report: what the steps said of finite
      ones [most], and what the last one said of hosts.
    """

    def call(state, given, data, *frozen):
        asked = {"asked": given["asked"]} if "asked" in given else {}

        def one(carry):
            index, state, fine, (ok, _) = carry
            batch = held.batch(data, given["rows"][index]) | asked
            state, report = step(state, batch, *frozen)
            # A step writes down what the one before said, and hands on its own word. Were that used within the step
            # alone, XLA on CPUs would compute it anew for each leaf that it guards, and compile six times as long.
            return index + 1, state, fine.at[index - 1].set(ok), report

        zero = jnp.zeros((), jnp.int32)
        carry = (zero, form.flat(state), jnp.ones(most, bool), (jnp.asarray(True), zero))
        index, state, fine, (ok, said) = lax.while_loop(lambda carry: carry[0] < given["count"], one, carry)
        return form.apart(state), (fine.at[index - 1].set(ok), said)

    return call


class Evaluation:
    """The calls of an evaluation: one where the examples lie on devices that gain by it, or else one for each batch.

    Args:
      step: of `evaluate.make_eval_step`.
      source: the data set.
      batch_size: images per step over all devices; any size.
      most: as of `longest`; above 1, it is one call.
      held: the evaluation examples, None if they stream.
      **loading: `threads` and `workers` of `batching.eval_batches`.
    """

    def __init__(
        self, step: parallel.Step, source: Source, batch_size: int, most: int = 1, held: Held | None = None, **loading
    ):
        self.source, self.batch_size, self.held, self.loading = source, batch_size, held, loading
        self._one, self._all = parallel.pmap(step), None
        if held and most > 1 and not step.replica:
            sums = lambda variables, rows, data: lax.map(lambda r: step(variables, held.batch(data, r)), rows)  # noqa: E731
            self._all = parallel.pmap(sums, more=1)

    def __call__(
        self, variables: Any, before: Callable[[], None] = lambda: None, asked: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """The metrics of the data set's task: as `evaluate.score`.

        Args:
          variables: {"params", "batch_stats"}, replicated.
          before: is called before every call.
          asked: whether the run was asked to stop, which explains the death of a worker process.
        """
        return score(self._sums(variables, before, asked), variables, self.source)

    def _sums(self, variables, before, asked):
        if self._all:
            before()
            assert self.held
            rows = parallel.place(np.swapaxes(self.held.rounds(self.batch_size), 0, 1))
            yield from _each(parallel.fetch(self._all(variables, rows, self.held.data)))
            return
        for batch in self._batches(asked):
            before()
            yield parallel.fetch(self._one(variables, batch))

    def _batches(self, asked):
        if self.held:
            return parallel.prefetch(self.held.rounds(self.batch_size), then=self.held.gather)
        make = lambda start, **more: batching.eval_batches(  # noqa: E731
            self.source, self.batch_size, start, **local(), **(self.loading | more)
        )
        return parallel.prefetch(preempt.unbroken(make, 0, asked))


def _each(stacked):
    """{name: [rounds]} one by one."""
    return ({name: a[i] for name, a in stacked.items()} for i in range(len(next(iter(stacked.values())))))

"""Numbers that are not finite: noticed in the step, before they reach the state, and traced to where they began."""

import collections
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bireal_jax.errors import BadInput
from bireal_jax.running import parallel

log = logging.getLogger("bireal_jax")


def sound(tree: Any) -> jax.Array:
    """bool []: whether every number of every real-valued leaf is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.asarray(True)


def guard(step: parallel.Step, skip: int) -> parallel.Step:
    """(state, batch, ...) -> (state, (sound, asked)): the step, but no update where that or the loss is not finite.

    Then only state.step moves on. With `skip` 0 the window of metrics turns to NaN, by which all later steps are
    withheld too: those that are under way before the host hears of it. `asked` is above 0 if a device had a 1 in
    batch["asked"], where there is such an entry: so all hosts learn at the same step that one was asked to stop.

    Args:
      step: (state, batch, ...) -> (state, loss), as `step.make_train_step` makes it.
      skip: how many such steps in a row the run goes on after.
    """

    def part(state, batch, *more):
        return step.part(state, batch, *more), batch.get("asked", jnp.zeros((), jnp.int32))

    def finish(state, total, count):
        (after, loss), asked = step.finish(state, total[0], count), total[1]
        ok = sound((after, loss))
        window = state.window if skip else jax.tree.map(lambda v: jnp.full_like(v, jnp.nan), state.window)
        withheld = dataclasses.replace(state, step=after.step, window=window)
        return jax.tree.map(lambda a, b: jnp.where(ok, a, b), after, withheld), (ok, asked)

    return dataclasses.replace(step, part=part, finish=finish)


def first_bad(step: Callable, state: Any, batch: Any, *more: Any) -> str:
    """What of a step is the first that is not finite, in words: the output of a layer, or else an update.

    The step is done once more, with an eye on every module; it must be one on all hosts, and each sees its own images.
    """
    names: list[str] = []
    bad: set[int] = set()

    def note(ok, index):
        if not ok:
            bad.add(int(index))

    def watch(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            jax.debug.callback(note, sound(result), len(names))
            names.append(_name(context.module))
        return result

    with nn.intercept_methods(watch):
        after, _ = parallel.pmap(lambda *inputs: step(*inputs), more=len(more))(state, batch, *more)
        jax.block_until_ready(after)
        jax.effects_barrier()
    if bad:
        return f"first in the output of {names[min(bad)]}"
    leaves = jax.tree_util.tree_flatten_with_path(parallel.fetch(after.params))[0]
    updates = [jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if not sound(leaf)]
    return f"in the updates of {len(updates)} parameters, such as {updates[0]}" if updates else "in the loss"


def _name(module):
    """Where a module stands in its network: "stage1_block1/bn", "stage1_block1/bn of the teacher"."""
    root = module
    while isinstance(root.parent, nn.Module):
        root = root.parent
    return ("/".join(module.path) or "the logits") + (" of the teacher" if root.name == "teacher" else "")


class Reports:
    """What the steps under way say of themselves, read once the calls that they are of are done.

    Args:
      step: the step that was guarded.
      skip: as of `guard`.

    Attributes:
      asked: whether a step that was read said so.
    """

    def __init__(self, step: Callable, skip: int):
        self.step, self.skip, self.bad_in_a_row, self.asked = step, skip, 0, False
        self._under_way: collections.deque = collections.deque()

    def add(self, steps: range, inputs: Callable, report: tuple[jax.Array, jax.Array]) -> None:
        """A call has begun.

        Args:
          steps: the numbers of its steps.
          inputs: what step inputs(i) of them takes behind the state.
          report: as `guard` gives it, or of a call with more than one step an array of the first of both.
        """
        self._under_way.append((steps, inputs, report))

    def settle(self, state: Any, ahead: int = 0) -> None:
        """Waits until at most `ahead` calls are under way.

        Raises:
          NotFinite: one more step in a row than `skip` was withheld.
        """
        while len(self._under_way) > ahead:
            steps, inputs, (fine, asked) = self._under_way.popleft()
            self.asked |= bool(asked)
            for index, (number, ok) in enumerate(zip(steps, np.atleast_1d(fine)[: len(steps)], strict=True)):
                self.bad_in_a_row = 0 if ok else self.bad_in_a_row + 1
                if self.bad_in_a_row > self.skip:
                    before = dataclasses.replace(state, step=parallel.replicate(np.asarray(number - 1, np.int32)))
                    raise NotFinite(number, first_bad(self.step, before, *inputs(index)))
                if self.bad_in_a_row:
                    log.warning("step %d: the loss or an update is not finite; skipped", number)


class NotFinite(BadInput):
    """Step `number` gave numbers that are not finite; `where` says where they began. Its update was withheld."""

    def __init__(self, number: int, where: str):
        super().__init__(f"step {number}: the loss or an update is not finite (nan or inf), {where}")
        self.number, self.where = number, where

"""Data parallelism: the only file that says pmap.

State is placed once, replicated over the local devices without a device axis of its own, so checkpoints, evaluation and
export never hear of devices. A step is a pure function that averages with `lax.pmean(..., AXIS)`; the same body runs
under `jax.jit(jax.shard_map(step, mesh=..., in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=False))`.
"""

import collections
import dataclasses
import functools
import operator
from collections.abc import Callable, Generator, Iterable
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def full_precision(function: Callable) -> Callable:
    """The function, with products of float32 in all their bits: accelerators else take fewer (TF32, bfloat16)."""

    @functools.wraps(function)
    def exact(*arguments):
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    return exact


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of two halves, to be pmapped: what images contribute, and what follows from the sum over all of them.

    Attributes:
      part: (replicated, batch, ...) -> a tree of arrays; the batch is some images, by themselves.
      finish: (replicated, total, count) -> the result, from the sum of what `count` parts gave.
      parts: a device divides its images into so many, computed one after the other in the memory that one takes.
      replica: so many images are a part instead, and `pmap` gives the same bits for any number of devices and
        processes that divides the number of such logical replicas; 0: not in this mode.
    """

    part: Callable
    finish: Callable
    parts: int = 1
    replica: int = 0

    def __call__(self, replicated: Any, batch: Any, *more: Any) -> Any:
        """Within a pmap: as one program, which adds up as fast as it can."""
        parts = self.cut(batch)
        if len(parts) == 1:
            total = self.part(replicated, batch, *more)
        else:
            stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *parts)
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(self.part, replicated, parts[0], *more))
            add = lambda sums, part: (_add(sums, self.part(replicated, part, *more)), None)  # noqa: E731
            total, _ = lax.scan(add, zeros, stacked)
        devices = lax.axis_size(AXIS)
        if devices > 1:  # the sum of one would be a copy of all gradients
            total = lax.psum(total, AXIS)
        return self.finish(replicated, total, len(parts) * devices)

    def cut(self, batch: Any) -> list[Any]:
        """The parts of the batch of a device: of leaves [n, ...]. A leaf [] is in all of them."""
        n = max(len(leaf) for leaf in jax.tree.leaves(batch) if leaf.ndim)
        size = self.replica or n // self.parts
        return [jax.tree.map(lambda a, i=i: a[i : i + size] if a.ndim else a, batch) for i in range(0, n, size)]


def _add(a, b):
    return jax.tree.map(operator.add, a, b)


def pmap(step: Callable, donate: bool = False, more: int = 0) -> Callable:
    """step(replicated, batch) over all devices: the first argument whole to each, of the second every device its part.

    As many further arguments as `more` says are whole to each device, too, and are never donated.

    Results must be equal on all devices (averaged inside); they come back without a device axis. With `donate` the
    memory of the first argument is reused for the result, and the argument must not be touched again.
    """
    if isinstance(step, Step) and step.replica:
        return _elastic(step)
    axes = (None, 0, *(None,) * more)
    return jax.pmap(step, AXIS, in_axes=axes, out_axes=None, donate_argnums=(0,) if donate else ())


def apart(function: Callable) -> Callable:
    """function(replicated, batch) on every device with its part of the second argument; the results stay there."""
    return jax.pmap(function, AXIS, in_axes=(None, 0))


def _elastic(step):
    """A step whose bits do not depend on the devices: every sum is in programs of one device, alike for any number.

    In a program that knows how many devices and parts there are XLA rewrites the arithmetic in ways that depend on it:
    a division here, a fused multiplication and addition there. So each device computes a logical replica at a time,
    and one device adds up, in the order of the batch, and finishes. Each compiles for itself; nothing is donated.
    """
    cut = jax.pmap(step.cut, AXIS)
    part = jax.jit(
        lambda replicated, images, *more: jax.tree.map(
            lambda a: a[None], step.part(replicated, jax.tree.map(lambda a: a[0], images), *more)
        )
    )
    gather = jax.pmap(
        lambda parts: jax.tree.map(lambda *rows: jnp.concatenate(lax.all_gather(jnp.stack(rows), AXIS)), *parts),
        AXIS,
        out_axes=None,
    )

    @jax.jit
    def finish(replicated, rows):
        count = len(jax.tree.leaves(rows)[0])
        each = (jax.tree.map(lambda a, i=i: a[i], rows) for i in range(count))
        return step.finish(replicated, functools.reduce(_add, each), count)

    def on_each(*args):
        results = [part(*_on(i, args)) for i in range(jax.local_device_count())]
        return jax.tree.map(
            lambda *a: jax.make_array_from_single_device_arrays((len(a), *a[0].shape[1:]), _sharding(AXIS), a), *results
        )

    def run(replicated, batch, *more):
        rows = gather([on_each(replicated, images, *more) for images in cut(batch)])
        return replicate(finish(*_on(0, (replicated, rows))))

    return run


def _on(device, tree):
    return jax.tree.map(lambda a: a.addressable_shards[device].data, tree)


def on_all(function: Callable, donate: bool = False) -> Callable:
    """function(replicated) on all devices alike, with results that are replicated in turn."""
    return jax.jit(function, out_shardings=_sharding(), donate_argnums=(0,) if donate else ())


def networks(
    function: Callable, count: int, shared: tuple[Any, ...] = (False, False), donate: bool = False
) -> Callable:
    """The function for `count` networks at once: vmapped, and divided over the local devices.

    Args:
      function: a step of one network. It may average over AXIS, which has one member.
      count: how many networks; one that `layout` gave.
      shared: for each argument, or for each of its branches, whether it is the same for all networks; if not, all its
        leaves have a leading axis of length `count`, as the results have.
      donate: reuse the memory of the first argument.
    """
    mapped = jax.shard_map(
        jax.vmap(function, jax.tree.map(lambda s: None if s else 0, shared)), mesh=_mesh(count), check_vma=False,
        in_specs=jax.tree.map(lambda s: PartitionSpec() if s else PartitionSpec("networks"), shared),
        out_specs=PartitionSpec("networks"),
    )  # fmt: skip
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


def _mesh(count):
    return Mesh(np.asarray(jax.local_devices()[: layout(count)[0]])[:, None], ("networks", AXIS))


def share(tree: Any, count: int) -> Any:
    """Places arrays whole on every device of `count` networks, where `networks` wants what is the same for all."""
    return jax.device_put(tree, NamedSharding(_mesh(count), PartitionSpec()))


def layout(count: int) -> tuple[int, int]:
    """How `count` networks lie on the local devices: (devices, networks), as many on each and as few as can be.

    Five networks on two devices are three on each: two devices, six networks.
    """
    each = -(-count // jax.local_device_count())
    devices = -(-count // each)
    return devices, devices * each


def _sharding(*spec):
    # The mesh axis must bear the name of the pmapped one, or the first call compiles twice.
    return NamedSharding(Mesh(np.asarray(jax.local_devices()), (AXIS,)), PartitionSpec(*spec))


def replicate(tree: Any) -> Any:
    """Places arrays on every local device, where `pmap` wants its first argument."""
    return jax.device_put(tree, _sharding())


def fetch(tree: Any) -> Any:
    """A copy of a replicated tree as numpy arrays. A copy, since donation overwrites what a view would show."""
    return jax.tree.map(
        lambda a: np.array(a.addressable_shards[0].data) if isinstance(a, jax.Array) else np.array(a), tree
    )


def place(batch: Any) -> Any:
    """Puts arrays [devices, ...] on the local devices, each its own part."""
    return jax.device_put(batch, _sharding(AXIS))


def prefetch(batches: Iterable[Any], ahead: int = 2, then: Callable = place) -> Generator[Any]:
    """The batches, already on their devices; a thread has `ahead` of them under way while one is used.

    What `batches` raises is raised here, in its place. The thread ends with the generator, so close that, or use it up.

    Args:
      batches: each [devices, ...], or what `then` takes.
      ahead: how many.
      then: is done to each of them, in the thread too.
    """
    batches, end = iter(batches), object()

    def fetch():
        batch = next(batches, end)
        return end if batch is end else then(batch)

    thread = futures.ThreadPoolExecutor(1, "input")
    try:
        queue = collections.deque(thread.submit(fetch) for _ in range(ahead))
        while (batch := queue.popleft().result()) is not end:
            queue.append(thread.submit(fetch))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)

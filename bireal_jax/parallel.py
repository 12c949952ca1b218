"""Data parallelism: the only file that says pmap.

State is placed once, replicated over the local devices without a device axis of its own, so checkpoints, evaluation and
export never hear of devices. A step is a pure function that averages with `lax.pmean(..., AXIS)`; the same body runs
under `jax.jit(jax.shard_map(step, mesh=..., in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=False))`.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def pmap(step: Callable, donate: bool = False, more: int = 0) -> Callable:
    """step(replicated, batch) over all devices: the first argument whole to each, of the second every device its part.

    As many further arguments as `more` says are whole to each device, too, and are never donated.

    Results must be equal on all devices (averaged inside); they come back without a device axis. With `donate` the
    memory of the first argument is reused for the result, and the argument must not be touched again.
    """
    axes = (None, 0, *(None,) * more)
    return jax.pmap(step, AXIS, in_axes=axes, out_axes=None, donate_argnums=(0,) if donate else ())


def on_all(function: Callable, donate: bool = False) -> Callable:
    """function(replicated) on all devices alike, with results that are replicated in turn."""
    return jax.jit(function, out_shardings=_sharding(), donate_argnums=(0,) if donate else ())


def networks(
    function: Callable, count: int, shared: tuple[bool, ...] = (False, False), donate: bool = False
) -> Callable:
    """The function for `count` networks at once: vmapped, and divided over the local devices.

    Args:
      function: a step of one network. It may average over AXIS, which has one member.
      count: how many networks; one that `layout` gave.
      shared: for each argument whether it is the same for all networks; if not, all its leaves have a leading axis of
        length `count`, as the results have.
      donate: reuse the memory of the first argument.
    """
    devices, _ = layout(count)
    mesh = Mesh(np.asarray(jax.local_devices()[:devices])[:, None], ("networks", AXIS))
    mapped = jax.shard_map(
        jax.vmap(function, [None if s else 0 for s in shared]), mesh=mesh, check_vma=False,
        in_specs=tuple(PartitionSpec() if s else PartitionSpec("networks") for s in shared),
        out_specs=PartitionSpec("networks"),
    )  # fmt: skip
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


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


def prefetch(batches: Iterable[Any], ahead: int = 2) -> Iterator[Any]:
    """The batches, already on their devices; `ahead` of them are under way while one is used."""
    batches, sharding = iter(batches), _sharding(AXIS)
    queue = collections.deque(jax.device_put(batch, sharding) for batch in itertools.islice(batches, ahead))
    while queue:
        yield queue.popleft()
        queue.extend(jax.device_put(batch, sharding) for batch in itertools.islice(batches, 1))

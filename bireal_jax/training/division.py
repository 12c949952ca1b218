"""How a batch is divided: over devices or logical replicas, into parts of them, and into groups of batch norm."""

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from bireal_jax import build
from bireal_jax.binary import layers
from bireal_jax.data import Source, batching
from bireal_jax.errors import BadInput

REPLICAS = 8  # logical ones of the deterministic mode, times config.accumulate


def part_size(config: ConfigDict, devices: int) -> int:
    """How many images are computed together: those of a device or of a logical replica, or a part of them.

    Raises:
      BadInput: devices, parts and batch norm groups do not divide the batch.
    """
    size, group, accumulate = config.batch_size, config.model.bn_group or 1, config.accumulate
    count = (REPLICAS if config.deterministic else devices) * accumulate
    if count % devices:
        raise BadInput(
            f"config.deterministic=True divides a batch into {count} logical replicas, which {devices} devices cannot "
            f"share\nuse as many devices as divide {count}; config.accumulate=2 doubles the logical replicas"
        )
    if accumulate == group == 1 and not config.deterministic:
        batching.check_divisible(size, devices)
    if size % (count * group):
        better = -(-size // (count * group)) * count * group
        raise BadInput(
            f"config.batch_size={size} does not divide into {count} parts (devices, or logical replicas, times "
            f"config.accumulate={accumulate}) of groups of config.model.bn_group={group}; use {better}, or other parts"
        )
    return size // count


def check_statistics(config: ConfigDict, module: nn.Module, source: Source, devices: int) -> None:
    """Raises BadInput where a batch norm is over one value per channel: which gives 0, and no gradient."""
    size = part_size(config, devices)
    if (size * devices if config.model.sync_bn else config.model.bn_group or size) > 1:
        return
    maps = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, layers.BatchNorm) and context.method_name == "__call__":
            maps.append(("/".join(context.module.path), args[0].size // args[0].shape[-1]))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(module.init, jax.random.key(0), build.blank(source))
    alone = [path for path, values in maps if values == 1]
    if alone:
        raise BadInput(
            f"{alone[0]} normalizes one value per channel, a map of one pixel of one image, which gives no gradient\n"
            "use two images or more: config.batch_size for each device and part, config.model.bn_group; "
            "or larger images, config.data.image_size"
        )

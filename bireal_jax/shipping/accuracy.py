"""What a packed file scores on the evaluation set, beside the network that it was made from."""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bireal_jax import runtime
from bireal_jax.data import Source, batching
from bireal_jax.data.normalize import normalize
from bireal_jax.running import metrics, parallel

ROOM = 1 << 40  # bytes: that a network of one's own may take
TOGETHER = 32  # images
SECONDS = 60.0  # at most; ImageNet does not fit in


def in_float32(module: nn.Module, variables: Any, source: Source) -> Callable[[np.ndarray], jax.Array]:
    """The network as a function of uint8 images, in all bits of float32 on accelerators, too."""
    module = module.clone(dtype=np.float32, param_dtype=np.float32)
    return jax.jit(
        parallel.full_precision(lambda images: module.apply(variables, normalize(images, source, np.float32)))
    )


@dataclasses.dataclass
class _Shuffled:
    """Examples in another order: what time is left for is of all classes."""

    examples: Any
    order: np.ndarray

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index: int):
        return self.examples[int(self.order[index])]


def both(
    module: nn.Module, variables: Any, source: Source, packed: bytes, loss: Callable, seconds: float = SECONDS,
    threads: int = 4,
) -> dict[str, Any]:  # fmt: skip
    """Scores the packed network and the model in float32 on the same images, in a random order until time is up.

    Args:
      module, variables: the network.
      source: the data set, whose evaluation examples are at hand.
      packed: the file's bytes; the engine computes them, on all cores.
      loss: (outputs, labels) -> [n].
      seconds: after which no further batch is begun.
      threads: that decode.

    Returns:
      scored: how many images; file and model: the metrics of each.
    """
    net = runtime.Network(packed, "the file", threads=os.cpu_count() or 1, max_memory=ROOM)
    apply, task = in_float32(module, variables, source), metrics.task(source.depth_range, source.num_classes)
    sums = jax.jit(lambda outputs, b: task.sums(outputs, b["label"], loss(outputs, b["label"]), b["mask"]))
    order = np.random.default_rng(0).permutation(len(source.eval))
    shuffled = dataclasses.replace(source, eval=_Shuffled(source.eval, order))
    totals: dict[str, dict[str, float]] = {"file": {}, "model": {}}
    end = time.monotonic() + seconds
    for batch in batching.eval_batches(shuffled, TOGETHER, devices=1, threads=threads):
        batch = {name: array[0] for name, array in batch.items()}
        for name, outputs in (("file", net(batch["image"])), ("model", apply(batch["image"]))):
            for key, value in sums(outputs, batch).items():
                totals[name][key] = totals[name].get(key, 0.0) + float(value)
        if time.monotonic() > end:
            break
    means = {name: task.means(sums) for name, sums in totals.items()}
    return {"scored": int(totals["file"]["seen"]), **means}


def said(found: dict[str, Any], source: Source) -> str:
    """What `both` found, in words."""
    task, scored, count = metrics.task(source.depth_range, source.num_classes), found["scored"], len(source.eval)
    file, model = (task.form.format(found[name][task.metric]) for name in ("file", "model"))
    which = f"all {count:,}" if scored == count else f"{scored:,} of {count:,}, drawn at random,"
    return f"{task.title} {file} of the file, {model} of the network in float32, on {which} {source.split} images"

"""Metrics as masked sums. Sums add up exactly over batches, devices and hosts; means of means do not."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from bireal_jax.binary.pool import nearest
from bireal_jax.errors import BadInput


def sums(logits: jax.Array, labels: jax.Array, losses: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is 1.

    Args:
      logits: [n, num_classes].
      labels: [n] integers.
      losses: [n], one loss per example.
      mask: [n] of 0 and 1; 0 marks padding.

    Returns:
      loss, top1 and top5 (examples whose label is among the 1 or 5 largest logits) and seen (examples), all scalars in
      the dtype of `losses`.
    """
    weight = mask.astype(losses.dtype)
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]  # [n, 5]
    hit = (best == labels[:, None]).astype(losses.dtype)
    return {
        # where, not a product: the loss of a padded row may be anything, NaN included
        "loss": jnp.sum(jnp.where(mask, losses, jnp.zeros_like(losses))),
        "top1": jnp.sum(hit[:, 0] * weight),
        "top5": jnp.sum(jnp.max(hit, axis=1) * weight),
        "seen": jnp.sum(weight),
    }


def means(totals) -> dict[str, float]:
    """Means of the totals that `sums` gave: loss in nats, top1 and top5 in percent."""
    seen = float(totals["seen"])
    scale = {"loss": 1.0, "top1": 100.0, "top5": 100.0}
    return {name: scale[name] * float(totals[name]) / seen for name in scale}


def few_means(totals) -> dict[str, float]:
    """`means` where there are at most five classes, of which one is always among the five likeliest."""
    return {name: value for name, value in means(totals).items() if name != "top5"}


DEPTH_SCORES = ("loss", "rmse", "abs_rel", "log10", "delta1", "delta2", "delta3")


def depth_sums(
    maps: jax.Array, labels: jax.Array, losses: jax.Array, mask: jax.Array, *, low: float, high: float
) -> dict[str, jax.Array]:
    """Sums over the images whose mask is 1 and that have any depth, of what each scores over its pixels with depth.

    Args:
      maps: [n, h, w, 1] in metres; brought to the size of the labels, each pixel the nearest one, and into [low, high].
      labels: [n, H, W] in metres; pixels of 0 do not count.
      losses: [n], one loss per image.
      mask: [n] of 0 and 1; 0 marks padding.
      low, high: in metres.

    Returns:
      rmse: sqrt(mean((d - y)^2)); abs_rel: mean(|d - y| / y); log10: mean(|log10 d - log10 y|); delta1 to delta3: the
      share of pixels with max(d / y, y / d) < 1.25, 1.25^2, 1.25^3; loss; scored (images with depth) and seen (all),
      all scalars in the dtype of `losses`.
    """
    d = jnp.clip(nearest(maps[..., 0].astype(losses.dtype), *labels.shape[1:]), low, high)
    valid = (labels > 0) & (mask > 0)[:, None, None]
    y = jnp.where(valid, labels.astype(losses.dtype), jnp.ones_like(d))
    count = jnp.sum(valid, (1, 2)).astype(losses.dtype)

    def mean(values):
        return jnp.sum(jnp.where(valid, values, jnp.zeros_like(values)), (1, 2)) / jnp.maximum(count, 1.0)

    ratio = jnp.maximum(d / y, y / d)
    scored = count > 0
    scores = {
        "loss": jnp.where(scored, losses, jnp.zeros_like(losses)),
        "rmse": jnp.sqrt(mean((d - y) ** 2)),
        "abs_rel": mean(jnp.abs(d - y) / y),
        "log10": mean(jnp.abs(jnp.log10(d) - jnp.log10(y))),
        **{f"delta{k}": mean((ratio < 1.25**k).astype(d.dtype)) for k in (1, 2, 3)},
        "scored": scored.astype(d.dtype),
        "seen": mask.astype(d.dtype),
    }
    return {name: jnp.sum(values) for name, values in scores.items()}


def depth_means(totals) -> dict[str, float]:
    """Means over the scored images of the totals that `depth_sums` gave: rmse in metres, delta1 to delta3 in percent.

    Raises:
      BadInput: no image had a pixel with depth.
    """
    scored = float(totals["scored"])
    if not scored:
        raise BadInput(
            f"none of {float(totals['seen']):.0f} images has a pixel with depth, so there is nothing to score\n"
            "mend the depth maps, or config.data.depth: unit, low, high and crop"
        )
    return {name: float(totals[name]) / scored * (100 if name.startswith("delta") else 1) for name in DEPTH_SCORES}


@dataclasses.dataclass(frozen=True)
class Task:
    """How outputs are scored against labels, and how that is put in words.

    Attributes:
      sums: (outputs, labels, losses, mask) -> scalars under `names`, of which "seen" is the number of examples.
      means: their totals -> the metrics.
      names: of the sums.
      metric: what networks are compared by.
      better: 1 where more of it is better, -1 where less is.
      title, form: its name and format in words.
      report: format of all that an evaluation says.
    """

    sums: Callable
    means: Callable
    names: tuple[str, ...]
    metric: str
    better: int
    title: str
    form: str
    report: str


CLASSES = Task(
    sums, means, ("loss", "top1", "top5", "seen"), "top1", 1, "top-1", "{:.2f} %",
    "top-1 {top1:.2f} %  top-5 {top5:.2f} %  loss {loss:.4f}",
)  # fmt: skip
FEW = dataclasses.replace(CLASSES, means=few_means, report="top-1 {top1:.2f} %  loss {loss:.4f}")
DEPTH = Task(
    depth_sums, depth_means,
    (*DEPTH_SCORES, "scored", "seen"),
    "rmse", -1, "RMSE", "{:.4f} m",
    "RMSE {rmse:.4f} m  abs-rel {abs_rel:.4f}  log10 {log10:.4f}  delta1 {delta1:.2f} %  delta2 {delta2:.2f} %  "
    "delta3 {delta3:.2f} %  loss {loss:.4f}",
)  # fmt: skip


def task(depth_range: tuple[float, float] | None, classes: int = 1000) -> Task:
    """The task of a data set: `Source.depth_range` in metres, or None for so many classes."""
    if depth_range is None:
        return CLASSES if classes > 5 else FEW
    return dataclasses.replace(DEPTH, sums=partial(depth_sums, low=depth_range[0], high=depth_range[1]))


def task_of(scores: Mapping[str, float]) -> Task:
    """The task that metrics are of."""
    found = next(t for t in (CLASSES, DEPTH) if t.metric in scores)
    return FEW if found is CLASSES and "top5" not in scores else found


def score(scores: Mapping[str, float]) -> float:
    """What networks are compared by, turned so that more is better."""
    found = task_of(scores)
    return found.better * scores[found.metric]


def pack_signs(w: jax.Array) -> jax.Array:
    """The signs of w, eight to a byte: uint8 [ceil(size / 8)], bit 1 where w >= 0."""
    return jnp.packbits(w.ravel() >= 0)


def flipped(before: jax.Array, after: jax.Array) -> jax.Array:
    """How many signs differ between two results of `pack_signs`."""
    return jnp.sum(jax.lax.population_count(before ^ after).astype(jnp.int32))


def log_flip_ratio(before: list[jax.Array], after: list[jax.Array]) -> jax.Array:
    """log(flips / n + e^-9): of n weights in all, how many changed sign. -9 where none did (Bop's paper).

    The paper writes it for one update of the weights.
    """
    flips = sum(jnp.sum((a >= 0) != (b >= 0), dtype=jnp.int32) for a, b in zip(before, after, strict=True))
    return jnp.log(jnp.asarray(flips) / max(1, sum(a.size for a in before)) + math.exp(-9))

"""Optimizers, learning-rate schedules, and the labels that say which parameter is what."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bireal_jax.errors import BadInput, lookup
from bireal_jax.training import ovsw

# Schedules count their step from the end of the warmup; total_steps and milestones count from the very start.

LABELS = ("binary", "decay", "slope", "no_decay")
KINDS = {"latent": "binary", "kernel": "decay", "slope": "slope", "positive": "slope", "negative": "slope"}


def labels(params):
    """A tree of labels.

    "binary" for latent weights, "decay" for real-valued kernels, "slope" for the slopes of (R)PReLU, "no_decay" for all
    the rest. One explicit rule on the leaf's name, in one place. The authors' rule, "decay what is four-dimensional",
    misses their own binary weights, which they store as two-dimensional. Slopes are apart from the rest, since decay
    makes a ReLU of a PReLU, behind which a sign is +1 everywhere: such a channel carries nothing.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: KINDS.get(path[-1].key, "no_decay"), params)


def linear(lr, total_steps, epoch_steps, milestones, warmup):
    """lr * (1 - step / total): to 0, every step a little."""
    return optax.linear_schedule(lr, 0.0, total_steps - warmup)


def linear_epoch(lr, total_steps, epoch_steps, milestones, warmup):
    """The released scheduler: lr * (1 - (epoch + 1) / epochs), constant within an epoch; the last epoch runs at 0."""

    def schedule(step):
        return lr * jnp.maximum(0.0, 1 - (jnp.floor((step + warmup) / epoch_steps) + 1) * epoch_steps / total_steps)

    return schedule


def cosine(lr, total_steps, epoch_steps, milestones, warmup):
    """lr * (1 + cos(pi * step / total)) / 2."""
    return optax.cosine_decay_schedule(lr, total_steps - warmup)


def piecewise(lr, total_steps, epoch_steps, milestones, warmup):
    """Divided by 10 at every milestone, an epoch. Two in the same step divide by 100."""
    counts = Counter(round(m * epoch_steps) - warmup for m in milestones)
    return optax.piecewise_constant_schedule(lr, {step: 0.1**count for step, count in counts.items()})


def constant(lr, total_steps, epoch_steps, milestones, warmup):
    """lr throughout."""
    return optax.constant_schedule(lr)


SCHEDULES = {"linear": linear, "linear_epoch": linear_epoch, "cosine": cosine, "steps": piecewise, "constant": constant}


def schedule(name, lr, total_steps, epoch_steps=1.0, milestones=(), warmup_steps=0, lr_end=0.0):
    """The learning rate as a function of the step.

    Args:
      name: a key of SCHEDULES.
      lr: the peak.
      total_steps: length of the training, in steps.
      epoch_steps: length of an epoch, in steps; need not be whole.
      milestones: for "steps", epochs at which the rate is divided by 10.
      warmup_steps: the rate first rises linearly from 0 for so many steps, which the schedule then lacks.
      lr_end: where a schedule that falls to 0 ends instead.

    Raises:
      BadInput: unknown name, a warmup as long as the training, an end above the peak, or a rate that is 0 throughout.
    """
    if warmup_steps >= total_steps and warmup_steps:
        raise BadInput(f"warmup of {warmup_steps} steps leaves nothing of {total_steps}; shorten optim.warmup_epochs")
    fall = lookup(SCHEDULES, name, "schedule")(lr - lr_end, total_steps, epoch_steps, milestones, warmup_steps)
    if lr_end and name in ("steps", "constant"):
        raise BadInput(f"optim.lr_end is {lr_end}, but the schedule {name!r} does not fall to an end; leave it 0.0")
    if lr_end > lr:
        raise BadInput(f"optim.lr_end is {lr_end:g}, above optim.lr, {lr:g}, from which the rate falls to it; lower it")
    main = (lambda step: lr_end + fall(step)) if lr_end else fall
    if not float(main(0)) > 0:  # no schedule rises again
        raise BadInput(
            f"the schedule {name!r} gives a learning rate of 0 in all {total_steps - warmup_steps} steps, so that "
            f"nothing is trained: an epoch has {epoch_steps:g} steps, and the last one runs at 0\n"
            "train for more epochs, or set config.optim.schedule=linear, which falls with every step"
        )
    return (
        optax.join_schedules([optax.linear_schedule(0.0, lr, warmup_steps), main], [warmup_steps])
        if warmup_steps
        else main
    )


def _adam(decay, rate):
    return optax.chain(decay, optax.scale_by_adam(eps=1e-8), rate)


def _adamw(decay, rate):
    return optax.chain(optax.scale_by_adam(eps=1e-8), decay, rate)


def _sgd(decay, rate):
    return optax.chain(decay, optax.trace(decay=0.9), rate)


# Weight decay is coupled, as in PyTorch's Adam and SGD: added to the gradient. adamw decouples it.
OPTIMIZERS = {"adam": _adam, "adamw": _adamw, "sgd": _sgd}


def make(
    name,
    learning_rate,
    params,
    weight_decay=0.0,
    decay_on=("binary", "decay"),
    binary_lr=1.0,
    latent_clip=0.0,
    frozen="",
    binary=None,
    gradient_floor=0.0,
    silent_decay=0.0,
):
    """The optimizer as an optax transformation.

    Args:
      name: a key of OPTIMIZERS.
      learning_rate: a schedule, from `schedule`.
      params: the parameter tree, to label.
      weight_decay: coefficient; 0 for none.
      decay_on: the labels of the parameters that it acts on.
      binary_lr: factor of the learning rate for parameters labelled "binary".
      latent_clip: parameters labelled "binary" are kept within ± this; 0 for no limit.
      frozen: regular expression; parameters whose path, such as "stage1_block1/bn/scale", it is found in stay as they
        are. Empty for none.
      binary: the transformation of the parameters labelled "binary", from `bop.make`; None to train them as the rest.
      gradient_floor, silent_decay: of parameters labelled "binary", as of `ovsw`; 0 for none.

    Raises:
      BadInput: unknown optimizer or label, `frozen` is found nowhere or everywhere, or what is for latent weights
        together with `binary`, which has none.
    """
    for label in decay_on:
        if label not in LABELS:
            raise BadInput(f"unknown label {label!r} in optim.decay_on; known: {', '.join(LABELS)}")
    mask = jax.tree.map(lambda label: label in decay_on, labels(params))
    decay = optax.add_decayed_weights(weight_decay, mask) if weight_decay else optax.identity()
    parts = [lookup(OPTIMIZERS, name, "optimizer")(decay, optax.scale_by_learning_rate(learning_rate))]
    is_binary = jax.tree.map(lambda label: label == "binary", labels(params))
    if binary is not None:
        if binary_lr != 1 or latent_clip or gradient_floor or silent_decay:
            raise BadInput(
                "optim.binary has no latent weights; leave optim.binary_lr at 1.0 and optim.latent_clip, "
                "optim.gradient_floor and optim.silent_decay at 0.0"
            )
        others = jax.tree.map(lambda flag: not flag, is_binary)
        parts = [optax.masked(parts[0], others), optax.masked(binary, is_binary)]
    for value, make_part in ((silent_decay, ovsw.silent_decay), (gradient_floor, ovsw.gradient_floor)):
        if value:  # the floor comes first
            parts.insert(0, optax.masked(make_part(value), is_binary))
    if binary_lr != 1:
        parts.append(optax.masked(optax.scale(binary_lr), is_binary))
    if latent_clip:
        parts.append(optax.masked(_within(latent_clip), is_binary))
    if frozen:
        parts.append(optax.masked(optax.set_to_zero(), _found(frozen, params)))
    return optax.chain(*parts)


def _within(limit):
    """Cuts updates so that the parameters stay within ± limit."""
    return optax.stateless(partial(jax.tree.map, lambda update, param: jnp.clip(param + update, -limit, limit) - param))


def _found(pattern, params):
    """A tree of whether `pattern` is found in the path of the parameter."""
    try:
        found = jax.tree_util.tree_map_with_path(
            lambda path, _: re.search(pattern, "/".join(key.key for key in path)) is not None, params
        )
    except re.error as error:
        raise BadInput(f"optim.frozen={pattern!r} is no regular expression: {error}") from None
    if all(jax.tree.leaves(found)):
        raise BadInput(f"optim.frozen={pattern!r} is found in every parameter, so that nothing is trained; narrow it")
    if not any(jax.tree.leaves(found)):
        some = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)[:3]]
        raise BadInput(f"optim.frozen={pattern!r} is found in no parameter; they are called {', '.join(some)} ...")
    return found


def latents(params):
    """The latent weights of a parameter tree, in a fixed order, as a list."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(labels(params)), strict=True)
    return [leaf for leaf, label in pairs if label == "binary"]


def count_latents(params) -> int:
    """How many binary weights there are."""
    return int(np.sum([leaf.size for leaf in latents(params)], dtype=np.int64))

"""Weights that are looked at as they are: evaluated, reported on, packed. What their run knew goes with them."""

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from bireal_jax import build, data, registered
from bireal_jax.errors import BadInput, first_line
from bireal_jax.running import described, known, progress


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights to evaluate or to pack, with what they were trained with.

    Attributes:
      config: of the stage that they are of.
      source: the data set; its normalization is that of the run.
      there: whether its examples are at hand.
      model, variables: the network.
      origin: where the weights are from, in words.
    """

    config: ConfigDict
    source: data.Source
    there: bool
    model: nn.Module
    variables: Any
    origin: str


def weights(
    config: ConfigDict, directory: str | Path, given: Collection[str] | None = None, pack: bool = False
) -> Weights:  # fmt: skip
    """config.init_from, or else the best checkpoint of a workdir, with the config and the data set of the run it is of.

    An init_from that the run in the workdir has started from is not meant: its own checkpoint is.

    Args:
      config: a recipe. It counts where there is no run, and as `known.Known.again` says.
      directory: the workdir.
      given: fields of config that were set on purpose, on the command line; None: all that are not the schema's.
      pack: the classes are those of the run, and its examples need not be there; or else they are compared.

    Raises:
      BadInput: the config, the data set or the weights cannot be used, or do not fit.
    """
    last = build.stages(config)[-1]
    run = home = known.read(directory)
    own = not last.init_from or bool(home and home.config.init_from == last.init_from)
    if not own:
        run = build.known_at(last.init_from)
        if run:
            run.check_network(last, run.title)
        elif home and home.source and home.last.data.name == last.data.name:
            seen, c = home.source, last.data  # arrays alone, looked at as this workdir looks at images
            c.mean, c.std = tuple(c.mean) or seen.mean, tuple(c.std) or seen.std
    elif last.init_from and (given is None or "init_from" in given):
        progress.say(
            f"note: config.init_from is what the run in {directory} has started from; its own weights are used"
        )
    if run:
        named = "" if own else last.init_from
        last, note = run.again(last, given) if not run.name else run.adopted(last)
        registered.check(run, last)
        last.init_from = named
        build.widen([last])
        if note:
            progress.say(note)
    found, there = _examples(last, run, pack)
    if found.normalized and not own:
        progress.say(found.normalized)
    module, shapes = build.model(last, found)
    if own or (run and not run.name):
        variables, origin = known.best_variables(run.directory if run else directory, shapes)
        if run and not (run.directory / "result.json").exists():
            progress.say(f"note: the training in {run.directory} has not ended; this is the best of what it has so far")
    else:
        variables, origin = build.variables(last, shapes), last.init_from
    return Weights(last, found, there, module, variables, origin)


def _examples(config, run, pack):
    """The data set as the run saw it, and whether its examples are at hand."""
    try:
        found = build.source(config)
    except BadInput as error:
        if pack and run and run.source:
            return run.source, False
        c = config.data
        if run or not pack or not data.DATASETS[c.name].labels or (c.dir and Path(c.dir).exists()):
            raise
        progress.say(f"note: {first_line(error)}\nthe published classes and normalization of {c.name} are taken")
        return build.normalized(data.stand_in(c.name, c.image_size), c), False
    if run is None or run.source is None:
        if run:
            progress.say(
                f"note: no data.json in {run.directory}; normalization and classes are those of the data set here"
            )
        return found, True
    theirs, ours = run.source.label_names, found.label_names
    c, digest = config.data, described.digest(found)
    if ours and {*ours} < {*theirs}:
        progress.say(f"note: the data set here has {len(ours)} of the {len(theirs)} classes of {run.title}")
        found = data.numbered(found, theirs)
    apart = run.other_classes(found)
    if apart and pack:
        progress.say(f"note: the data set here has other classes: {apart}\nthe file gets those of {run.title}")
    elif apart:
        run.check_classes(found, run.title)
    elsewhere = os.path.abspath(c.dir) != os.path.abspath(run.last.data.dir)
    if found.split in ("held-out", "evaluation") and (said := _other_images(run, found, digest, elsewhere and c.dir)):
        progress.say(said)
        found = dataclasses.replace(found, split="evaluation") if elsewhere else found  # held out of no training
    return run.meant(found), True


def _other_images(run, found, digest, elsewhere):
    """That images which are split here, not by their owner, are others than those that a run had, or ""."""
    then, now = ((len(s.train), len(s.eval)) for s in (run.source, found))
    known_by = run.digests[run.index] if run.digests else ""
    if now == then and not (known_by and digest and known_by != digest):
        return ""
    if elsewhere:
        return (
            f"note: {elsewhere} has other images than {run.title} had, {then[0]:,} to train on, {then[1]:,} held out\n"
            f"some of the {now[1]:,} that are evaluated here may have been trained on"
        )
    if now == then:
        here = f"the images here are no longer those of {run.title}, though as many: files have other names or classes"
    else:
        here = f"{run.title} had {then[0]:,} images to train on and {then[1]:,} held out, here are {now[0]:,} and "
        here += f"{now[1]:,}"
    return f"note: {here}\nthe run may have been trained on some of those that are evaluated here"

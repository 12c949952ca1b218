"""A run used again: its weights, with the config and the data set that they were trained with."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from bireal_jax import build, data
from bireal_jax.errors import BadInput
from bireal_jax.running import known, progress


@dataclasses.dataclass(frozen=True)
class Used:
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


def load(config: ConfigDict, directory: Path, given: Collection[str] | None = None, pack: bool = False) -> Used:
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
        run = known.read(Path(last.init_from))
        if run:
            run.check_network(last, f"the run in {last.init_from}")
    elif last.init_from:
        progress.say(
            f"note: config.init_from is what the run in {directory} has started from; its own weights are used"
        )
    if run:
        build.check_registered(run)
        weights, (last, note) = last.init_from, run.again(last, given)
        last.init_from = weights
        build.widen([last])
        if note:
            progress.say(note)
    found, there = _examples(last, run, pack)
    module, shapes = build.model(last, found)
    if own or run:
        found_variables, origin = build.best_variables(run.directory if run else directory, shapes)
    else:
        found_variables, origin = build.variables(last, shapes), last.init_from
    return Used(last, found, there, module, found_variables, origin)


def _examples(config, run, pack):
    """The data set as the run saw it, and whether its examples are at hand."""
    try:
        found = build.source(config)
    except BadInput:
        if not (pack and run and run.source):
            raise
        return run.source, False
    if run is None or run.source is None:
        if run:
            progress.say(
                f"note: no data.json in {run.directory}; normalization and classes are those of the data set here"
            )
        return found, True
    apart = run.other_classes(found)
    if apart and pack:
        progress.say(f"note: the data set here has other classes: {apart}\nthe file gets those of the run")
    elif apart:
        run.check_classes(found, f"the run in {run.directory}")
    return run.meant(found), True

"""The frozen network that a loss asks, as the run that trained it knew it."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from bireal_jax import build, models, registered
from bireal_jax.data import Source
from bireal_jax.errors import BadInput, lookup


def _of_teacher(config):
    """A config whose model is the teacher, to start from its weights, and what the run knew that trained it, if any."""
    c, weights = ConfigDict(config.to_dict()), config.teacher.weights
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    c.model.name, c.init_from, c.arch = config.teacher.name, weights, ""
    c.model.blocks = c.model.widths = ()
    c.model.dtype = auto if config.teacher.dtype == "auto" else config.teacher.dtype
    taught = build.known_at(weights)
    lookup(models.TABLES["name"](), c.model.name, "model")
    if taught:
        fields = f"--config.teacher.name={taught.last.model.name}"
        taught.check_network(c, f"config.teacher.weights={weights}, of {config.teacher.name}: it", fields)
        registered.check(taught)
        taught.take(c)
    return c, taught


def network(config: ConfigDict, source: Source) -> tuple[nn.Module, Any, Source]:
    """The network that config.teacher names, for a data set; the shapes of its variables; the data set as it sees it.

    A teacher that a run has trained is what that run trained, on images normalized as they were there.

    Raises:
      BadInput: as `model`, or there is no teacher, or it knows other classes or images of another size.
    """
    name, weights = config.teacher.name, config.teacher.weights
    if not weights:
        raise BadInput(
            f"the loss {config.loss!r} needs a teacher\n"
            f"set config.teacher.weights to weights of {name} (config.teacher.name): a file, or the workdir of a run"
        )
    c, taught = _of_teacher(config)
    seen = source
    if taught and taught.source:
        what = f"the teacher config.teacher.weights={weights}"
        theirs, ours = taught.source.image_shape, source.image_shape
        if theirs != ours:
            raise BadInput(
                f"{what} was trained on images of {list(theirs)}, config.data.image_size gives {list(ours)}\n"
                "give both the same, or take another teacher"
            )
        taught.check_classes(source, what)
        seen = taught.meant(source)
    module, shapes = build.model(c, seen)
    return module.clone(name="teacher"), shapes, seen  # a name by which messages know it


def variables(config: ConfigDict, shapes: Any) -> Any:
    """The variables of the teacher, from config.teacher.weights: as `variables`.

    Raises:
      BadInput: nothing is there, or they are not of that model or of another number of classes.
    """
    name, weights = config.teacher.name, config.teacher.weights
    try:
        return build.variables(_of_teacher(config)[0], shapes)
    except BadInput as error:
        reason = str(error).split("; train first")[0]  # the way out of a student
        raise BadInput(
            f"config.teacher.weights={weights}, of {name}: {reason}\n"
            f"it must be weights of {name} (config.teacher.name), a file or the workdir of a run that trained it; "
            f"looked in {Path(weights).absolute()}"
        ) from None

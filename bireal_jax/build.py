"""From a config to what it names: data set, model, variables.

All that can be wrong with it shows here, early.
"""

import dataclasses
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bireal_jax import config as config_lib
from bireal_jax import data, importers, models
from bireal_jax.binary import losses
from bireal_jax.data import batching
from bireal_jax.data.normalize import normalize
from bireal_jax.errors import BadInput, lookup
from bireal_jax.importers import readers
from bireal_jax.models import arch
from bireal_jax.running import checkpoint, known, parallel, progress


def stages(config: ConfigDict) -> list[ConfigDict]:
    """The validated configs of all stages; switches JAX to 64 bit if one of them computes in float64.

    Raises:
      BadInput: a value is out of its limits.
    """
    config_lib.validate(config)
    found = list(config_lib.stages(config))
    if config.teacher.weights and not any(stage.loss in losses.DISTILLED for stage in found):
        raise BadInput(
            f"config.teacher.weights is {config.teacher.weights!r}, and the loss {found[-1].loss!r} asks no teacher\n"
            f"set config.loss={losses.DISTILLED[0]}, or leave the weights out: --config.teacher.weights="
        )
    widen(found)
    return found


def widen(stages):
    """Switches JAX to 64 bit if one of them computes in float64."""
    if any(stage.model.dtype == "float64" for stage in stages):
        jax.config.update("jax_enable_x64", True)


def registered(configs: list[ConfigDict]) -> dict[str, str]:
    """Fields of config.model that name what a recipe has registered, in any stage, and the file that has its code."""
    rows = (models.registered(**{name: c.model[name] for name in models.TABLES}) for c in configs)
    return {f"model.{name}": str(Path(file).absolute()) for row in rows for name, file in row.items()}


def check_registered(run: known.Known) -> None:
    """Raises BadInput, with the recipe that registers it, if the network of a run names what is not known here."""
    for name, rows in models.TABLES.items():
        value, file = run.last.model[name], run.registered.get(f"model.{name}", "the recipe of the run")
        if value not in rows():
            raise BadInput(
                f"the run in {run.directory} has config.model.{name}={value!r}, which is registered by {file}\n"
                f"run that first: --config=RECIPE on the command line, build.trained(RUN, recipe=RECIPE) in Python, or "
                "main.load_recipe(Path(RECIPE)) in another recipe"
            )


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


def source(config: ConfigDict) -> data.Source:
    """The data set, normalized as the config says. Raises BadInput if it is not there."""
    c = config.data
    found = data.build(c.name, c.dir, c.image_size, c.resize, c.depth)
    for field, values in (("mean", c.mean), ("std", c.std)):
        if values and len(values) != found.image_shape[-1]:
            raise BadInput(
                f"config.data.{field} has {len(values)} values; {c.name} has {found.image_shape[-1]} channels"
            )
    found = data.hold_out(found, c.held_out) if c.held_out else found
    return dataclasses.replace(found, mean=tuple(c.mean) or found.mean, std=tuple(c.std) or found.std)


def model(config: ConfigDict, source: data.Source) -> tuple[nn.Module, Any]:
    """The model for a data set, and the shapes of its variables.

    Raises:
      BadInput: an unknown name, images of a size that the model cannot take, outputs that are not what labels are, or
        an architecture that is not of the model.
    """
    c = config.model
    _check_task(config, source)
    genes = arch.load(config.arch, c.name, models.sizes(c.name)) if config.arch else ()
    module = models.build(
        c.name, source.num_classes, jnp.dtype(c.dtype), act=c.act, weight=c.weight, latent_init=c.latent_init,
        bn_over=parallel.AXIS if c.sync_bn else c.bn_group or None, decoder=c.decoder, genes=genes,
    )  # fmt: skip
    size, total_stride = source.image_shape[0], module.total_stride
    if size < total_stride:
        raise BadInput(
            f"images of {size} pixels are too small for {c.name}, which divides the size by {total_stride}\n"
            f"use config.data.image_size of {total_stride} or more, or a smaller model such as bireal_tiny"
        )
    try:
        return module, jax.eval_shape(module.init, jax.random.key(0), blank(source))
    except (TypeError, ValueError) as error:  # maps of odd size, halved by a convolution and by a pooling
        below, above = size // total_stride * total_stride, -(-size // total_stride) * total_stride
        if below == above:
            raise
        raise BadInput(
            f"images of {size} pixels do not divide by {total_stride}, as {c.name} needs; use {below} or {above}"
        ) from error


def _of_teacher(config):
    """A config whose model is the teacher, to start from its weights, and what the run knew that trained it, if any."""
    c, weights = ConfigDict(config.to_dict()), config.teacher.weights
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    c.model.name, c.init_from, c.arch = config.teacher.name, weights, ""
    c.model.dtype = auto if config.teacher.dtype == "auto" else config.teacher.dtype
    taught = known.read(Path(weights))
    lookup(models.TABLES["name"](), c.model.name, "model")
    if taught:
        taught.check_network(c, f"config.teacher.weights={weights}, of {config.teacher.name}: it")
        check_registered(taught)
        taught.take(c)
    return c, taught


def teacher(config: ConfigDict, source: data.Source) -> tuple[nn.Module, Any, data.Source]:
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
    module, shapes = model(c, seen)
    return module.clone(name="teacher"), shapes, seen  # a name by which messages know it


def teacher_variables(config: ConfigDict, shapes: Any) -> Any:
    """The variables of the teacher, from config.teacher.weights: as `variables`.

    Raises:
      BadInput: nothing is there, or they are not of that model or of another number of classes.
    """
    name, weights = config.teacher.name, config.teacher.weights
    try:
        return variables(_of_teacher(config)[0], shapes)
    except BadInput as error:
        reason = str(error).split("; train first")[0]  # the way out of a student
        raise BadInput(
            f"config.teacher.weights={weights}, of {name}: {reason}\n"
            f"it must be weights of {name} (config.teacher.name), a file or the workdir of a run that trained it; "
            f"looked in {Path(weights).absolute()}"
        ) from None


def _check_task(config, source):
    """Network, loss and labels: of classes, or of depth."""
    name, depth = config.data.name, source.depth_range is not None
    if bool(config.model.decoder) != depth:
        wanted = (
            f"a map: set config.model.decoder to one of {', '.join(models.DECODERS)}"
            if depth
            else ('classes: set config.model.decoder to ""')
        )
        raise BadInput(f"config.model.decoder is {config.model.decoder!r}; {name} needs {wanted}")
    if (config.loss in losses.OF_DEPTH) != depth:
        known = ", ".join(sorted(n for n in losses.LOSSES if (n in losses.OF_DEPTH) == depth))
        raise BadInput(f"config.loss is {config.loss!r}; for the labels of {name} there are: {known}")
    if config.label_smoothing and config.loss in (*losses.DISTILLED, *losses.OF_DEPTH):
        raise BadInput(
            f"config.label_smoothing is {config.label_smoothing}; the loss {config.loss!r} has no labels to smooth\n"
            "set it to 0.0"
        )


def blank(source: data.Source) -> jax.Array:
    """One image of zeros."""
    return jnp.zeros((1, *source.image_shape))


def variables(
    config: ConfigDict, shapes: Any, fresh: Callable[[], Any] | None = None, source: data.Source | None = None
) -> Any:
    """The variables that config.init_from names: a file for `importers.load`, or the best checkpoint of a workdir.

    Args:
      config: of the stage.
      shapes: of the variables wanted.
      fresh: draws variables for what `adopt` does not find; None where nothing may be drawn, as in evaluation.
      source: the data set of a training that starts from them, to be compared with what the run knew (`known`).

    Raises:
      BadInput: nothing there, or not of this model, or of other classes than a training can go on from.
    """
    path = Path(config.init_from)
    before = known.read(path)
    if before is None and path.exists():
        progress.say(f"note: {path} has arrays alone; normalization, classes and config.model are those given here")
    if path.is_file() or (path.suffix in readers.FORMATS and not path.is_dir()):
        return adopt(importers.load(config.model.name, path), shapes, str(path), fresh)
    if before and source:
        if before.last.model.decoder == config.model.decoder:
            before.check_network(config, f"the run in {path}")
        if note := before.start(config, source):
            progress.say(note)
    if config.model.decoder and not (before and before.last.model.decoder):
        return adopt(trained(path)[1], shapes, str(path), fresh)
    return best_variables(path, shapes)[0]


def adopt(found: Any, shapes: Any, what: str, fresh: Callable[[], Any] | None = None) -> Any:
    """`found` if it has the shapes wanted; of a classifier, where they are a `MapNet`'s, its body as the encoder.

    Nothing is dropped or drawn unsaid: a line names what of the classifier has no place, its head, and how much is
    drawn anew, the decoder.

    Args:
      found: variables.
      shapes: of the variables wanted.
      what: where `found` is from, for messages.
      fresh: draws all variables wanted; None where nothing may be drawn.

    Raises:
      BadInput: any leaf of the encoder is missing, too many or of another shape; the message shows both sides.
    """
    if "encoder" not in shapes["params"] or "encoder" in found["params"]:
        return checkpoint.merge(found, shapes, what)
    if fresh is None:
        raise BadInput(
            f"{what} is a classifier; its weights start the training of a network with a decoder, but there is none to "
            "evaluate\nleave config.init_from empty for the best checkpoint of the workdir"
        )
    params = {name: tree for name, tree in found["params"].items() if name != "head"}
    body = {"params": params, "batch_stats": found["batch_stats"]}
    wanted = {name: shapes[name]["encoder"] for name in body}
    body = checkpoint.merge(body, wanted, f"{what}, its body,")
    drawn = parallel.fetch(fresh())
    taken, there, all_ = (len(jax.tree.leaves(tree)) for tree in (body, found, shapes))
    progress.say(
        f"encoder from {what}: {taken} of its {there} arrays; left there: {there - taken} of its head; "
        f"drawn anew: {all_ - taken}, the decoder"
    )
    return {name: {**drawn[name], "encoder": body[name]} for name in body}


def best_variables(directory: Path, shapes: Any, newest: bool = False) -> tuple[Any, str]:
    """The variables of the best checkpoint of the last stage that a workdir has, and where they come from, in words.

    With `newest` it is the last checkpoint: what evaluations say of a supernet means little.

    Raises:
      BadInput: there is none, it is damaged, or it is not of this model.
    """
    places = sorted(directory.glob("stage_*/checkpoints"), key=lambda p: int(p.parent.name.removeprefix("stage_")))
    for place in reversed(places):
        with checkpoint.Checkpoints(place, read_only=True) as checkpoints:
            if checkpoints.steps():
                best = None if newest else checkpoints.best_step()
                step = best or checkpoints.steps()[-1]
                try:
                    found = checkpoints.restore(step, {"variables": shapes})["variables"]
                    return found, f"{place.parent}, step {step}" + (", the best of its evaluations" if best else "")
                except checkpoint.Damaged as error:
                    raise BadInput(
                        f"damaged checkpoint: {error}\n--mode=verify tells which ones are sound; without "
                        f"{place / str(step)} the best of the others is taken"
                    ) from None
    raise BadInput(f"no checkpoint in {directory}; train first (--mode=train), or set --config.init_from=WEIGHTS")


def trained(directory: str | Path, recipe: str | Path = "") -> tuple[nn.Module, Any, Callable[[jax.Array], jax.Array]]:
    """A trained network, to use: (model, variables, prepare).

        model, variables, prepare = build.trained("runs/digits")
        logits = model.apply(variables, prepare(images))  # images: uint8 [n, h, w, c], as large as in training

    Args:
      directory: the workdir of a run. Its best checkpoint is taken.
      recipe: the file that the run was started with, where it registers estimators or networks of its own. It is run.

    Raises:
      BadInput: no run there, no checkpoint yet, or a damaged one.
    """
    directory = Path(directory)
    if recipe and not Path(recipe).is_file():
        raise BadInput(f"no recipe {recipe}")
    if recipe:
        runpy.run_path(str(recipe))
    run = known.read(directory)
    if run is None or run.source is None:
        missing = "config.json" if run is None else "data.json"
        raise BadInput(f"no run in {directory}: there is no {missing}")
    check_registered(run)
    widen([run.last])
    source = run.source
    module, shapes = model(run.last, source)
    return module, best_variables(directory, shapes)[0], lambda images: normalize(images, source, module.dtype)

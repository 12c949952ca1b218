"""From a config to what it names: data set, model, variables.

All that can be wrong with it shows here, early.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bireal_jax import config as config_lib
from bireal_jax import data, importers, models, registered
from bireal_jax import recipe as recipe_lib
from bireal_jax.binary import losses
from bireal_jax.data.normalize import prepared
from bireal_jax.errors import BadInput, lookup
from bireal_jax.importers import readers, zoo
from bireal_jax.models import arch
from bireal_jax.running import adoption, known, parallel, progress
from bireal_jax.runtime import named


def stages(config: ConfigDict, directory: str | Path = "") -> list[ConfigDict]:
    """The validated configs of all stages; switches JAX to 64 bit if one of them computes in float64.

    Args:
      config: a recipe.
      directory: the workdir of a training. Where it has begun it goes on with the normalization that it began with,
        though what it has started from may be gone, and with its data set, whatever folder it is started from.

    Raises:
      BadInput: a value is out of its limits.
    """
    config_lib.validate(config)
    found = list(config_lib.stages(config))
    gone = config.init_from and not zoo.is_name(config.init_from) and not Path(found[0].init_from).exists()
    if directory and gone and (run := known.read(directory)):
        for stage, seen in zip(found, run.sources, strict=False):  # of other stages is another config: it is refused
            stage.data.mean, stage.data.std = seen.mean, seen.std
    if directory:
        _find_again(found, directory)
    if config.teacher.weights and not any(stage.loss in losses.DISTILLED for stage in found):
        raise BadInput(
            f"config.teacher.weights is {config.teacher.weights!r}, and the loss {found[-1].loss!r} asks no teacher\n"
            f"set config.loss={losses.DISTILLED[0]}, or leave the weights out: --config.teacher.weights="
        )
    widen(found)
    return found


def _find_again(stages, directory):
    """Takes the data set of a run where a relative path leads to it from the folder that the run began in alone."""
    absent = {stage.data.dir for stage in stages if stage.data.dir and not Path(stage.data.dir).exists()}
    if not absent or not (run := known.read(directory)):
        return
    meant = {stage.data.dir for stage in config_lib.stages(run.config)}
    for place in sorted(absent):
        if own := next((Path(dir) for dir in meant if dir.endswith(f"/{Path(place)}") and Path(dir).exists()), None):
            progress.say(f"note: there is no {Path(place).absolute()}; the data set of {run.title} is {own}")
            for stage in stages:
                stage.data.dir = str(own) if stage.data.dir == place else stage.data.dir


def widen(stages):
    """Switches JAX to 64 bit if one of them computes in float64."""
    if any(stage.model.dtype == "float64" for stage in stages):
        jax.config.update("jax_enable_x64", True)


def source(config: ConfigDict, faults: list[str] | None = None) -> data.Source:
    """The data set, normalized as the config says; `faults` as of `data.build`. Raises BadInput if it is not there."""
    c = config.data
    found = data.build(c.name, c.dir, c.image_size, c.resize, c.depth, faults)
    for field, values in (("mean", c.mean), ("std", c.std)):
        if values and len(values) != found.image_shape[-1]:
            raise BadInput(
                f"config.data.{field} has {len(values)} values; {c.name} has {found.image_shape[-1]} channels"
            )
    if c.held_out:
        found = data.hold_out(found, c.held_out)
    elif not len(found.eval):
        found = data.split_off(found, c.val_share, c.val_seed)
    found = normalized(found, c, config.init_from)
    found = data.mirrored(found) if c.mirror else found
    return data.covered(found, c.cutout) if c.cutout else found


def normalized(found: data.Source, c: ConfigDict, weights: str = "") -> data.Source:
    """A data set normalized as config.data, `c`, says, or as for the weights that a run starts from, or as it is."""
    before = known_at(weights) if weights else None
    found = before.normalized(found, c.mean, c.std) if before else found
    return dataclasses.replace(found, mean=tuple(c.mean) or found.mean, std=tuple(c.std) or found.std)


def check_training(config: ConfigDict, source: data.Source) -> None:
    """Raises BadInput for a data set that can be evaluated on alone."""
    if not len(source.train):
        every = source.split == "evaluation"
        way_out = "leave config.data.val_share below 1.0" if every else "put a folder train/ beside val/"
        raise BadInput(
            f"{config.data.name} at config.data.dir={config.data.dir!r} has no training images, only images to "
            f"evaluate on\n--mode=eval takes them; to train, {way_out}"
        )


def counted(config: ConfigDict) -> tuple[data.Source, bool]:
    """A data set to count operations for, and whether it was looked at, where its files alone tell what it is.

    Raises:
      BadInput: an unknown name, or something else in its place.
    """
    c, known_before = config.data, lookup(data.DATASETS, config.data.name, "data set").classes
    if not known_before:
        try:
            return source(config), True
        except BadInput:
            if c.dir and Path(c.dir).exists():
                raise
    return data.stand_in(c.name, c.image_size), bool(known_before)


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
        blocks=c.blocks, widths=c.widths,
    )  # fmt: skip
    size, total_stride = source.image_shape[0], module.total_stride
    if size < total_stride:
        before = known_at(config.init_from) if config.init_from else None
        larger = f"use config.data.image_size of {total_stride} or more"
        way_out = f"{_padded(config, size, total_stride) or larger}, or a smaller model such as bireal_tiny"
        if before and before.last.model.name != c.name:
            way_out = f"to start from {before.title} add {before.fields}"
        raise BadInput(
            f"images of {size} pixels are too small for {c.name}, which divides the size by {total_stride}\n" + way_out
        )
    try:
        return module, jax.eval_shape(lambda key: module.init(key, blank(source)), jax.random.key(0))
    except (TypeError, ValueError) as error:  # maps of odd size, halved by a convolution and by a pooling
        below, above = size // total_stride * total_stride, -(-size // total_stride) * total_stride
        if below == above:
            raise
        line = _padded(config, size, above)
        raise BadInput(
            f"images of {size} pixels do not divide by {total_stride}, as {c.name} needs; use {below} or {above}"
            + (f"\n{line}" if line else "")
        ) from error


def _padded(config, size, wanted):
    """How arrays get another size, which no field gives them; "" of other data sets, which are cropped."""
    if config.data.name != "arrays":
        return ""
    return f"pad them: {data.arrays.padding(size, size, wanted)}, and set config.data.image_size={wanted}"


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
    if config.label_smoothing and config.loss not in losses.SMOOTHED:
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
    """The variables that config.init_from names: a file for `importers.load`, the best checkpoint of a workdir, or a
    network that came with the package.

    Args:
      config: of the stage.
      shapes: of the variables wanted.
      fresh: draws variables for what `adoption.adopt` does not find; None where nothing may be drawn, as in evaluation.
      source: the data set of a training that starts from them, to be compared with what the run knew (`known`).

    Raises:
      BadInput: nothing there, or not of this model, or of other classes than a training can go on from. A head for
        another number of classes is none of these: a training draws one of its own.
    """
    path, before = Path(config.init_from), known_at(config.init_from, config.model.weight)
    ours = zoo.is_name(path)
    if before is None and not path.exists() and named.is_name(path):
        lookup(named.rows(), str(path), "run, file or network of the package")
    if before and source:
        if ours:
            zoo.check(str(path), config.model.name, source.image_shape[-1])
        if before.last.model.decoder == config.model.decoder:
            before.check_network(config, before.title)
        if note := before.start(config, source):
            progress.say(note)
    known_classes = before.source.num_classes if before and before.source else 0
    if ours and fresh and source:
        found = zoo.started(str(path), source, config.batch_size, config.model.act, config.model.weight)
    elif ours:
        found = zoo.network(str(path))[1]
    elif path.is_file() or (path.suffix in readers.FORMATS and not path.is_dir()):
        try:
            found = importers.load(config.model.name, path)
        except importers.Choice as error:
            out = path.with_name(f"{path.name.split('.')[0]}_chosen.npz")
            made = error.command(config.model.name, path, out)
            raise BadInput(f"{made}; then name {out} in its place") from None
        if before is None:
            progress.say(f"note: {path} has arrays alone; normalization, classes and config.model are those given here")
    elif (config.model.decoder and not (before and before.last.model.decoder)) or (
        fresh and source and known_classes not in (0, source.num_classes)
    ):
        found = trained(path)[1]
    else:
        found = known.best_variables(path, shapes)[0]
    network = model(config, source)[0] if fresh and source else None
    return adoption.adopt(found, shapes, str(path), fresh, network, source, config.new_head)


def known_at(weights: str, rule: str = "") -> known.Known | None:
    """What is known of weights that init_from names: of a run, or of a network of the package; None of arrays.

    `rule` is as of `zoo.known_of`. Raises BadInput if what should say it is damaged.
    """
    return zoo.known_of(weights, rule) if zoo.is_name(weights) else known.read(Path(weights))


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
        recipe_lib.execute(Path(recipe))
    run = known.read(directory)
    if run is None or run.source is None:
        missing = "config.json" if run is None else "data.json"
        raise BadInput(f"no run in {directory}: there is no {missing}")
    registered.check(run)
    widen([run.last])
    source = run.source
    module, shapes = model(run.last, source)
    return module, known.best_variables(directory, shapes)[0], partial(prepared, source=source, dtype=module.dtype)


def pretrained(name: str) -> tuple[nn.Module, Any, Callable[[jax.Array], jax.Array]]:
    """A network that came with the package, to use as `trained` gives one: (model, variables, prepare).

        model, variables, prepare = build.pretrained("bireal20_cifar10")

    Args:
      name: a row of the table, which `python -m bireal_jax.runtime --list` prints.

    Returns:
      The network; its weight rule is the recipe's where the float weights were kept. Of others the latent weights are
      ±1 and the rule is "sign", without a scale: exactly the function of the packed file (`importers.zoo`).

    Raises:
      BadInput: no such network, or its files are damaged.
    """
    module, found = zoo.network(name)
    return module, found, partial(prepared, source=zoo.source(name), dtype=module.dtype)

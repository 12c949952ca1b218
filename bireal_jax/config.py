"""The schema of a recipe, and what follows from it: durations, stages, validity.

A recipe starts from `default()`, which is locked: a mistyped name raises where it is written, and a value of another
type is refused.
"""

import copy
import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from bireal_jax import limits, places
from bireal_jax.errors import BadInput, first_line


def default() -> ConfigDict:
    """The schema with the recipe of the released Bi-Real Net code as its values. Durations: steps win over epochs."""
    c = ConfigDict()
    c.seed = 0

    c.model = ConfigDict()
    c.model.name = "bireal18"  # a key of models.MODELS
    c.model.decoder = ""  # a key of models.DECODERS: the network gives a map, such as depth; "": classes
    c.model.blocks = ()  # of a network in stages, such as bireal18: how many in each stage; (): as its name says
    c.model.widths = ()  # and how many channels each stage has
    c.model.act = "approx_sign"  # a key of binarize.DERIVATIVES; or of binarize.REAL, for a real-valued activation
    c.model.weight = "released"  # a key of binarize.WEIGHTS; "real" is one
    c.model.latent_init = "uniform_001"  # a key of models.LATENT_INITS
    c.model.dtype = "float32"  # of the computation; parameters and statistics stay float32 (float64 if this is)
    c.model.sync_bn = False  # batch norm statistics over all devices; False: per device, as in the originals
    c.model.bn_group = 0  # or of so many images each, on any number of devices; 0: of all that are computed together

    c.data = ConfigDict()
    c.data.name = "imagenet2012"  # a key of data.DATASETS
    c.data.dir = ""  # where the data set lies; digits needs none
    c.data.image_size = 224
    c.data.mean = ()  # per channel, of images scaled to [0, 1]; (): the data set's own. 0.5 and 0.5 give [-1, 1]
    c.data.std = ()
    c.data.resize = 0  # evaluation: short side before the centre crop; 0: 8/7 of image_size, the papers' 256 of 224
    c.data.threads = 4  # decoding threads in each process that decodes
    c.data.cutout = 0  # training: a square of so many pixels is covered, of images in memory; 0: none
    c.data.mirror = False  # training: half of the images in memory are mirrored; those in files are anyway
    c.data.val_share = 0.2  # where nothing is set apart for evaluation: so much of each class; 1.0: all of it
    c.data.val_seed = 0  # which of them
    c.data.held_out = 0  # so many of each class of the training images are evaluated on, not trained; for supernets
    c.data.workers = 0  # extra processes that decode; 0: the threads of this one

    c.data.depth = ConfigDict()
    c.data.depth.unit = 0.001  # metres that 1 in a depth file is: 0.001 for millimetres, 1.0 for metres
    c.data.depth.low = 1e-3  # metres; depth that is not between low and high does not count
    c.data.depth.high = 10.0
    c.data.depth.zoom = 1.5  # training: a part of 1 / zoom of each side is shown at full size, at its depth / zoom
    c.data.depth.crop = ()  # (top, bottom, left, right) in pixels of the map that is evaluated; (): all of it

    c.batch_size = 512  # images per step, over all devices and hosts
    c.accumulate = 1  # a device computes its images in so many parts one after the other, to take less memory
    c.remat = False  # the backward pass computes again all but the convolutions, to take less memory
    c.deterministic = False  # the same bits on 1, 2, 4 and 8 devices, by 8 logical replicas, and on GPUs every time
    c.call_steps = "auto"  # of images in memory: at most so many steps in one call; "auto": 100, 1 on a CPU
    c.total_epochs = 256.0
    c.total_steps = 0
    c.label_smoothing = 0.1
    c.loss = "cross_entropy"  # a key of losses.LOSSES

    c.teacher = ConfigDict()  # the frozen network that the losses "distributional" and "distilled" ask
    c.teacher.name = "resnet34"  # a key of models.MODELS
    c.teacher.weights = ""  # of it: as init_from
    c.teacher.temperature = 4.0  # "distilled": logits of both are divided by it
    c.teacher.share = 0.5  # "distilled": so much of the loss is the teacher's, the rest the labels'
    c.teacher.dtype = "auto"  # of its computation; "auto": bfloat16, float32 where there is no accelerator

    c.optim = ConfigDict()
    c.optim.name = "adam"  # a key of optim.OPTIMIZERS
    c.optim.lr = 1e-3
    c.optim.lr_end = 0.0  # where "linear" and "cosine" end
    c.optim.schedule = "linear"  # a key of optim.SCHEDULES
    c.optim.milestones = ()  # epochs at which the schedule "steps" divides the rate by 10
    c.optim.warmup_epochs = 0.0
    c.optim.warmup_steps = 0
    c.optim.weight_decay = 0.0
    c.optim.decay_on = ("binary", "decay")  # labels (optim.LABELS) that weight decay acts on
    c.optim.binary_lr = 1.0  # the rate of binary weights is so many times lr
    c.optim.gradient_floor = 0.0  # a binary filter's gradient is at least so many times as long as it (OvSW: 0.04)
    c.optim.silent_decay = 0.0  # decay of binary weights alone that have hardly flipped of late (OvSW: 9e-4)
    c.optim.latent_clip = 0.0  # latent weights are kept within ± this; 0: no limit
    c.optim.frozen = ""  # regular expression: parameters whose path it is found in are not trained
    c.optim.binary = ""  # a key of bop.BOPS: trains binary weights that have no latent ones, with model.weight "direct"
    c.optim.bop = ConfigDict()  # each ("constant", a), ("linear", from, to), or ("tenth", a, n), a tenth every n epochs
    c.optim.bop.gamma = ("constant", 1e-4)  # share of the new gradient in its average
    c.optim.bop.threshold = ("constant", 1e-8)  # a stronger pull of that average flips a weight
    c.optim.bop.sigma = ("constant", 1e-3)  # share of the new squared gradient; second order only
    c.ema_decay = 0.0  # 0: off; else evaluation uses this moving average of the variables

    c.log_epochs = 0.04  # 100 steps of ImageNet at batch 512
    c.log_steps = 0
    c.eval_epochs = 1.0
    c.eval_steps = 0
    c.save_epochs = 1.0
    c.save_steps = 0
    c.skip_nonfinite = 0  # so many steps in a row may give nan or inf; their updates are skipped. 0: the first stops
    c.watchdog_seconds = 600.0  # the command ends itself when a step or a batch takes so long; 0: never
    c.keep_last = 2  # checkpoints kept, beside the best one
    c.profile_steps = 0  # trace that many steps, from the 10th on, into workdir/profile
    c.arch = ""  # a best_arch.json, for models of models.SEARCHED: the network that a search found
    c.init_from = (
        ""  # what to start from or to evaluate: a workdir, a weights file, or a network of `bireal-run --list`
    )
    c.new_head = False  # the head is drawn anew, of init_from, too; of another number of classes it is in any case
    c.reinit_step2 = False  # the second stage draws its latent weights anew instead of taking those of the first

    c.search = ConfigDict()  # --mode=search, on the supernet in the workdir init_from; of MetaPruning where it has them
    c.search.algorithm = "evolve"  # a key of search.run.ALGORITHMS
    c.search.cost = ""  # a key of the costs of the space; "": the first. MetaPruning: flops, macs; EBN: ops, bops
    c.search.latency = ""  # a YAML table of latencies, which are the cost then: see search.latency
    c.search.max_cost = 0.0  # the budget, in millions of operations, or in the unit of the table
    c.search.min_cost = 0.0
    c.search.population = 50  # candidates of a generation
    c.search.generations = 20  # the first one, random, included
    c.search.parents = 10  # the best ones so far, from which children come
    c.search.mutations = 25  # children of each kind; random candidates fill up what is missing
    c.search.crossovers = 25
    c.search.mutate_prob = 0.1  # of each gene
    c.search.repair = True  # children over budget are changed until they are within; False: discarded, as in the papers
    c.search.bn_batches = 100  # training batches on which batch norm is calibrated for each candidate
    c.search.together = 0  # candidates at a time, in one program; 0: one on each device

    # Dicts of overrides of the above, one a stage: {"name": "clip", "optim.lr": 0.01}; none: one stage. "share": 0.25
    # takes so much of total_epochs or total_steps, which are of each stage otherwise.
    c.stages = ()
    return c.lock()


PATHS = ("data.dir", "init_from", "teacher.weights", "search.latency")  # "" where there is none
WHOLE = ("arch", "init_from", "new_head", "stages", "reinit_step2")  # fields of the run that no stage overrides


def validate(config: ConfigDict) -> None:
    """Raises BadInput for the first value that is out of its limits, in any stage."""
    for i, overrides in enumerate(config.stages):
        if not isinstance(overrides, Mapping):
            raise BadInput(f"config.stages[{i}] is {overrides!r}; it must be a dict of overrides")
        if "share" in overrides and not (type(overrides["share"]) is float and 0 < overrides["share"] <= 1):
            raise BadInput(
                f"stage {stage_name(config, i)!r}: its share is {overrides['share']!r}; above 0.0, up to 1.0"
            )
        whole = [f for f in overrides if f in WHOLE or f.startswith(("teacher.", "search."))]
        if whole:
            raise BadInput(f"stage {stage_name(config, i)!r}: {whole[0]} is of the whole run; set it outside")
    if config.reinit_step2 and len(config.stages) < 2:
        raise BadInput("config.reinit_step2 is True, and there is no second stage; leave it False, or add stages")
    for stage in stages(config):
        fields = flat(stage.to_dict())
        for field, kind in flat(default().to_dict()).items():
            limits.check_kind(field, fields[field], kind)
        for field, (test, wanted) in limits.LIMITS.items():
            if not test(fields[field]):
                raise BadInput(f"config.{field} is {fields[field]}; it must be {wanted}")
        for field, value in fields.items():
            limits.check_size(field, value)
        if stage.model.sync_bn and (stage.model.bn_group or stage.deterministic):
            raise BadInput(
                "config.model.sync_bn normalizes over all devices, whatever their number: it goes neither with "
                "config.model.bn_group nor with config.deterministic\nleave it False; bn_group says how many images"
            )
        if stage.total_steps == 0 and stage.total_epochs == 0:
            raise BadInput(
                "config.total_steps and config.total_epochs are both 0; set one to the length of the training"
            )


def get(config: ConfigDict, field: str) -> Any:
    """config.optim.lr for "optim.lr"."""
    for part in field.split("."):
        config = config[part]
    return config


def check_field(field: str, config: ConfigDict, where: str = "") -> None:
    """Raises BadInput, with the nearest field there is, unless config.<field> exists."""
    if field not in flat(config.to_dict()):
        close = nearest(field, config)
        hint = f"; did you mean config.{close}?" if close else ""
        if field.split(".")[-1] in CLASSES:
            hint = "; the classes are those of the data set: config.data.name and config.data.dir"
        raise BadInput(f"{where}no field config.{field}{hint}")


CLASSES = ("num_classes", "n_classes", "classes", "num_labels")
# What others call a field.
CALLED = {
    "epochs": "total_epochs", "num_epochs": "total_epochs", "steps": "total_steps", "num_steps": "total_steps",
    "train_steps": "total_steps", "batch": "batch_size", "bs": "batch_size", "learning_rate": "optim.lr",
    "optimizer": "optim.name", "wd": "optim.weight_decay", "freeze": "optim.frozen", "scheduler": "optim.schedule",
    "dataset": "data.name", "data": "data.dir", "path": "data.dir", "root": "data.dir", "data_dir": "data.dir",
    "size": "data.image_size", "split": "data.val_share", "val_split": "data.val_share", "num_workers": "data.workers",
    "model": "model.name", "network": "model.name", "precision": "model.dtype", "weights": "init_from",
    "pretrained": "init_from", "checkpoint": "init_from", "resume": "init_from", "teacher": "teacher.weights",
}  # fmt: skip


def nearest(field: str, config: ConfigDict) -> str:
    """The field that is meant by a name that is none, mistyped or another program's, or ""."""
    known, last = list(flat(config.to_dict())), field.split(".")[-1]
    same = [name for name in known if name.split(".")[-1] == last]
    return CALLED.get(last) or (same or difflib.get_close_matches(field, known, 1) or [""])[0]


def stages(config: ConfigDict) -> Iterator[ConfigDict]:
    """The config of each stage in turn."""
    return (stage(config, i) for i in range(max(1, len(config.stages))))


def stage(config: ConfigDict, index: int) -> ConfigDict:
    """The config of stage `index`: the overrides of config.stages[index] applied to the rest, `~` in paths expanded.

    Raises:
      BadInput: an override names no field, or has another type than the field; a path that can be none.
    """
    result = ConfigDict(copy.deepcopy(config.to_dict()))
    result.stages = ()
    result.lock()
    overrides = dict(config.stages[index]) if config.stages else {}
    overrides.pop("name", None)
    share = overrides.pop("share", None)
    for field in overrides:
        check_field(field, config, f"stage {stage_name(config, index)!r}: ")
    try:
        result.update_from_flattened_dict(overrides)
        if share is not None:
            result.total_epochs *= share
            result.total_steps = result.total_steps and max(1, round(result.total_steps * share))
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"stage {stage_name(config, index)!r}: {first_line(error)}") from None
    for field in PATHS:
        if named := get(result, field):
            result.update_from_flattened_dict({field: str(places.local(named, f"config.{field}"))})
    return result


def stage_name(config: ConfigDict, index: int) -> str:
    """The `name` of a stage, or "train" where there are no stages."""
    return config.stages[index].get("name", f"stage {index}") if config.stages else "train"


def unheard(config: ConfigDict, given: Collection[str]) -> list[str]:
    """Fields that a command line sets and some stages set for themselves, in a line each.

    Args:
      config: with what was given.
      given: fields, as "optim.lr".

    Raises:
      BadInput: one would do nothing, since all stages set it, or since it is a duration in epochs and steps win.
    """
    notes, named = [], [(stage_name(config, i), overrides) for i, overrides in enumerate(config.stages)]
    for field in given:
        own = [f"{name!r} {overrides[field]}" for name, overrides in named if field in overrides]
        said = f"config.{field}={get(config, field)}"
        if own and len(own) == len(named):
            raise BadInput(
                f"{said} would do nothing: every stage of the recipe has its own ({', '.join(own)})\n"
                "change config.stages in a recipe of yours, which starts from this one (the docs, page 'Your images')"
            )
        if own:
            notes.append(f"{said} leaves out the stages that have their own ({', '.join(own)})")
        prefix = field.removesuffix("_epochs")
        if prefix != field and get(config, field) and any(get(stage, f"{prefix}_steps") for stage in stages(config)):
            raise BadInput(f"{said} would do nothing: config.{prefix}_steps is set, and steps win; set it, or to 0")
    return [f"note: {note}" for note in notes]


def steps(config: ConfigDict, prefix: str, num_train: int) -> int:
    """A duration of the config in steps: config.<prefix>_steps, or else config.<prefix>_epochs of num_train images.

    A duration above zero is at least one step. `prefix` is a field, "total" or "optim.warmup".

    Raises:
      BadInput: more steps than can be counted.
    """
    exact, epochs = get(config, f"{prefix}_steps"), get(config, f"{prefix}_epochs")
    count = epochs / config.batch_size * num_train
    if exact > limits.MOST:
        raise BadInput(f"config.{prefix}_steps is {exact}; at most {limits.MOST} are possible")
    if not exact and count > limits.MOST:
        raise BadInput(
            f"config.{prefix}_epochs is {epochs:g}, which makes {count:.3g} steps; at most {limits.MOST} are possible"
        )
    return exact or (max(1, round(epochs * num_train / config.batch_size)) if epochs else 0)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 0.001, ...} of a tree of fields."""
    result = {}
    for key, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            value = dict(enumerate(value))
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result

"""The queue of the campaign: what is trained, in which order, and what of it is tried where `--small` is given."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

RECIPE = "experiments/cifar/recipe.py"
SGD = "configs/cifar10_sgd.py"
# Of every training with latent weights; a run is saved at a signal, and every ten epochs
CARD = ("model.dtype=bfloat16", "log_epochs=1.0", "save_epochs=10.0")
TINY = (
    "data.name=digits", "data.image_size=8", "model.dtype=float32", "model.name=bireal_tiny", "total_epochs=1.0",
    "batch_size=64", "optim.warmup_epochs=0.0", "log_epochs=1.0", "eval_epochs=0.0", "save_epochs=1.0",
)  # fmt: skip
FEW = ("data.held_out=5", "total_epochs=1.0")
SEARCH = (
    "search.generations=1",
    "search.population=4",
    "search.mutations=2",
    "search.crossovers=2",
    "search.bn_batches=2",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the command.

    Attributes:
      name: of its workdir.
      recipe: file and variant.
      fields: FIELD=VALUE of the recipe; "{out}" is where the workdirs lie.
      small: the recipe that is tried instead, "" for the same one, and its fields.
      after: jobs whose results it needs.
      mode: of the command.
      seed: of the run.
      result: whether its accuracy says something: not of a supernet, whose evaluation is of one network of many.
    """

    name: str
    recipe: str
    fields: tuple[str, ...] = ()
    small: tuple[str, tuple[str, ...]] = ("", TINY)
    after: tuple[str, ...] = ()
    mode: str = "train"
    seed: int = 0
    result: bool = True

    def words(self, out: Path, data: str, small: bool) -> list[str]:
        """Arguments of `python -m bireal_jax.main`."""
        recipe, fields = (self.small[0] or self.recipe, self.small[1]) if small else (self.recipe, self.fields)
        there = [f"data.dir={data}"] if data and not small else []
        given = [*(field.format(out=out) for field in fields), *there, f"seed={self.seed}"]
        return [
            f"--config={recipe}", *(f"--config.{field}" for field in given), f"--workdir={out / self.name}",
            f"--mode={self.mode}",
        ]  # fmt: skip


def _sgd(name, seed=0, **more):
    return Job(f"{name}_s{seed}" if seed else name, f"{SGD}:{name}", CARD, seed=seed, **more)


def _three(name, first, second, third, small):
    """Supernet, search, training of what was found; `small`: recipes of the same three on digits."""
    supernet, search, retrain = small
    begin, found = "init_from={out}/" + f"{name}_supernet", "arch={out}/" + f"{name}_search/best_arch.json"
    return [
        Job(f"{name}_supernet", f"{RECIPE}:{first}", (), (supernet, FEW), result=False),
        Job(f"{name}_search", f"{RECIPE}:{second}", (begin,), (search, (begin, "data.held_out=5", *SEARCH)),
            (f"{name}_supernet",), "search"),
        Job(name, f"{RECIPE}:{third}", (found, "log_epochs=1.0"), (retrain, (found, "total_epochs=1.0")),
            (f"{name}_search",)),
    ]  # fmt: skip


# What a ResNet-20 is worth with what, by 60 epochs each, beside Hardtanh and the rate of binary weights threefold
BASE = ("model.name=clip20", "optim.binary_lr=3.0")
SHORT = {
    "": (),
    "rate1": ("optim.binary_lr=1.0",),
    "rate1_decay1e-4": ("optim.binary_lr=1.0", "optim.weight_decay=0.0001"),
    "decay1e-4": ("optim.weight_decay=0.0001",),
    "adam": ("optim.name=adam", "optim.lr=0.001", "optim.binary_lr=1.0", "optim.weight_decay=0.0"),
    "prelu": ("model.name=prelu20",),
    "maxout": ("model.name=maxout20",),
    "rprelu": ("model.name=rprelu20",),
    "recu": ("model.name=recu20",),
    "ste": ("model.act=ste",),
    "tanh": ("model.act=tanh",),
    "standardized": ("model.weight=standardized",),
}
DIRECT = ("model.act=ste", "data.mean=(0.5,)", "data.std=(0.5,)")
ONE_EPOCH = ("total_epochs=1.0", "eval_epochs=0.0")
STEPS = ("configs/digits_two_step.py", ONE_EPOCH)
JOBS = [
    _sgd("r20"), _sgd("r18"), _sgd("vgg"),
    *(_sgd(name, seed) for seed in (1, 2) for name in ("r20", "r18", "vgg")),
    # What the recipe's rate of binary weights and RPReLU are worth, one at a time
    *(Job(f"r20_rate{rate}", f"{SGD}:r20", (*CARD, f"optim.binary_lr={rate}.0")) for rate in (3, 10)),
    *(Job(f"r20_{name}", f"{SGD}:r20", (*CARD, f"model.name={name}20")) for name in ("clip", "prelu", "maxout")),
    *(
        Job("_".join(filter(None, ("short", name))), f"{SGD}:r20",
            (*CARD, "total_epochs=60.0", "optim.warmup_epochs=2.0", "eval_epochs=60.0", "save_epochs=60.0", *BASE,
             *fields))
        for name, fields in SHORT.items()
    ),
    *(_sgd(f"{name}_quick") for name in ("r20", "r18", "vgg")),
    Job("binarynet_bop", "configs/bop_binarynet.py", CARD, ("", (*TINY, *DIRECT))),
    Job("xnor", f"{RECIPE}:xnor", CARD), Job("plain", f"{RECIPE}:plain", CARD),
    _sgd("r18_teacher", small=("configs/digits_teacher.py", ONE_EPOCH)),
    Job("react", f"{RECIPE}:react", (*CARD, "teacher.weights={out}/r18_teacher"),
        ("configs/digits_react.py", ("teacher.weights={out}/r18_teacher", *ONE_EPOCH)), ("r18_teacher",)),
    Job("step", f"{RECIPE}:step", CARD, STEPS),
    *_three("ebn", "ebn_supernet", "ebn_search", "ebn_retrain",
            [f"configs/ebn_{part}.py:digits" for part in ("supernet", "search", "retrain")]),
    *_three("prune", "prune_train", "prune_search", "prune_retrain",
            [f"configs/metaprune_{part}.py:digits" for part in ("train", "search", "retrain")]),
    # The paper's grid on bireal20: 2 derivatives, 3 weight rules, 2 optimizers, 3 seeds, 50 epochs
    *(
        Job(f"grid_{act}_{weight}_{optimizer}_{seed}", f"{SGD}:r20", (
                *CARD, "model.name=bireal20", f"model.act={act}", f"model.weight={weight}", f"optim.name={optimizer}",
                f"optim.lr={lr}", "optim.binary_lr=1.0", "total_epochs=50.0"),
            ("", (*TINY, f"model.act={act}", f"model.weight={weight}", f"optim.name={optimizer}", f"optim.lr={lr}")),
            seed=seed)
        for seed in (0, 1, 2) for optimizer, lr in (("sgd", 0.1), ("adam", 0.001))
        for weight in ("sign", "magnitude_aware", "released") for act in ("ste", "approx_sign")
    ),
]  # fmt: skip


def chosen(only: Sequence[str]) -> list[Job]:
    """The jobs of these names, or all that begin with NAME_ where NAME ends in a star, in the order of the queue.

    Raises:
      ValueError: there is none of a name; the message lists them.
    """
    for name in only:
        if not any(_meant(job, name) for job in JOBS):
            raise ValueError(
                f"no job {name!r}; known: {', '.join(job.name for job in JOBS if 'grid' not in job.name)}, grid*"
            )
    return [job for job in JOBS if not only or any(_meant(job, name) for name in only)]


def _meant(job, name):
    return job.name == name or (name.endswith("*") and job.name.startswith(name[:-1]))

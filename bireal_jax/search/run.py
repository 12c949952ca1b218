"""The search of a recipe: candidates of a supernet, scored on examples that it was not trained on."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bireal_jax import build, models, places, registered
from bireal_jax import config as config_lib
from bireal_jax.binary import losses
from bireal_jax.binary.layers import MOMENTUM
from bireal_jax.data import Source, batching
from bireal_jax.data.normalize import normalize
from bireal_jax.errors import BadInput, lookup
from bireal_jax.running import known, metrics, parallel, progress, workdir
from bireal_jax.search import evolve, latency, pareto, record, spaces
from bireal_jax.search.evolve import Genes, Problem, Settings
from bireal_jax.search.record import Candidate

ALGORITHMS = {"evolve": evolve.evolve, "nsga2": pareto.nsga2, "ga": pareto.ga}
UNITS = {"flops": "M FLOPs", "macs": "M MACs", "ops": "M OPs", "bops": "M BOPs"}
SETTINGS = ("population", "generations", "parents", "mutations", "crossovers", "mutate_prob", "repair")


def run(config: ConfigDict, directory: Path) -> Candidate:
    """Searches, from wherever an earlier start of the same search was cut off, and leaves the files of `record`.

    Args:
      config: a recipe of a supernet; config.search says how, config.init_from is the workdir that it was trained in.
      directory: the workdir of the search.

    Returns:
      The best network. Estimators and normalization are those that the supernet was trained with.

    Raises:
      BadInput: the config, the supernet or the budget cannot be used.
    """
    config, directory = build.stages(config)[-1], places.workdir(directory)
    name = config.model.name.removesuffix("_supernet")
    trained = _check(config)
    source = build.source(config)
    trained.check_classes(source, f"the supernet in {config.init_from}")
    source = trained.meant(source)
    if apart := trained.take(config):
        progress.say(f"note: the supernet's counts: {known.shown(apart)}")
    module, shapes = build.model(config, source)
    variables, origin = known.best_variables(Path(config.init_from), shapes, newest=True)
    space = spaces.of(name, source.image_shape, source.num_classes)
    problem, unit = _problem(config.search, space)
    problem.check()
    scorer = Scorer(module, variables, source, config)
    settings = Settings(**{field: config.search[field] for field in SETTINGS})
    least, most = (problem.cost(problem.extreme(sign)) for sign in (1, -1))
    progress.say(
        f"{name}: {settings.generations} generations of {settings.population}, budget {problem.low:g} to "
        f"{problem.high:g} {unit}, networks from {least:.4g} to {most:.4g}\n"
        f"supernet: {origin}; {len(source.eval):,} held-out images, "
        f"batch norm calibrated on {config.search.bn_batches} batches of {config.batch_size}"
    )
    if not (Path(config.init_from) / "result.json").exists():
        progress.say(f"note: the training in {config.init_from} has not ended, and its scores tell little")
    if scored := len(record.load(directory / record.STATE)):
        progress.say(f"resuming: {scored} candidates were scored before")
    with workdir.claim(directory, config, [source]):
        top = record.search(
            problem, ALGORITHMS[config.search.algorithm], scorer, directory, space=name, settings=settings,
            seed=config.seed, values=space.values, together=scorer.count, judge=origin,
            say=lambda candidate: _say(candidate, unit, space.values(candidate.genes)),
        )  # fmt: skip
        found = list(record.load(directory / record.STATE).values())
        try:
            path = directory / "candidates.png"
            record.picture(found, (problem.low, problem.high), unit, path, "held-out top-1 (%)")
        except BadInput as error:
            progress.say(f"no picture: {error}")
    progress.say(
        f"best of {len(found)}: top-1 {top.score:.2f} % held out, {top.cost:.4g} {unit}, "
        f"{' '.join(map(str, space.values(top.genes)))}\n{directory / 'best_arch.json'}"
    )
    return top


def _check(config):
    """What can be wrong before anything is read; gives what the supernet was trained with."""
    if config.model.name not in models.SUPERNETS:
        raise BadInput(
            f"{config.model.name} is no supernet; known: {', '.join(sorted(models.SUPERNETS))}\n"
            "recipes of searches: configs/ebn_search.py, configs/metaprune_search.py"
        )
    lookup(ALGORITHMS, config.search.algorithm, "algorithm")
    if jax.process_count() > 1:
        raise BadInput(f"a search runs on one host, and there are {jax.process_count()}; start it on one")
    if not config.data.held_out:
        raise BadInput(
            "config.data.held_out is 0, so candidates would be chosen on the evaluation set\n"
            "train the supernet and search with the same number, 50 in MetaPruning"
        )
    trained = known.read(Path(config.init_from)) if config.init_from else None
    if trained is None:
        raise BadInput(f"no supernet at config.init_from={config.init_from!r}; set it to the workdir of its training")
    registered.check(trained)
    for field in ("model.name", "data.name", "data.held_out", "data.image_size"):
        theirs = config_lib.get(trained.last, field)
        if theirs != config_lib.get(config, field):
            raise BadInput(
                f"the supernet in {config.init_from} was trained with config.{field}={theirs!r}, not "
                f"{config_lib.get(config, field)!r}; search with the same"
            )
    return trained


def _problem(c, space) -> tuple[Problem, str]:
    """What is searched, and the unit of its cost."""
    if not c.max_cost:
        raise BadInput("config.search.max_cost is 0; set it to the budget")
    if c.latency:
        cost, unit = latency.cost(space, Path(c.latency)), f"by {Path(c.latency).name}"
    else:
        kind = c.cost or space.costs[0]
        cost, unit = getattr(space, lookup(dict.fromkeys(space.costs, kind), kind, "cost")), UNITS[kind]
    return Problem(space.sizes, cost, c.max_cost, c.min_cost), unit


def _say(candidate, unit, values):
    progress.say(
        f"{candidate.generation:3} {candidate.source:9}  top-1 {candidate.score:6.2f} %  {candidate.cost:9.4g} {unit}  "
        f"{' '.join(map(str, values))}"
    )


class Scorer:
    """Top-1 in percent of candidates on source.eval, with batch norm calibrated for each one on training batches.

    Statistics start at 0 and are moving averages over `bn_batches` augmented training batches, the same ones for every
    candidate, divided by 1 - momentum^batches, which makes them averages of what was seen. The authors start at mean 0
    and variance 1, which at their 100 batches is the same to 3e-5.

    Attributes:
      count: so many candidates are scored at a time, by one program, divided over the local devices.
      traced: how often a program was traced: twice in all, once to calibrate and once to score.
    """

    def __init__(self, module: nn.Module, variables: Any, source: Source, config: ConfigDict):
        self.source, self.config, self.traced = source, config, 0
        wanted = config.search.together or jax.local_device_count()
        _, self.count = parallel.layout(wanted)
        self.params, self.zeros = variables["params"], jax.tree.map(np.zeros_like, variables["batch_stats"])
        unbiased, task = 1 - MOMENTUM**config.search.bn_batches, metrics.CLASSES

        @parallel.full_precision
        def calibrate(stats, genes, params, images):
            self.traced += 1
            images = normalize(images, source, module.dtype)
            variables = {"params": params, "batch_stats": stats}
            _, updated = module.apply(variables, images, train=True, genes=genes, mutable=["batch_stats"])
            return updated["batch_stats"]

        @parallel.full_precision
        def count(stats, genes, params, batch):
            self.traced += 1
            stats = jax.tree.map(lambda leaf: leaf / unbiased, stats)
            images = normalize(batch["image"], source, module.dtype)
            logits: Any = module.apply({"params": params, "batch_stats": stats}, images, genes=genes)
            return task.sums(logits, batch["label"], losses.cross_entropy(logits, batch["label"]), batch["mask"])

        # made by a program, and so where the results of the others are: from another place they compile twice
        self.start = parallel.networks(lambda genes: jax.tree.map(jnp.asarray, self.zeros), self.count, (False,))
        shared = (False, False, True, True)
        self.calibrate = parallel.networks(calibrate, self.count, shared, donate=True)
        self.sums = parallel.networks(count, self.count, shared)

    def __call__(self, group: Sequence[Genes]) -> list[float]:
        """Scores of at most `count` candidates."""
        genes = jnp.asarray([*group, *[group[-1]] * (self.count - len(group))])
        size, loading = (
            self.config.batch_size,
            {"threads": self.config.data.threads, "workers": self.config.data.workers},
        )
        stats, totals = self.start(genes), {}
        training = batching.train_batches(self.source, size, self.config.seed, 0, devices=1, **loading)
        for batch in itertools.islice(training, self.config.search.bn_batches):
            stats = self.calibrate(stats, genes, self.params, batch["image"][0])
        for batch in batching.eval_batches(self.source, size, devices=1, **loading):
            sums = self.sums(stats, genes, self.params, jax.tree.map(lambda part: part[0], batch))
            totals = {name: totals.get(name, 0.0) + np.asarray(value, np.float64) for name, value in sums.items()}
        if (totals["seen"] != len(self.source.eval)).any():
            raise RuntimeError(f"scoring saw {totals['seen']} of {len(self.source.eval)} examples")
        if not np.isfinite(totals["loss"]).all():  # the largest of outputs that are NaN is anything
            raise BadInput("a candidate's outputs are not finite; the supernet's training must have failed")
        return [float(value) for value in (100 * totals["top1"] / totals["seen"])[: len(group)]]

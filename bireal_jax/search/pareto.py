"""pymoo's genetic algorithms on the interface of `evolve`: NSGA-II for score against cost, and a GA for score alone."""

from typing import Any

import numpy as np

from bireal_jax.errors import BadInput
from bireal_jax.search.evolve import Algorithm, Genes, Problem, Settings, draw


def nsga2(problem: Problem, settings: Settings, seed: int) -> Algorithm:
    """NSGA-II (Deb et al., 2002) of pymoo: error and cost are both minimized, within the budget."""
    return _run("nsga2", problem, settings, seed)


def ga(problem: Problem, settings: Settings, seed: int) -> Algorithm:
    """pymoo's genetic algorithm: the error is minimized, within the budget."""
    return _run("ga", problem, settings, seed)


def _run(name, problem: Problem, settings: Settings, seed: int) -> Algorithm:
    """Asks pymoo for populations; candidates over budget and known ones are not scored, but count as its own."""
    rng = np.random.default_rng([seed, 0])
    first = [genes for genes in (draw(problem, rng) for _ in range(settings.population)) if genes is not None]
    if not first:  # nothing is within the budget
        return
    algorithm, scores = _setup(name, problem, settings, seed, first), {}
    for _ in range(settings.generations):
        asked: Any = algorithm.ask()
        rows = [tuple(int(v) for v in row) for row in asked.get("X")]
        excess = np.array([problem.excess(genes) for genes in rows])
        fresh: dict[Genes, str] = dict.fromkeys(
            (g for g, over in zip(rows, excess, strict=True) if not over and g not in scores), name
        )
        if fresh:
            scores |= zip(fresh, (yield fresh), strict=True)
        errors = [-scores.get(genes, 0.0) for genes in rows]  # of those over budget the excess alone matters
        costs = [problem.cost(genes) for genes in rows]
        asked.set("F", np.array([errors, costs] if name == "nsga2" else [errors], float).T)
        asked.set("G", excess[:, None])
        asked.set("CV", excess[:, None])
        asked.apply(lambda one: one.evaluated.update({"F", "G", "CV"}))
        algorithm.tell(infills=asked)


def _setup(name, problem, settings, seed, first):
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.problem import Problem as Box
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
    except ImportError:
        raise BadInput(f"the algorithm {name!r} needs pymoo; pip install -e '.[search]' where the package is") from None
    high = np.asarray(problem.sizes) - 1
    box = Box(n_var=len(high), n_obj=2 if name == "nsga2" else 1, n_ieq_constr=1, xl=0, xu=high, vtype=int)
    whole = {"vtype": float, "repair": RoundingRepair()}
    algorithm = (NSGA2 if name == "nsga2" else GA)(
        pop_size=settings.population, sampling=np.array(first), eliminate_duplicates=True,
        crossover=SBX(prob=0.9, eta=3, **whole), mutation=PM(eta=3, **whole),
    )  # fmt: skip
    return algorithm.setup(box, seed=seed, termination=("n_gen", settings.generations + 1))

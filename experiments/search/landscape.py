"""Synthetic searches: exact MobileNetV1 FLOPs; an error smooth in the widths, with interactions and noise."""

import numpy as np

from bireal_jax.search.evolve import Problem
from bireal_jax.search.spaces import Widths

SPACE = Widths("mbv1")


def landscape(seed):
    """error(genes) in percent, about 30 for the widest network and 65 for the narrowest, another one for each seed."""
    rng = np.random.default_rng(seed)
    gains, bends = rng.dirichlet(np.full(13, 3.0)) * 35, rng.uniform(1.5, 4.0, 13)
    pairs = rng.normal(0, 1.5, (13, 13)) * (rng.random((13, 13)) < 0.25)

    def error(genes):
        scale = (10 + 3 * np.asarray(genes)) / 100
        shortfall = (np.exp(-bends * scale) - np.exp(-bends)) / (np.exp(-bends * 0.1) - np.exp(-bends))
        noise = np.random.default_rng([seed, *genes]).normal(0, 0.15)  # of a finite validation set, fixed
        return float(30 + gains @ shortfall + (scale - 0.55) @ pairs @ (scale - 0.55) + noise)

    return error


def problem(budget):
    """MobileNetV1 within so many MFLOPs, the authors' count."""
    return Problem(SPACE.sizes, SPACE.flops, budget)


def best(algorithm, error, evaluations):
    """The least error among the first so many candidates."""
    seen, generation = [], next(algorithm)
    while True:
        scores = {genes: -error(genes) for genes in generation}
        seen += scores.values()
        if len(seen) >= evaluations:
            return -max(seen[:evaluations])
        generation = algorithm.send(list(scores.values()))

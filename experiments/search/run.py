"""Evolution against pymoo's constrained GA on synthetic landscapes; writes results.csv.

python -m experiments.search.run [--landscapes 8] [--budgets 330 150 60 45 41]
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from bireal_jax import output
from bireal_jax.search import pareto
from bireal_jax.search.evolve import Settings, evolve
from experiments.search.landscape import best, landscape, problem

EVALUATIONS = 1000
ALGORITHMS = {
    "evolve": lambda p, seed: evolve(p, Settings(), seed),
    "evolve, no repair": lambda p, seed: evolve(p, Settings(repair=False), seed),
    "pymoo GA": lambda p, seed: pareto.ga(p, Settings(generations=200), seed),
}


def main() -> None:
    """Runs every algorithm on every landscape and budget, prints means, writes one row a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--landscapes", type=int, default=8)
    parser.add_argument("--budgets", type=float, nargs="+", default=[330.0, 150.0, 60.0, 45.0, 41.0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.csv")
    arguments = parser.parse_args()
    rows = []
    for budget in arguments.budgets:
        for name, make in ALGORITHMS.items():
            errors = [
                best(make(problem(budget), seed), landscape(seed), EVALUATIONS) for seed in range(arguments.landscapes)
            ]
            rows += [(budget, name, seed, f"{error:.4f}") for seed, error in enumerate(errors)]
            print(f"{budget:g} M  {name:18} {np.mean(errors):.2f}", flush=True)
    with open(arguments.out, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("budget_mflops", "algorithm", "landscape", "error"), *rows])


if __name__ == "__main__":
    with output.command():
        main()

"""Does a supernet rank networks as training from scratch does? On digits; writes correlation.csv.

python -m experiments.search.correlation OUT [--systems ebn metaprune] [--candidates 12] [--seeds 3] [--epochs 20]

OUT: for the supernets and what was measured so far; cut off, the same command continues.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from scipy import stats

from bireal_jax import build, output
from bireal_jax.main import parse
from bireal_jax.running import known
from bireal_jax.search import spaces
from bireal_jax.search.run import Scorer
from bireal_jax.training import seeds, train

# recipes of supernet, search and retraining
SYSTEMS = {
    "ebn": ("ebn_supernet", "ebn_search", "ebn_retrain"),
    "metaprune": ("metaprune_train", "metaprune_search", "metaprune_retrain"),
}
SUPERNETS = 2
FIELDS = ("system", "genes", "cost", *(f"score{i}" for i in range(SUPERNETS)), "scratch")
DRAWS = 10_000


def recipe(name, **fields):
    """The config of a recipe, with fields set."""
    arguments = [f"--config.{field}={value}" for field, value in fields.items()]
    return parse(["correlation", f"--config=configs/{name}.py:digits", *arguments])[0]


def measure(system, arguments, scored, out):
    """Yields a row for each of so many uniformly drawn networks of the system's space, but for those known."""
    supernet, search, retrain = SYSTEMS[system]
    places = [out / f"{system}_supernet_{seed}" for seed in range(SUPERNETS)]
    configs = [recipe(search, init_from=place) for place in places]
    source = build.source(configs[0])
    scorers = []
    for seed, (place, config) in enumerate(zip(places, configs, strict=True)):
        train.run(recipe(supernet, seed=seed), place)
        module, shapes = build.model(config, source)
        scorers.append(Scorer(module, known.best_variables(place, shapes, newest=True)[0], source, config))
    name = configs[0].model.name.removesuffix("_supernet")
    name = config.model.name.removesuffix("_supernet")
    space = spaces.of(name, source.image_shape, source.num_classes)
    drawn = np.random.default_rng(0).integers(0, space.sizes, (arguments.candidates, len(space.sizes)))
    for genes in (tuple(map(int, row)) for row in drawn):
        text = " ".join(map(str, genes))
        if (system, text) in scored:
            continue
        c = recipe(retrain, arch=f"{name} {text}", total_epochs=arguments.epochs, eval_epochs=0.0)
        _, records = seeds.train(c, range(arguments.seeds))
        scratch = " ".join(f"{value:.4f}" for value in records[-1]["top1"])
        cost = getattr(space, space.costs[0])(genes)
        yield dict(zip(FIELDS, (system, text, cost, *(s([genes])[0] for s in scorers), scratch), strict=True))


def correlation(x, y, statistic):
    """The rank correlation, and its 95 % interval over resampled networks."""
    rng = np.random.default_rng(0)
    rows = (rng.integers(0, len(x), len(x)) for _ in range(DRAWS))
    values = [statistic(x[i], y[i]).statistic for i in rows if len(set(x[i])) > 1 and len(set(y[i])) > 1]
    return statistic(x, y).statistic, *np.percentile(values, [2.5, 97.5])


def report(rows):
    """Prints correlations of accuracy from scratch with the scores of every supernet, with their mean and with cost."""
    for system in dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == system]
        accuracy = np.array([[float(v) for v in row["scratch"].split()] for row in mine])
        judges = {f"score{i}": np.array([float(row[f"score{i}"]) for row in mine]) for i in range(SUPERNETS)}
        judges |= {
            "mean score": np.mean(list(judges.values()), 0),
            "cost": np.array([float(row["cost"]) for row in mine]),
        }
        print(f"{system}: {len(mine)} networks, {accuracy.shape[1]} seeds, accuracy {accuracy.mean(1).min():.2f} to "
              f"{accuracy.mean(1).max():.2f} %, s.d. of a seed {accuracy.std(1, ddof=1).mean():.2f}")  # fmt: skip
        for judge, values in judges.items():
            found = [
                "{} {:+.2f} [{:+.2f}, {:+.2f}]".format(name, *correlation(values, accuracy.mean(1), statistic))
                for name, statistic in (("Spearman", stats.spearmanr), ("Kendall", stats.kendalltau))
            ]
            print(f"  {judge:10}  {'   '.join(found)}")


def main() -> None:
    """Measures what is missing, then reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=20.0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    state, csv_file = arguments.out / "rows.jsonl", Path(__file__).parent / "correlation.csv"
    rows = [json.loads(line) for line in state.read_text().splitlines()] if state.exists() else []
    for system in arguments.systems:
        scored = {(row["system"], row["genes"]) for row in rows}
        for row in measure(system, arguments, scored, arguments.out):
            rows.append(row)
            print(row, flush=True)
            with open(state, "a") as file:
                file.write(json.dumps(row) + "\n")
    with open(csv_file, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    report(rows)


if __name__ == "__main__":
    with output.command():
        main()

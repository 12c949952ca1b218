"""Evolution of genes under a budget: the loop of MetaPruning (Liu et al., ICCV 2019) and of what followed it.

It knows genes, their cost and their score, nothing of networks. An algorithm is a generator: it yields generations, a
dict from genes to where they came from, and is sent the scores. What it yields is a function of the seed and of the
scores before, so a search that was cut off is resumed by running the generator again on the scores already known.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

import numpy as np

from bireal_jax.errors import BadInput

Genes = tuple[int, ...]
Generation = dict[Genes, str]  # genes -> "random", "mutation", "crossover", or the name of an algorithm
Algorithm = Generator[Generation, list[float], None]

TRIES = 10  # draws for each child wanted; tight budgets refuse most of them
DUPLICATES = 1000  # random draws without a new candidate after which the space counts as used up


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
      sizes: how many values each gene has; gene i is in range(sizes[i]).
      cost: of genes; cheap, since thousands are asked for.
      high, low: the budget; a candidate outside of [low, high] is never scored.
    """

    sizes: tuple[int, ...]
    cost: Callable[[Genes], float]
    high: float
    low: float = 0.0

    def excess(self, genes: Genes) -> float:
        """How far the cost is from the budget; 0 within it."""
        cost = self.cost(genes)
        return max(cost - self.high, self.low - cost, 0.0)

    def extreme(self, sign: int) -> Genes:
        """The genes of least (sign 1) or greatest (sign -1) cost, found one gene at a time.

        Exact where every gene moves the cost in one direction whatever the others are, as widths and groups do.
        """
        genes, before = (0,) * len(self.sizes), None
        while genes != before:
            before = genes
            for i, size in enumerate(self.sizes):
                options = [(*genes[:i], value, *genes[i + 1 :]) for value in range(size)]
                genes = min(options, key=lambda g: sign * self.cost(g))
        return genes

    def nearest(self, seed: int = 0, tries: int = 20) -> str:
        """In words, what networks near the budget cost of which none is within it: a gap between two of them."""
        rng, costs = np.random.default_rng(seed), set()
        for _ in range(tries):
            genes = tuple(int(v) for v in rng.integers(self.sizes))
            for limit in (self.high, self.low):  # as near from below as from above
                below = Problem(self.sizes, self.cost, limit)
                costs.add(self.cost(walk(below, rng, genes) or self.extreme(1)))
                above = Problem(self.sizes, self.cost, np.inf, limit)
                costs.add(self.cost(walk(above, rng, genes) or self.extreme(-1)))
        under, over = [c for c in costs if c < self.low], [c for c in costs if c > self.high]
        return " and ".join([*(f"{max(c):.6g}" for c in [under] if c), *(f"{min(c):.6g}" for c in [over] if c)])

    def check(self) -> None:
        """Raises BadInput if no candidate is within the budget."""
        least, most = (self.cost(self.extreme(sign)) for sign in (1, -1))
        if self.low > self.high:
            raise BadInput(f"the budget is empty: from {self.low:g} to {self.high:g}")
        if self.high < least:
            raise BadInput(
                f"the budget {self.high:g} is below the smallest network, which costs {least:.4g}; raise it above that"
            )
        if self.low > most:
            raise BadInput(
                f"the lower limit {self.low:g} is above the largest network, which costs {most:.4g}; lower it"
            )


@dataclass(frozen=True)
class Settings:
    """MetaPruning's numbers: 20 generations of 50, the first one random, 1000 candidates in all.

    Attributes:
      population: candidates of a generation.
      generations: how many, the random one included.
      parents: the best candidates of all generations, from which children come.
      mutations, crossovers: children of each kind; random candidates fill up what is missing.
      mutate_prob: of each gene of a mutant.
      repair: children over budget are walked into it, as random candidates are. False: they are discarded, as in the
        papers; at tight budgets that is most of them.
    """

    population: int = 50
    generations: int = 20
    parents: int = 10
    mutations: int = 25
    crossovers: int = 25
    mutate_prob: float = 0.1
    repair: bool = True


def evolve(problem: Problem, settings: Settings, seed: int) -> Algorithm:
    """The papers' loop: the top `parents` of all that was scored have mutants and crossovers, each scored once.

    Ends early where the space has no more candidates within the budget.
    """
    scores: dict[Genes, float] = {}
    for number in range(settings.generations):
        rng = np.random.default_rng([seed, number])
        parents = sorted(scores, key=lambda genes: -scores[genes])[: settings.parents]
        children = _children(problem, settings, rng, parents, scores)
        if not children:
            return
        scores |= zip(children, (yield children), strict=True)


def _children(problem, settings, rng, parents, scores) -> Generation:
    children: Generation = {}

    def breed(source, make, wanted, tries):
        """Adds up to `wanted` children; gives up after so many draws in a row that are over budget or known."""
        end, failed = len(children) + wanted, 0
        while len(children) < end and failed < tries:
            genes = make()
            if settings.repair and genes is not None:
                genes = walk(problem, rng, genes)
            if genes is None or genes in scores or genes in children or problem.excess(genes):
                failed += 1
            else:
                children[genes] = source

    if parents:
        mutant = partial(mutate, problem.sizes, settings.mutate_prob, parents, rng)
        breed("mutation", mutant, settings.mutations, TRIES * settings.mutations)
    if len(parents) > 1:
        breed("crossover", partial(cross, parents, rng), settings.crossovers, TRIES * settings.crossovers)
    breed("random", partial(draw, problem, rng), settings.population - len(children), DUPLICATES)
    return children


def mutate(sizes: tuple[int, ...], probability: float, parents: list[Genes], rng: np.random.Generator) -> Genes:
    """A parent whose genes move, each with that probability, to another of their values: (old + U{1..n-1}) mod n."""
    parent = parents[rng.integers(len(parents))]
    moved = rng.random(len(sizes)) < probability
    steps = rng.integers(1, np.maximum(sizes, 2))
    return tuple(int((g + s) % n) if m else g for g, s, n, m in zip(parent, steps, sizes, moved, strict=True))


def cross(parents: list[Genes], rng: np.random.Generator) -> Genes:
    """Each gene from one of two different parents, by a fair coin."""
    one, other = (parents[i] for i in rng.choice(len(parents), 2, replace=False))
    return tuple(a if coin else b for a, b, coin in zip(one, other, rng.random(len(one)) < 0.5, strict=True))


def draw(problem: Problem, rng: np.random.Generator) -> Genes | None:
    """Uniform genes, walked into the budget by random steps of one gene that bring the cost nearer to it.

    Where most of the space is within the budget this is the papers' uniform draw. Where next to nothing is, a uniform
    draw never ends; the walk does, since below every network there is one with one gene less. None if the walk is
    stuck, as it may be between two narrow limits.
    """
    return walk(problem, rng, tuple(int(v) for v in rng.integers(problem.sizes)))


def walk(problem: Problem, rng: np.random.Generator, genes: Genes) -> Genes | None:
    """The genes, changed one at a time and at random, each time nearer to the budget, until they are within it.

    A gene moves by one step, so that little is changed of what a child has from its parents; to any value only where no
    step helps, as it may be between two narrow limits. None if no change brings them nearer.
    """
    excess, failed = problem.excess(genes), 0
    while excess > 0:
        i = rng.integers(len(genes))
        value = genes[i] + 2 * rng.integers(2) - 1 if failed < 8 * len(genes) else rng.integers(problem.sizes[i])
        changed = (*genes[:i], int(np.clip(value, 0, problem.sizes[i] - 1)), *genes[i + 1 :])
        nearer = problem.excess(changed)
        failed = failed + 1 if nearer >= excess else 0
        if failed > 20 * sum(problem.sizes):  # the one change that helps was missed with probability e^-20
            return None
        if nearer < excess:
            genes, excess = changed, nearer
    return genes

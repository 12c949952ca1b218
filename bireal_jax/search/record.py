"""A search that can be killed at any candidate: its state, and the files that it leaves behind.

search_state.json (every score; what is in it is never scored again), candidates.csv, best_arch.json, candidates.png.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bireal_jax import places
from bireal_jax.errors import BadInput, first_line
from bireal_jax.running import workdir
from bireal_jax.search.evolve import Algorithm, Genes, Problem, Settings

Score = Callable[[list[Genes]], Sequence[float]]
STATE = "search_state.json"


@dataclass(frozen=True)
class Candidate:
    """One network that was scored.

    Attributes:
      generation: from 0 on.
      source: where it came from.
      genes: what it is.
      cost, score: the score is to be as high as possible.
    """

    generation: int
    source: str
    genes: Genes
    cost: float
    score: float


def search(
    problem: Problem, make: Callable[[Problem, Settings, int], Algorithm], score: Score, directory: Path, *,
    space: str, settings: Settings | None = None, seed: int = 0, values: Callable[[Genes], Sequence[int]] = list,
    together: int = 1, judge: str = "", say: Callable[[Candidate], Any] = lambda candidate: None,
) -> Candidate:  # fmt: skip
    """Runs an algorithm from wherever an earlier start in the same directory was cut off.

    Args:
      problem: what is searched.
      make: the algorithm, such as `evolve.evolve`.
      score: of so many candidates; a function of nothing else, or a resumed search is another one.
      directory: for the files.
      space: name of the space, for best_arch.json.
      settings, seed: of the algorithm.
      values: what genes stand for, as channels or groups.
      together: candidates scored, and saved, at a time.
      judge: what the scores come from; a search is not resumed with another one.
      say: told of every candidate that was scored.

    Returns:
      The candidate of the highest score.

    Raises:
      BadInput: no candidate is within the budget, or all of a first generation score the same; another search lives in
        the directory.
    """
    problem.check()
    settings = settings or Settings()
    identity = {
        "space": space, "sizes": list(problem.sizes), "budget": [problem.low, problem.high],
        "algorithm": getattr(make, "__name__", ""), "seed": seed, "settings": asdict(settings), "judge": judge,
    }  # fmt: skip
    found = load(directory / STATE, identity)
    algorithm, number = make(problem, settings, seed), 0
    generation = next(algorithm, {})
    if not generation and not found:
        raise BadInput(
            f"no network was found that costs between {problem.low:g} and {problem.high:g}; near to that there are "
            f"networks of {problem.nearest(seed)}\nset config.search.min_cost and max_cost to have one of them between"
        )
    while generation:
        fresh = [genes for genes in generation if genes not in found]
        for begin in range(0, len(fresh), together):
            group = fresh[begin : begin + together]
            for genes, value in zip(group, score(group), strict=True):
                if not math.isfinite(value):
                    raise BadInput(f"the score of {list(genes)} is {value}; the supernet's training must have failed")
                found[genes] = Candidate(number, generation[genes], genes, problem.cost(genes), float(value))
                say(found[genes])
            _save(directory, identity, list(found.values()), values)
        scores = [found[genes].score for genes in generation]
        if number == 0 and len(scores) > 2 and len(set(scores)) == 1:
            raise BadInput(
                f"all {len(scores)} candidates score {scores[0]:g}: the supernet tells no network from another\n"
                "train it longer, or calibrate batch norm on more batches"
            )
        number += 1
        try:
            generation = algorithm.send(scores)
        except StopIteration:
            break
    return best(list(found.values()))


def best(candidates: list[Candidate]) -> Candidate:
    """The one of highest score, among equals the cheapest, and among these the first."""
    return max(candidates, key=lambda c: (c.score, -c.cost))


def front(candidates: list[Candidate]) -> list[Candidate]:
    """Those that no other one beats in cost and score, by rising cost."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.cost, -c.score)):
        if not kept or candidate.score > kept[-1].score:
            kept.append(candidate)
    return kept


def load(path: Path, identity: Mapping[str, Any] = MappingProxyType({})) -> dict[Genes, Candidate]:
    """What a search has scored so far, in order; {} where none has begun.

    Args:
      path: of search_state.json.
      identity: what it must say of its search.

    Raises:
      BadInput: it is damaged, or of another search.
    """
    if not path.exists():
        return {}
    try:
        stored = places.read_json(path)
        listed: list[dict[str, Any]] = stored.pop("candidates")
        rows = [Candidate(**(row | {"genes": tuple(row["genes"])})) for row in listed]
        odd = [row for row in rows if not _sound(row)]
        if odd:
            raise ValueError(f"no candidate: {odd[0]}"[:200])
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BadInput(f"{path} is damaged ({first_line(error)}); delete it to search anew") from None
    differ = [key for key in identity if stored.get(key) != identity[key]]
    if differ:
        key = differ[0]
        raise BadInput(
            f"{path} is of another search: {key} is {stored.get(key)} there and {identity[key]} here\n"
            "use another --workdir, or what that file says"
        )
    return {row.genes: row for row in rows}


def _sound(row):
    """Whether a candidate that was read has whole numbers for genes, and figures."""
    figures = all(type(v) in (int, float) and math.isfinite(v) for v in (row.cost, row.score))
    return figures and all(type(v) is int for v in (row.generation, *row.genes))


def _save(directory, identity, candidates, values):
    """State last: what it holds is in the other files."""
    top, kept = best(candidates), {c.genes for c in front(candidates)}
    arch = {
        "space": identity["space"], "genes": list(top.genes), "values": list(values(top.genes)), "cost": top.cost,
        "score": top.score, "budget": identity["budget"],
    }  # fmt: skip
    state = {**identity, "candidates": [asdict(c) for c in candidates]}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["generation", "source", "genes", "values", "cost", "score", "front"])
    for c in candidates:
        lists = (" ".join(map(str, row)) for row in (c.genes, values(c.genes)))
        writer.writerow([c.generation, c.source, *lists, f"{c.cost:.6f}", f"{c.score:.6f}", int(c.genes in kept)])
    workdir.write(directory / "best_arch.json", workdir.to_json(arch, 1) + "\n")
    workdir.write(directory / "candidates.csv", table.getvalue())
    workdir.write(directory / STATE, workdir.to_json(state) + "\n")


def picture(
    candidates: list[Candidate], budget: tuple[float, float], unit: str, path: Path, score: str = "score"
) -> None:
    """Draws the score, called `score`, against cost: every candidate, shaded by generation, and the front.

    Raises:
      BadInput: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("the picture needs matplotlib, which is missing; pip install matplotlib") from None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    kept = front(candidates)
    cloud = axes.scatter(
        [c.cost for c in candidates], [c.score for c in candidates], 8, [c.generation for c in candidates]
    )
    axes.plot([c.cost for c in kept], [c.score for c in kept], "k.-", drawstyle="steps-post", label="front")
    for limit in budget:
        if 0 < limit < math.inf:
            axes.axvline(limit, color="0.7", linestyle="--", label=f"budget, {limit:g}")
    axes.set(xlabel=f"cost ({unit})", ylabel=score)
    axes.legend()
    figure.colorbar(cloud, label="generation")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    try:
        places.write(path, drawn.getvalue())
    except OSError as error:
        raise workdir.unwritable(path.parent, error) from None

"""Evolution, its resumption and its files, and the counters against the authors' numbers."""

import csv
import json
import timeit
from collections import Counter

import numpy as np
import pytest

from bireal_jax.errors import BadInput
from bireal_jax.models import arch
from bireal_jax.models.layouts import LAYOUTS
from bireal_jax.search import pareto, record
from bireal_jax.search.evolve import Problem, Settings, draw, evolve, mutate
from bireal_jax.search.spaces import Groups, Widths
from experiments.search.landscape import SPACE, best, landscape, problem

BUDGETS = (330.0, 150.0, 60.0, 45.0, 41.0)
SMALL = Settings(population=10, generations=4, parents=4, mutations=5, crossovers=5)
V1 = (28, 18, 10, 23, 23, 22, 22, 13, 17, 28, 17, 25, 29)
STAGES = (0, 1, 2, 4, 7, 11, 14, 17)  # the first block of every output stage of MobileNetV2


def tied(outputs, insides):
    """The authors' 18 + 17 numbers as 8 + 17 genes."""
    return (*(outputs[i] for i in STAGES), *insides)


V2 = {
    "file": tied(
        [14, 12, 11, 11, 8, 8, 8, 7, 7, 7, 7, 8, 8, 8, 14, 14, 14, 8],
        [6, 5, 2, 15, 7, 17, 14, 5, 11, 12, 12, 11, 6, 16, 14, 13, 14],
    ),
    "issue 32": tied(
        [2, 3, 4, 4, 7, 7, 7, 10, 10, 10, 10, 5, 5, 5, 12, 12, 12, 7],
        [11, 11, 6, 15, 8, 13, 16, 14, 3, 14, 10, 17, 13, 17, 17, 17, 16],
    ),
    "issue 35": tied(
        [18, 23, 18, 18, 28, 28, 28, 27, 27, 27, 27, 2, 2, 2, 12, 12, 12, 15],
        [4, 12, 25, 23, 20, 14, 24, 8, 19, 26, 2, 10, 24, 16, 6, 26, 10],
    ),
}
R50 = {
    "1.0G": (19, 9, 15, 13, 10, 9, 10, 6, 9, 13, 11, 12, 7, 18, 7, 13, 12, 10, 19, 18),
    "2.0G": (23, 17, 16, 17, 16, 16, 18, 20, 18, 25, 11, 29, 22, 18, 13, 27, 17, 23, 23, 20),
}


# Counted by the authors' code, or by a counter that equals it on the vectors of their files. None: not known.
@pytest.mark.parametrize(
    ("name", "genes", "flops", "macs"),
    [
        ("mbv1", (30,) * 13, 573.83, 568.74), ("mbv1", V1, 316.80, 313.21), ("mbv1", (0,) * 13, 14.09, None),
        ("mbv2", (30,) * 25, 579.30, 569.52), ("mbv2", V2["file"], 108.40, 104.87),
        ("mbv2", V2["issue 32"], 102.13, 98.10), ("mbv2", V2["issue 35"], 207.98, 202.29),
        ("mbv2", (0,) * 25, 13.81, None),
        ("r50", (30,) * 20, 4111.71, 4089.18), ("r50", R50["1.0G"], 1038.43, 1027.55),
        ("r50", R50["2.0G"], 2004.81, 1989.93), ("r50", (0,) * 20, 85.69, None),
    ],
)  # fmt: skip
def test_counts_are_those_of_the_authors(name, genes, flops, macs):
    space = Widths(name)
    assert len(space.sizes) == len(genes)
    assert round(space.flops(genes), 2) == flops
    assert macs is None or round(space.macs(genes), 2) == macs


def test_the_published_mobilenet_has_its_widths_shifted_by_one():
    """The authors' evaluation gives layer i the scale of layer i - 1: 315.58 M instead of 316.80 M."""
    assert SPACE.values(V1) == [30, 40, 51, 101, 202, 194, 389, 250, 312, 481, 312, 435, 993, 1024]
    shifted = [31, 60, 81, 51, 202, 202, 389, 389, 250, 312, 481, 312, 870, 1024]
    assert round(SPACE.flops_of(shifted), 2) == 315.58


def test_widths_of_mobilenet_v2_are_those_of_the_authors():
    outputs = [22, 10, *[14] * 5, *[27] * 4, *[44] * 3, *[116] * 3, 152]
    assert Widths("mbv2").values(V2["file"])[:18] == outputs


@pytest.mark.parametrize("name", ["mbv1", "mbv2", "r50"])
def test_widths_round_down_exactly(name):
    """No product of a base and a float scale rounds to another integer."""
    for base in LAYOUTS[name].bases:
        assert [base * (10 + 3 * i) // 100 for i in range(31)] == [
            int(base * (0.1 + 0.03 * i) + 1e-9) for i in range(31)
        ]


# Counted by hand on the shape of MobileNetV1; without groups it is ReActNet-A, published as 0.87e8.
@pytest.mark.parametrize(
    ("gene", "bops", "ops"),
    [(0, 4817, 87.1), (1, 2678, 53.7), (2, 1609, 37.0), (3, 1074, 28.6), (4, 807, 24.5), (5, 673, 22.4)],
)
def test_operations_of_group_numbers(gene, bops, ops):
    space = Groups()
    assert space.sizes == (6,) * 13 and space.values([gene] * 13) == [2**gene] * 13
    assert round(space.bops([gene] * 13)) == bops and round(space.ops([gene] * 13), 1) == ops


def test_layers_have_the_group_numbers_that_divide_them():
    space = Groups((1, 3, 4, 8), stem=12, widths=(24, 24), image_shape=(8, 8, 1), num_classes=10)
    assert space.sizes == (3, 4) and space.values((2, 3)) == [4, 8]
    # side 4: 16 pixels of (9 * 12 / 4 + 24) * 12 and (9 * 24 / 8 + 24) * 24
    assert space.bops((2, 3)) * 1e6 == pytest.approx(16 * (51 * 12 + 51 * 24))


def test_evolution_searches_group_numbers_within_a_budget():
    space = Groups()
    groups = Problem(space.sizes, space.ops, 25.0)
    generation = next(evolve(groups, Settings(), 0))
    assert len(generation) == 50 and max(map(space.ops, generation)) <= 25
    with pytest.raises(BadInput, match="the budget 22 is below the smallest network, which costs 22.38"):
        Problem(space.sizes, space.ops, 22.0).check()


@pytest.mark.parametrize("name", ["mbv1", "mbv2", "r50"])
def test_a_count_takes_less_than_a_millisecond(name):
    space = Widths(name)
    genes = (17,) * len(space.sizes)
    space.flops(genes)
    assert min(timeit.repeat(lambda: space.flops(genes), number=10, repeat=5)) / 10 < 1e-3


@pytest.mark.parametrize("budget", [330.0, 41.0])
def test_every_candidate_is_within_the_budget_and_new(budget):
    algorithm, error, seen = evolve(problem(budget), Settings(), 0), landscape(0), []
    generation = next(algorithm)
    for number in range(20):
        assert len(generation) == 50
        if number:
            assert Counter(generation.values())["mutation"] <= 25 and Counter(generation.values())["crossover"] <= 25
        seen += generation
        if number < 19:
            generation = algorithm.send([-error(genes) for genes in generation])
    assert len(set(seen)) == len(seen) == 1000
    assert max(map(SPACE.flops, seen)) <= budget


def test_a_window_is_met_from_both_sides():
    """ResNet-50 between 1950 and 2050 M, as the authors search it, and about 1000 M where their draw finds nothing."""
    space, rng = Widths("r50"), np.random.default_rng(0)
    for low, high in ((1950.0, 2050.0), (950.0, 1050.0)):
        drawn = [draw(Problem(space.sizes, space.flops, high, low), rng) for _ in range(20)]
        assert all(genes and low <= space.flops(genes) <= high for genes in drawn)


def test_mutants_move_each_gene_with_that_probability_and_never_to_itself():
    sizes, parent, rng = (31, 4, 2, 1), (30, 3, 1, 0), np.random.default_rng(0)
    drawn = np.array([mutate(sizes, 0.25, [parent], rng) for _ in range(4000)])
    moved = (drawn != parent).mean(0)
    np.testing.assert_allclose(moved[:3], 0.25, atol=0.03)
    assert moved[3] == 0 and all((drawn[:, i] < size).all() for i, size in enumerate(sizes))
    assert len(set(drawn[:, 0])) == 31


def test_parents_are_the_best_of_all_generations():
    """Children of a crossover have every gene from one of the best ten so far."""
    error, algorithm, scores = landscape(1), evolve(problem(330.0), Settings(repair=False), 0), {}
    generation = next(algorithm)
    for _ in range(5):
        scores |= {genes: -error(genes) for genes in generation}
        parents = np.array(sorted(scores, key=lambda g: -scores[g])[:10])
        generation = algorithm.send([scores[genes] for genes in generation])
        crossed = np.array([genes for genes, source in generation.items() if source == "crossover"])
        assert len(crossed) and (crossed[:, None] == parents).any(1).all()


def test_a_small_space_is_used_up_and_ends():
    tiny = Problem((2, 3), lambda genes: float(sum(genes)), 2.0)
    algorithm, seen = evolve(tiny, SMALL, 0), {}
    generation = next(algorithm)
    with pytest.raises(StopIteration):
        while True:
            seen |= generation
            generation = algorithm.send([float(g[0]) for g in generation])
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


class Killed(Exception):
    pass


def run(directory, make=evolve, limit=None, together=1, **kwargs):
    """A small search; killed before candidate number `limit`. Returns the best and what was scored."""
    error, scored = landscape(3), []

    def score(group):
        if limit is not None and len(scored) + len(group) > limit:
            raise Killed
        scored.extend(group)
        return [-error(genes) for genes in group]

    arguments = {"space": "mbv1", "settings": SMALL, "seed": 5, "values": SPACE.values, "together": together} | kwargs
    try:
        return record.search(problem(60.0), make, score, directory, **arguments), scored
    except Killed:
        return None, scored


@pytest.mark.parametrize("make", [evolve, pareto.nsga2])
@pytest.mark.parametrize("together", [1, 4])
def test_killed_and_resumed_is_straight_and_scores_nothing_twice(tmp_path, make, together):
    if make is not evolve:
        pytest.importorskip("pymoo")
    expected, straight = run(tmp_path / "straight", make, together=together)
    scored, result = [], None
    for limit in (1, 13, 9, 5, None):
        result, more = run(tmp_path / "killed", make, limit, together)
        scored += more
    assert result == expected and scored == straight and len(set(scored)) == len(scored)
    for name in ("search_state.json", "candidates.csv", "best_arch.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert run(tmp_path / "killed", make, 0, together)[0] == expected  # finished: nothing is scored


def test_files(tmp_path):
    top, scored = run(tmp_path)
    stored = json.loads((tmp_path / "best_arch.json").read_text())
    assert (tuple(stored["genes"]), stored["cost"], stored["score"]) == (top.genes, top.cost, top.score)
    assert (
        stored["values"] == SPACE.values(top.genes)
        and arch.load(str(tmp_path / "best_arch.json"), "mbv1", SPACE.sizes) == top.genes
    )
    rows = list(csv.DictReader((tmp_path / "candidates.csv").open()))
    assert [tuple(map(int, row["genes"].split())) for row in rows] == scored and len(rows) == 40
    cost, score = (np.array([float(row[key]) for row in rows]) for key in ("cost", "score"))
    beaten = [((cost <= a) & (score >= b) & ((cost < a) | (score > b))).any() for a, b in zip(cost, score, strict=True)]
    assert [row["front"] == "1" for row in rows] == [not b for b in beaten]
    pytest.importorskip("matplotlib")
    candidates = list(record.load(tmp_path / record.STATE).values())
    record.picture(candidates, (0.0, 60.0), "M FLOPs", tmp_path / "candidates.png")
    assert (tmp_path / "candidates.png").read_bytes().startswith(b"\x89PNG")


STEPS = Problem((3, 3, 3), lambda genes: 10.0 * sum(genes), 25.0, 21.0)  # costs 0, 10, ... 60


@pytest.mark.parametrize("make", [evolve, pareto.nsga2, pareto.ga])
def test_a_budget_between_two_networks(make, tmp_path):
    with pytest.raises(BadInput, match="costs between 21 and 25; near to that there are networks of 20 and 30\n"):
        record.search(STEPS, make, lambda group: [1.0], tmp_path, space="steps", settings=SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"genes": [1.5, 0, 0]}, {"genes": [True, 0, 0]}, {"score": None}, {"cost": np.nan}])
def test_a_state_with_what_is_no_candidate_is_damaged(change, tmp_path):
    row = {"generation": 0, "source": "random", "genes": [1, 0, 0], "cost": 10.0, "score": 50.0}
    (tmp_path / "state.json").write_text(json.dumps({"candidates": [row]}))
    assert list(record.load(tmp_path / "state.json")) == [(1, 0, 0)]
    (tmp_path / "state.json").write_text(json.dumps({"candidates": [row | change]}))
    with pytest.raises(BadInput, match="state.json is damaged"):
        record.load(tmp_path / "state.json")


def test_bad_input(tmp_path):
    with pytest.raises(BadInput, match="budget 14 is below the smallest network, which costs 14.09"):
        problem(14.0).check()
    with pytest.raises(BadInput, match="lower limit 600 is above the largest network, which costs 573.8"):
        Problem(SPACE.sizes, SPACE.flops, 700.0, 600.0).check()
    with pytest.raises(BadInput, match="the budget is empty: from 60 to 50"):
        Problem(SPACE.sizes, SPACE.flops, 50.0, 60.0).check()
    with pytest.raises(BadInput, match="all 10 candidates score 10: the supernet tells no network from another"):
        record.search(problem(60.0), evolve, lambda group: [10.0], tmp_path / "same", space="mbv1", settings=SMALL)
    with pytest.raises(BadInput, match="is nan; the supernet's training must have failed"):
        record.search(problem(60.0), evolve, lambda group: [np.nan], tmp_path / "nan", space="mbv1", settings=SMALL)
    run(tmp_path, limit=3)
    with pytest.raises(BadInput, match="is of another search: seed is 5 there and 6 here"):
        run(tmp_path, seed=6)
    (tmp_path / record.STATE).write_text('{"candidates": [')
    with pytest.raises(BadInput, match="is damaged"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "a search writes best_arch.json"), ("{", "is no best_arch.json"),
        ('{"space": "mbv1"}', "is no best_arch.json"),
        ('{"space": "r50", "genes": [1]}', "is of the space 'r50', the model takes one of 'mbv1'"),
        ('{"space": "mbv1", "genes": [1, 2]}', "has 2 genes, mbv1 has 13"),
        (json.dumps({"space": "mbv1", "genes": [31] * 13}), "gene 0 is 31, it must be in 0..30"),
        (json.dumps({"space": "mbv1", "genes": [1, 1.5, *[1] * 11]}), "gene 1 is 1.5, no whole number"),
        (json.dumps({"space": "mbv1", "genes": [True] * 13}), "gene 0 is true, no whole number"),
        (json.dumps({"space": "mbv1", "genes": [1, 2, "3", *[1] * 10]}), 'gene 2 is "3", no whole number'),
        (json.dumps({"space": "mbv1", "genes": [1, float("nan"), *[1] * 11]}), "gene 1 is NaN, no whole number"),
        (json.dumps({"space": "mbv1", "genes": "1" * 13}), "a name and a list of whole numbers"),
        (json.dumps({"space": 1, "genes": [1] * 13}), "a name and a list of whole numbers"),
        ("[" * 10**5, "is no best_arch.json"),
    ],
)  # fmt: skip
def test_architectures_of_another_space_are_refused(tmp_path, text, message):
    path = tmp_path / "best_arch.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=message):
        arch.load(str(path), "mbv1", SPACE.sizes)


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS)
def test_evolution_is_no_worse_than_the_genetic_algorithm_of_pymoo(budget):
    """Mean over 8 landscapes of the best of 1000; experiments/search has the table."""
    pytest.importorskip("pymoo")
    errors = [
        (best(evolve(problem(budget), Settings(), seed), landscape(seed), 1000),
         best(pareto.ga(problem(budget), Settings(generations=200), seed), landscape(seed), 1000))
        for seed in range(8)
    ]  # fmt: skip
    ours, theirs = np.mean(errors, 0)
    assert ours <= theirs + 0.3

"""Tables of an ablation: means with 95 % intervals, paired comparisons of neighbouring cells, flip rates.

python -m experiments.estimators.table runs/estimators
"""

import argparse
import collections
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bireal_jax import output
from bireal_jax.checks.intervals import bounds, interval

AXES = ("arch", "init", "weight", "act", "optimizer")
ALPHA = 0.05


def shown(values):
    """ "97.1 ± 0.4 (5)": mean, half of the 95 % interval, number of seeds; with few seeds "97.1, 70.2 to 100.0 (2)"."""
    if not len(values):
        return "not run"
    mean, low, high = bounds(values)
    half = interval(values)[1]
    if np.isnan(half):
        return f"{mean:.1f} ({len(values)})"
    whole = np.isclose(high - low, 2 * half)
    return (
        f"{mean:.1f} ± {half:.1f} ({len(values)})" if whole else f"{mean:.1f}, {low:.1f} to {high:.1f} ({len(values)})"
    )


def by_cell(rows):
    """{cell, a tuple in the order of AXES: {seed: top-1}}, the cells in a fixed order, whichever came first."""
    cells = collections.defaultdict(dict)
    for row in rows:
        cells[tuple(row["cell"][axis] for axis in AXES)][row["seed"]] = row["top1"]
    return dict(sorted(cells.items(), key=lambda pair: [_rank(value) for value in pair[0]]))


# What is compared with what: a change goes from the earlier to the later. Other names come behind, by the alphabet.
ORDER = (
    "bireal_tiny", "res_tiny", "plain_tiny", "bireal18", "res18", "plain18", "uniform_001", "glorot", "he", "relu",
    "clip", "sign", "magnitude_aware", "through_scale", "released", "identity", "standardized", "clamped", "ste",
    "approx_sign",
)  # fmt: skip


def _rank(value):
    return (ORDER.index(value), "") if value in ORDER else (len(ORDER) + value.startswith("adam"), value)


def ordered(rows, axis):
    """The values of an axis, in a fixed order."""
    return sorted({row["cell"][axis] for row in rows}, key=_rank)


def paper_table(rows, optimizer):
    """Rows init x weight x act, columns architectures, as the paper's table; then the real-valued networks."""
    cells, archs = by_cell(rows), ordered(rows, "arch")
    lines = [["init", "weight rule", "activation derivative", *archs]]
    for init in ordered(rows, "init"):
        of_init = [r for r in rows if r["cell"]["init"] == init]
        for weight, act in itertools.product(ordered(of_init, "weight"), ordered(of_init, "act")):
            if weight == "real":
                continue
            found = [cells.get((arch, init, weight, act, optimizer), {}) for arch in archs]
            if any(found):
                lines.append([init, weight, act, *(shown(list(f.values())) for f in found)])
        real = [
            [
                top1
                for c, seeds in cells.items()
                if (c[0], c[1], c[2]) == (arch, init, "real")
                for top1 in seeds.values()
            ]
            for arch in archs
        ]
        if any(real):
            lines.append([init, "real-valued network", "", *map(shown, real)])
    return markdown(lines)


def holm(values):
    """Which p values are significant at ALPHA by Holm's correction: in rising order, until the first that fails."""
    rejected, going_on = [False] * len(values), True
    for rank, i in enumerate(np.argsort(values, kind="stable")):
        going_on = going_on and values[i] <= ALPHA / (len(values) - rank)
        rejected[i] = bool(going_on)
    return rejected


def comparisons(rows):
    """For every axis and pair of its values: all pairs of cells that differ in nothing else, seed by seed.

    Returns:
      Dicts with axis, before, after, where (the rest of the cell), difference (mean, points), half (of its 95 %
      interval), p (paired t test), seeds, and significant (Holm's correction over all comparisons of the axis).
    """
    cells, found = by_cell([row for row in rows if row["cell"]["weight"] != "real"]), []
    for i, axis in enumerate(AXES):
        group = []
        for one, other in itertools.combinations(cells, 2):
            if one[:i] + one[i + 1 :] != other[:i] + other[i + 1 :]:
                continue
            seeds = sorted(set(cells[one]) & set(cells[other]))
            change = np.asarray([cells[other][s] - cells[one][s] for s in seeds])
            if len(change) < 2:
                continue
            mean, half = interval(change)
            same = np.ptp(change) <= 1e-9 * np.abs(change).max()  # but for rounding
            p = 1.0 if not change.any() else 0.0 if same else float(stats.ttest_1samp(change, 0).pvalue)
            group.append({
                "axis": axis, "before": one[i], "after": other[i], "where": one[:i] + one[i + 1 :], "difference": mean,
                "half": half, "p": p, "seeds": len(seeds), "changes": dict(zip(seeds, change, strict=True)),
            })  # fmt: skip
        for entry, rejected in zip(group, holm([entry["p"] for entry in group]), strict=True):
            entry["significant"] = rejected
        found += group
    return found


def pooled(entries):
    """One line an axis, pair of values and optimizer: the mean over cells, each seed counted once."""
    groups = collections.defaultdict(list)
    for entry in entries:
        optimizer = entry["where"][-1] if entry["axis"] != "optimizer" else ""
        groups[entry["axis"], entry["before"], entry["after"], optimizer].append(entry)
    lines: list[list[Any]] = [["axis", "from", "to", "optimizer", "cells", "mean change, points", "significant cells"]]
    for (axis, before, after, optimizer), members in groups.items():
        seeds = set.intersection(*(set(m["changes"]) for m in members))
        per_seed = [np.mean([m["changes"][s] for m in members]) for s in sorted(seeds)]
        mean, half = interval(per_seed) if per_seed else (np.nan, np.nan)
        counts = [sum(m["significant"] and np.sign(m["difference"]) == s for m in members) for s in (1, -1)]
        change, marked = f"{mean:+.1f} ± {half:.1f}", f"{counts[0]} up, {counts[1]} down"
        lines.append([axis, before, after, optimizer, len(members), change, marked])
    return markdown(lines)


def neighbours(entries, axis):
    """Every comparison along one axis, in words."""
    rest = [a for a in AXES if a != axis]
    lines = [[*rest, "from", "to", "change, points", "p", "significant"]]
    for e in entries:
        if e["axis"] == axis:
            mark = "yes" if e["significant"] else "no"
            change = f"{e['difference']:+.1f} ± {e['half']:.1f}"
            lines.append([*e["where"], e["before"], e["after"], change, f"{e['p']:.1g}", mark])
    return markdown(lines)


def flips(rows):
    """How many binary weights flip an epoch, in percent: in the first, the middle and the last epoch, and in all."""
    lines = [[*AXES, "factor of the binary rate", "first", "middle", "last", "sum"]]
    for cell in by_cell([r for r in rows if r["cell"]["weight"] != "real"]):
        members = [r for r in rows if tuple(r["cell"][axis] for axis in AXES) == cell]
        mean = 100 * np.mean([r["flipped"] for r in members], 0)
        shares = (mean[0], mean[len(mean) // 2], mean[-1], mean.sum()) if len(mean) else ()
        shown = [f"{share:.2f}" for share in shares] or ["-"] * 4
        lines.append([*cell, f"{members[0]['binary_lr']:g}", *shown])
    return markdown(lines)


def markdown(lines):
    """A Markdown table; the first line is the head."""
    text = [f"| {' | '.join(map(str, line))} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]]) + "\n"


def write(rows, out):
    """OUT/table.md."""
    binary = [row for row in rows if row["cell"]["weight"] != "real"]
    entries = comparisons(rows)
    parts = [
        "# Ablation of gradient estimators\n\nTop-1, percent: mean ± half of the 95 % interval (seeds). Where that "
        "would go beyond 0 or 100, as it does\nwith few seeds, the interval is written out, cut there: "
        "mean, low to high (seeds).\n"
    ]
    for optimizer in ordered(binary, "optimizer"):
        parts.append(f"## {optimizer}\n\n{paper_table(rows, optimizer)}")
    parts.append(
        "## What a change of one axis does\n\nMean over all cells that differ in nothing else, paired by seed; ± is "
        "half of the 95 % interval over seeds.\nSignificant: paired t test, Holm's correction over all comparisons "
        f"of the axis, 5 %.\n\n{pooled(entries)}"
    )
    for axis in dict.fromkeys(e["axis"] for e in entries):
        parts.append(f"## Neighbours along {axis}\n\n{neighbours(entries, axis)}")
    parts.append(f"## Binary weights that flip an epoch, percent\n\n{flips(rows)}")
    if diverged := sum(row["loss"] is None for row in rows):
        parts.insert(1, f"{diverged} runs diverged: their loss is not finite. They count with the accuracy they had.\n")
    (out / "table.md").write_text("\n".join(parts))
    print(out / "table.md")


if __name__ == "__main__":
    from experiments.estimators.rows import read

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    with output.command():
        write(read(out / "rows.jsonl"), out)

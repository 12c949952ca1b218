"""Tables of the campaign from its rows: python -m experiments.cifar.report writes those of docs/cifar.md."""

import argparse
import collections
import json
import os
from pathlib import Path

from bireal_jax import output

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "cifar.md"
MARK = "<!-- python -m experiments.cifar.report writes what follows -->\n"


def read(path: Path) -> list[dict]:
    """The rows that are there, of a run that was written twice the last one, and no line that was cut off."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return list({(row["job"], row["digest"], row["seed"]): row for row in rows}.values())


def append(path: Path, rows: list[dict]) -> None:
    """Adds rows in one write."""
    with open(path, "a") as file:
        file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def table(rows: list[dict]) -> str:
    """A line for each config in Markdown: means over its seeds, each seed's value behind them."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["digest"], row["epochs"]].append(row)
    lines = [
        "| run | epochs | last, % | best, % | packed, % | seconds | card, date, commit |",
        "|---|---:|---|---|---|---:|---|",
    ]
    for found in groups.values():
        row, note = found[0], found[0].get("note", "")
        lines.append(
            f"| {row['job']}{f' ({note})' if note else ''} | {row['epochs']:g} | "
            + " | ".join(_shown([r[key] for r in found]) for key in ("last", "best", "packed"))
            + f" | {_shown([r['seconds'] for r in found], 0)} | {row['card']}, {row['date']}, {row['commit']} |"
        )
    return "\n".join(lines)


def _shown(values, digits=2):
    """ "78.91", or "78.5 (78.91, 78.12)": the mean, and each seed's."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    one = f"{sum(known) / len(known):,.{digits}f}"
    return one if len(known) == 1 else f"{one} ({', '.join(f'{value:,.{digits}f}' for value in known)})"


def page(text: str) -> str:
    """A page with the table behind the mark made anew."""
    assert MARK in text
    return text.split(MARK)[0] + MARK + "\n" + table(read(HERE / "rows.jsonl")) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with output.command():
        PAGE.write_text(page(PAGE.read_text()))

"""Tables for docs/results.md from the rows of the experiments, made whenever the site is.

`python docs/tables.py` prints them. A file of rows that has no table of its own is named in the last one.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median, stdev

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
Rows = list[dict]
Table = list[list[str]]  # the head, and the lines

ENGINES = {
    "ours": "ours, float32", "ours_int16": "ours, int16", "openvino_binary": "OpenVINO, 1-bit",
    "openvino_binary_bf16": "OpenVINO, 1-bit, rest bfloat16", "openvino_binary_int8": "OpenVINO, 1-bit, rest int8",
    "openvino_int8": "OpenVINO, int8", "onnxruntime_int8": "onnxruntime, int8", "openvino_bf16": "OpenVINO, bfloat16",
    "openvino_float32": "OpenVINO, float32", "onnxruntime_float32": "onnxruntime, float32",
    "torch_float32": "PyTorch, float32",
}  # fmt: skip


def spread(values: Iterable[float]) -> str:
    """ "97.1 ± 0.4 (5)": mean, standard deviation and number."""
    values = list(values)
    return f"{mean(values):.1f} ± {stdev(values):.1f} ({len(values)})" if len(values) > 1 else f"{values[0]:.1f} (1)"


def grouped(rows: Rows, *keys: str) -> dict[tuple, Rows]:
    """Rows by the values of these keys, in the order in which they came."""
    found = defaultdict(list)
    for row in rows:
        found[tuple(row.get(key, "") for key in keys)].append(row)
    return found


def inference(rows: Rows) -> Table:
    """Median milliseconds; of several measurements with the newest versions the one with the most engines."""
    newest = [row for row in rows if row["torch"] == rows[-1]["torch"]]
    best = {key: max(found, key=len) for key, found in sorted(grouped(newest, "batch", "threads").items())}
    lines = [["", *(f"batch {batch}, {threads} thread{'s' * (threads > 1)}" for batch, threads in best)]]
    for engine, name in ENGINES.items():
        cells = [f"{median(row[engine]):.3g}" if engine in row else "not run" for row in best.values()]
        lines.append([name, *cells])
    return lines


def training(rows: Rows) -> Table:
    """Median seconds a step, and how many times as long the fastest PyTorch takes."""
    lines = [["network", "px", "batch", "threads", "CPU", "ours, s", "fastest PyTorch, s", "times as fast"]]
    for row in rows:
        peers = [name for name, value in row.items() if isinstance(value, list) and name != "ours"]
        peer = min(peers, key=lambda name, row=row: median(row[name]))
        ours, theirs = median(row["ours"]), median(row[peer])
        times = [f"{ours:.2f}", f"{theirs:.2f} ({peer})", f"{theirs / ours:.2f}"]
        cells = [row.get("network", "bireal18"), row["size"], row["batch"], row["threads"], row["cpu"], *times]
        lines.append([str(cell) for cell in cells])
    return lines


def loading(rows: Rows) -> Table:
    """Median milliseconds an image on one core, from a JPEG file to the batch."""
    lines = [["images", *rows[0]["ms"]]]
    for row in rows:
        size = " x ".join(map(str, row["resize"])) if row["resize"] else "as they are"
        cells = [f"{median(row['ms'][name]):.2f}" if name in row["ms"] else "not run" for name in rows[0]["ms"]]
        lines.append([size, *cells])
    return lines


def startup(rows: Rows) -> Table:
    """Median seconds from the command to the end of the first step."""
    lines = [["recipe", "cold", "with compiled steps from before"]]
    return lines + [
        [row["recipe"], *(f"{median(map(sum, row[state])):.1f}" for state in ("cold", "warm"))] for row in rows
    ]


def estimators(rows: Rows) -> Table:
    """Top-1 on digits: mean, standard deviation, seeds."""
    cells = [row["cell"] | {"top1": row["top1"]} for row in rows]
    nets = list(dict.fromkeys(cell["arch"] for cell in cells))
    lines = [["optimizer", "initialization", "weight rule", "derivative", *nets]]
    for key, found in grouped(cells, "optimizer", "init", "weight", "act").items():
        by_net = grouped(found, "arch")
        shown = [spread(c["top1"] for c in by_net[(n,)]) if (n,) in by_net else "not run" for n in nets]
        lines.append([*key, *shown])
    return lines


def faults(rows: Rows) -> Table:
    """Trials of each kind, and how many failed."""
    lines = [["kind", "trials", "failed"]]
    kinds = defaultdict(list)
    for row in rows:
        kinds[re.sub(r" \d+(?! KiB)", "", row["kind"])].append(
            bool(row["failed"])
        )  # without the number of the file or process
    return lines + [[kind, str(len(failed)), str(sum(failed))] for kind, failed in kinds.items()]


def depth(rows: Rows) -> Table:
    """Means over the seeds; metres and percent."""
    names = ["rmse", "abs_rel", "log10", "delta1", "delta2", "delta3"]
    lines = [["network", "seeds", *names]]
    for (network,), found in grouped(rows, "network").items():
        means = [f"{mean(row[name] for row in found):.4g}" for name in names]
        lines.append([network, str(len(found)), *means])
    return lines


def search(rows: Rows) -> Table:
    """Error of the best candidate in a landscape that is known, mean over landscapes."""
    lines = [["budget, Mflops", "algorithm", "error"]]
    return lines + [
        [budget, algorithm, spread(float(row["error"]) for row in found)]
        for (budget, algorithm), found in grouped(rows, "budget_mflops", "algorithm").items()
    ]


# (heading, file of rows, what makes a table of them)
TABLES: list[tuple[str, str, Callable[[Rows], Table]]] = [
    ("Inference, Bi-Real Net 18 at 224 px", "speed/inference.jsonl", inference),
    ("A training step on CPUs", "speed/train.jsonl", training),
    ("Loading images", "speed/input.jsonl", loading),
    ("Starting", "speed/startup.jsonl", startup),
    ("Estimators", "estimators/results/grid/rows.jsonl", estimators),
    ("Estimators at equal step", "estimators/results/control/rows.jsonl", estimators),
    ("Depth", "depth/rows.jsonl", depth),
    ("Search", "search/results.csv", search),
    ("Faults", "faults/rows.jsonl", faults),
]


def read(path: Path) -> Rows:
    """The rows of a .jsonl or .csv file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


def markdown(table: Table) -> str:
    """The table as Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]]) + "\n"


def pages() -> str:
    """All tables, each with what is in it and where it comes from."""
    parts = []
    for heading, name, make in TABLES:
        folder = name.split("/")[0]
        link = f"[{name}](../experiments/{name}), explained in [{folder}](../experiments/{folder}/README.md)."
        parts.append(f"### {heading}\n\n{make.__doc__} {link}\n\n{markdown(make(read(EXPERIMENTS / name)))}")
    shown = {name for _, name, _ in TABLES}
    files = sorted([*EXPERIMENTS.rglob("*.jsonl"), *EXPERIMENTS.rglob("*.csv")])
    rest = [path.relative_to(EXPERIMENTS).as_posix() for path in files]
    others = [[f"[{n}](../experiments/{n})", str(len(read(EXPERIMENTS / n)))] for n in rest if n not in shown]
    parts.append("### Other rows\n\n" + markdown([["file", "rows"], *others]))
    return "\n".join(parts)


def write(folder: Path) -> None:
    """The tables as a page, which docs/results.md includes."""
    folder.mkdir(exist_ok=True)
    text = pages()
    path = folder / "experiments.md"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    print(pages())

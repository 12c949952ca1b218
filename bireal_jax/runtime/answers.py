"""What the command says of photos, in rows: as text, CSV or JSON lines."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bireal_jax import runtime

Rows = list[dict[str, Any]]


def of_photo(net: runtime.Network, file: str, image: np.ndarray, count: int) -> Rows:
    """The likeliest classes of an image [h, w, c], a row each; of a map one row: least, median and largest value."""
    if len(net.output_shape) > 1:
        low, middle, high = (float(v) for v in np.quantile(net(image[None]), (0, 0.5, 1)))
        return [{"file": file, "low": low, "median": middle, "high": high}]
    rows = []
    for i, (label, index, probability) in enumerate(net.top(image[None], count)[0], 1):
        own = {"id": net.ids[index]} if net.ids != net.labels else {}
        rows.append(
            {"file": file, "rank": i, "class": index, **own, "label": label, "probability": round(probability, 6)}
        )
    return rows


SHARES = {"top1": "top-1", "top5": "top-5", "published_top1": "published top-1"}  # in percent, for people


def _text(rows, first):
    """A photo's name and below it what is in it; other rows as they are."""
    if "file" not in rows[0]:
        return "  ".join(_named(name, value) for row in rows for name, value in row.items() if value != "")
    lines = [rows[0]["file"]]
    for row in rows:
        if "low" in row:
            lines.append(f"  {row['low']:.4g} to {row['high']:.4g}, median {row['median']:.4g}")
        else:
            lines.append(f"  {row['probability']:6.1%}  {row['label']}")
    return "\n".join(lines)


def _named(name, value):
    return f"{SHARES[name]} {100 * value:.2f} %" if name in SHARES else f"{name} {value}"


def _csv(rows: Rows, first: bool) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    if first:
        writer.writeheader()
    writer.writerows({name: _printable(value) for name, value in row.items()} for row in rows)
    return out.getvalue().removesuffix("\n")


def _jsonl(rows: Rows, first: bool) -> str:
    """One line for a photo, its classes in a list."""
    if "rank" not in rows[0]:
        return "\n".join(map(json.dumps, rows))
    best = [{name: value for name, value in row.items() if name not in ("file", "rank")} for row in rows]
    return json.dumps({"file": rows[0]["file"], "top": best})


def _printable(value: Any) -> Any:
    """Text as it can be printed, whatever the bytes of a file's name are."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


# format -> what is printed for the rows of one photo; `first`: nothing was printed before.
FORMATS: Mapping[str, Callable[[Rows, bool], str]] = {"text": _text, "csv": _csv, "jsonl": _jsonl}

"""What a network costs: parameters, memory and operations of every layer, by the rules of the 1-bit literature.

Shapes are enough: no weights, no images. The rules stand in `DEFINITIONS`, which the tables print.
"""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from flax import traverse_util

from bireal_jax.shipping import graph

REAL_BITS = 32
BOPS_PER_OP = 64  # binary operations that a 64-bit processor does at once

DEFINITIONS = {
    "bits": "precision of a layer's input / of its weight: 1 behind a sign, else 32",
    "parameters": "of a layer with its bias and thresholds; binary: how many of them are 1-bit weights",
    "memory": "32 bits for a real-valued parameter, 1 bit for a binary one; 1 KiB = 8192 bits, 1 Mbit = 10^6 bits",
    "FLOPs": "multiply-accumulates, one operation each, where the input or the weight is real-valued, or both",
    "BOPs": "multiply-accumulates of a 1-bit input with a 1-bit weight",
    "OPs": f"FLOPs + BOPs / {BOPS_PER_OP}",
    "counted": "convolutions and fully connected layers on one image: kernel * inputs * outputs * pixels, padding too",
    "not counted": "arithmetic of batch norms and activations, pooling, additions (the rule of Bi-Real Net, ReActNet)",
    "no parameters": "running statistics of batch norms, and the scales of binary weights, which follow from these",
}

# leaves of the parameters of a module that is no convolution -> what it is
MODULES = {
    ("bias", "scale"): "batch norm",
    ("bias",): "batch norm without scale",
    ("shift_in", "shift_out", "slope"): "RPReLU",
    ("slope",): "PReLU",
    ("negative", "positive"): "two-sided PReLU",
}


@dataclass(frozen=True)
class Row:
    """What one layer stores, and what it computes on one image.

    Attributes:
      layer: path of the module; of parameters that belong to no convolution, how many modules of what kind have them.
      kind: "conv", "dense", "other" or "total". A row that is none of the first two has neither sizes nor bits.
      kernel, strides: (h, w).
      input, output: (h, w, c).
      input_bits, weight_bits: 1 or 32.
      parameters: all parameters of the layer, with bias and thresholds.
      binary: how many of them are 1-bit weights.
      flops, bops: multiply-accumulates in real arithmetic, and in 1-bit arithmetic.
      real: why weights that are computed from latent ones are real-valued, as of `graph.Op`.
    """

    layer: str
    kind: str
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    input_bits: int = 0
    weight_bits: int = 0
    parameters: int = 0
    binary: int = 0
    flops: int = 0
    bops: int = 0
    real: str = ""

    @property
    def memory(self) -> int:
        """Bits of all parameters."""
        return REAL_BITS * (self.parameters - self.binary) + self.binary

    @property
    def ops(self) -> float:
        """FLOPs + BOPs / 64."""
        return self.flops + self.bops / BOPS_PER_OP


def rows(module: nn.Module, variables: Any, image_shape: graph.Shape) -> list[Row]:
    """A row for each convolution and fully connected layer in order, then the parameters that belong to none.

    Args:
      module: from `models.build`.
      variables: {"params", "batch_stats"}, arrays or `jax.ShapeDtypeStruct`s.
      image_shape: (h, w, c) of the input.

    Raises:
      BadInput: the op graph has no operation for something.
    """
    ops = graph.trace(module, variables, image_shape)
    layers = [op for op in ops if op.kind in ("conv", "binary_conv")]
    own, others = _parameters(variables["params"], {op.path for op in layers})
    assert all(op.path in own for op in layers if op.binary_weight), "a layer's path is the one of its parameters"
    found = []
    for op in layers:
        shape = op.arrays["weight"].shape  # [kh, kw, cin, cout]
        number = op.inputs[0]
        source = ops[number - 1].shape if number else image_shape
        input_bits, weight_bits = (1 if bit else REAL_BITS for bit in (_is_sign(ops, number), op.binary_weight))
        macs = math.prod(shape) * op.shape[0] * op.shape[1]
        parameters = own.pop(op.path, 0)  # a layer that is called twice is stored once
        found.append(
            Row(
                op.path, "dense" if source[:2] == shape[:2] == (1, 1) else "conv", shape[:2],
                tuple(op.settings["strides"]), source, op.shape, input_bits, weight_bits, parameters,
                binary=math.prod(shape) if op.binary_weight and parameters else 0,
                flops=0 if input_bits == weight_bits == 1 else macs,
                bops=macs if input_bits == weight_bits == 1 else 0,
                real=op.real,
            )
        )  # fmt: skip
    return found + others


def _parameters(params, layers: Collection[str]) -> tuple[dict[str, int], list[Row]]:
    """How many parameters each layer owns, and rows of the rest: modules with leaves of the same names are one row.

    Counted on the parameters and not on the op graph, in which thresholds and batch norms are folded.
    """
    own, rest = defaultdict(int), defaultdict(dict)
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    for path, leaf in flat.items():
        module, _, name = path.rpartition("/")
        owners = [p for p in layers if module == p or (p and module.startswith(f"{p}/"))]
        if owners:
            own[max(owners, key=len)] += math.prod(leaf.shape)
        else:
            rest[module][name] = math.prod(leaf.shape)
    kinds = defaultdict(list)
    for leaves in rest.values():
        kinds[tuple(sorted(leaves))].append(sum(leaves.values()))
    return own, [
        Row(f"{len(sizes)} x {MODULES.get(names, ' + '.join(names))}", "other", parameters=sum(sizes))
        for names, sizes in kinds.items()
    ]


def _is_sign(ops, number) -> bool:
    """Whether a tensor is ±1: the output of a sign, perhaps in another order or in part."""
    if number == 0:
        return False
    op = ops[number - 1]
    moves = op.kind in ("reshape", "max_pool", "subsample", "concat")
    return op.kind == "sign" or (moves and all(_is_sign(ops, i) for i in op.inputs))


def notes(rows: Iterable[Row]) -> list[str]:
    """As `graph.notes`: what the table does not tell."""
    return graph.notes([(row.layer, row.real) for row in rows])


def total(rows: Iterable[Row]) -> Row:
    """The sum of all rows."""
    rows = list(rows)
    return Row(
        "total", "total", parameters=sum(r.parameters for r in rows), binary=sum(r.binary for r in rows),
        flops=sum(r.flops for r in rows), bops=sum(r.bops for r in rows),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- tables


def _by(sizes):
    return "x".join(map(str, sizes))


def _kind(row):
    if row.kind != "conv":
        return row.kind if row.kind == "dense" else ""
    strides = _by(row.strides if len(set(row.strides)) > 1 else row.strides[:1])
    return f"conv {_by(row.kernel)}" + (f"/{strides}" if strides != "1" else "")


def _count(value, unit=1, decimals=0):
    return f"{value / unit:,.{decimals}f}" if value else "-"


def _power(value):
    return f"{value:.3e}".replace("e+0", "e").replace("e+", "e")


TEXTS = 4  # so many columns of a table for reading are text, the others align to the right


def cells(rows: list[Row]) -> list[list[str]]:
    """The headings, the cells of every row, and those of the total."""
    sum_ = total(rows)
    unit, letter = (10**6, "M") if sum_.flops + sum_.bops >= 10**8 else (10**3, "k")
    columns: dict[str, Callable[[Row], str]] = {
        "layer": lambda r: r.layer, "kind": _kind, "input": lambda r: _by(r.input), "output": lambda r: _by(r.output),
        "bits": lambda r: f"{r.input_bits}/{r.weight_bits}" if r.weight_bits else "",
        "parameters": lambda r: _count(r.parameters), "binary": lambda r: _count(r.binary),
        "KiB": lambda r: _count(r.memory, 8192, 1),
        f"FLOPs [{letter}]": lambda r: _count(r.flops, unit, 3),
        f"BOPs [{letter}]": lambda r: _count(r.bops, unit, 3),
        f"OPs [{letter}]": lambda r: _count(r.ops, unit, 3),
    }  # fmt: skip
    return [list(columns), *([cell(row) for cell in columns.values()] for row in [*rows, sum_])]


def summary(rows: Iterable[Row]) -> dict[str, str]:
    """The total against the same network in 32 bits, in words."""
    sum_ = total(rows)
    floats, macs = REAL_BITS * sum_.parameters, sum_.flops + sum_.bops
    return {
        "memory": f"{sum_.memory / 1e6:.4g} Mbit, {floats / sum_.memory:.2f} times less than "
        f"the {floats / 1e6:.4g} Mbit of the same parameters in 32 bits",
        "operations": f"{_power(sum_.ops)} OPs, {macs / sum_.ops:.2f} times fewer than "
        f"the {_power(macs)} of the same network in real arithmetic",
        "in 1 bit": f"{sum_.bops / macs:.2%} of the operations (BOPs / (BOPs + FLOPs)), "
        f"{sum_.binary / sum_.parameters:.2%} of the parameters",
    }


def to_text(rows: Iterable[Row]) -> str:
    """The table in aligned columns, with summary and definitions below."""
    rows = list(rows)
    lines = cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(f"{c:{'<' if i < TEXTS else '>'}{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    rule = "-" * len(table[0])
    notes = [[f"{name:13}  {words}" for name, words in part.items()] for part in (summary(rows), DEFINITIONS)]
    return "\n".join([table[0], rule, *table[1:-1], rule, table[-1], "", *notes[0], "", *notes[1]]) + "\n"


def to_markdown(rows: Iterable[Row]) -> str:
    """The table in Markdown, with summary and definitions as lists below."""
    rows = list(rows)
    heading, *body = cells(rows)
    align = ["---" if i < TEXTS else "---:" for i in range(len(heading))]
    table = [f"| {' | '.join(line)} |" for line in [heading, align, *body]]
    notes = [[f"- {name}: {words}" for name, words in part.items()] for part in (summary(rows), DEFINITIONS)]
    return "\n".join([*table, "", *notes[0], "", *notes[1]]) + "\n"


# heading -> cell of the table for machines
FIELDS: dict[str, Callable[[Row], str | int]] = {
    "layer": lambda r: r.layer, "kind": lambda r: r.kind, "kernel": lambda r: _by(r.kernel),
    "strides": lambda r: _by(r.strides), "input": lambda r: _by(r.input), "output": lambda r: _by(r.output),
    "input_bits": lambda r: r.input_bits or "", "weight_bits": lambda r: r.weight_bits or "",
    "parameters": lambda r: r.parameters, "binary_parameters": lambda r: r.binary, "memory_bits": lambda r: r.memory,
    "flops": lambda r: r.flops, "bops": lambda r: r.bops,
    "ops": lambda r: f"{r.ops:.6f}".rstrip("0").rstrip("."),  # 64ths have six decimals
}  # fmt: skip


def to_csv(rows: Iterable[Row]) -> str:
    """The table for machines: exact numbers, the total in the last line, no definitions."""
    rows = list(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows([cell(row) for cell in FIELDS.values()] for row in [*rows, total(rows)])
    return out.getvalue()


FORMATS = {"text": to_text, "csv": to_csv, "md": to_markdown}

"""Cost tables against published figures and against counting by hand."""

import csv
import functools
import io
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from expected import MODELS

from bireal_jax import data, main, models
from bireal_jax.binary import binarize
from bireal_jax.binary.layers import BinaryConv
from bireal_jax.errors import BadInput
from bireal_jax.shipping import cost


def rows_of(module, image_shape):
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return cost.rows(module, jax.eval_shape(module.init, jax.random.key(0), image), image_shape)


@functools.cache
def table(name):
    """At the size of the publications: 224 pixels and 1000 classes, but for the networks of small images."""
    shape = MODELS[name][3]
    large = shape[0] == 64
    return rows_of(models.build(name, 1000 if large else 10), (224, 224, 3) if large else shape)


def digits4(value):
    return f"{value:.3e}"


# Counted on the authors' code at 224 pixels: memory and all-float memory in Mbit, BOPs, MACs of the real convolutions,
# of the head, OPs, MACs of the float network.
GOLDEN = {
    "bireal18": (33.51, 374.1, 1.676e9, 1.373e8, 512_000, 1.640e8, 1.814e9),
    "bireal34": (43.85, 697.5, 3.526e9, 1.373e8, 512_000, 1.929e8, 3.664e9),
    "bireal50": (182.5, 823.4, 3.597e9, 5.676e8, 2_048_000, 6.258e8, 4.166e9),
    "bireal152": (220.2, 1931.7, 1.102e10, 5.676e8, 2_048_000, 7.418e8, 1.159e10),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_totals_of_bireal_net(name):
    memory, floats, bops, conv, head, ops, macs = GOLDEN[name]
    total = cost.total(table(name))
    (dense,) = [row for row in table(name) if row.kind == "dense"]
    assert abs(total.memory / 1e6 - memory) <= 0.051 and abs(total.parameters * 32 / 1e6 - floats) <= 0.051
    assert digits4(total.bops) == digits4(bops)
    assert dense.flops == head and digits4(total.flops - dense.flops) == digits4(conv)
    assert digits4(total.ops) == digits4(ops) and digits4(total.flops + total.bops) == digits4(macs)


def test_bireal18_is_as_published():
    """The paper's table: 33.6 Mbit, 11.14 times less; 1.63e8 OPs, 11.06 times fewer. It seems to leave the head out."""
    total, head = cost.total(table("bireal18")), table("bireal18")[-2]
    assert (total.parameters, total.binary, total.memory) == (11_689_512, 10_985_472, 33_514_752)
    assert total.ops - head.flops == pytest.approx(1.63e8, rel=0.004)
    assert (total.flops + total.bops) / total.ops == pytest.approx(11.06, abs=0.005)
    assert 32 * total.parameters / total.memory == pytest.approx(11.14, rel=0.004)


# ReActNet-A: 0.87e8 in the authors' README. FLOPs and BOPs of A and R18: counted on their code; B, C: by the formula.
@pytest.mark.parametrize(
    ("name", "bops", "flops", "ops"),
    [
        ("react_a", 4.817e9, 0.119e8, 0.871e8),
        ("react_b", 4.688e9, 0.440e8, 1.172e8),
        ("react_c", 4.688e9, 1.403e8, 2.136e8),
        ("react_r18", 1.676e9, 1.378e8, 1.640e8),
        ("react_r34", 3.526e9, 1.378e8, 1.929e8),
    ],
)
def test_totals_of_reactnet(name, bops, flops, ops):
    total = cost.total(table(name))
    assert digits4(total.bops) == digits4(bops)
    assert (round(total.flops / 1e8, 3), round(total.ops / 1e8, 3)) == (flops / 1e8, ops / 1e8)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model(name):
    parameters, binary, convolutions, _ = MODELS[name]
    rows = table(name)
    total = cost.total(rows)
    assert (total.parameters, total.binary) == (parameters, binary)
    assert total.memory == sum(row.memory for row in rows) == 32 * (parameters - binary) + binary
    assert total.ops == pytest.approx(sum(row.ops for row in rows), rel=1e-12)
    layers = [row for row in rows if row.kind != "other"]
    assert sum(row.weight_bits == 1 for row in layers) == convolutions
    real_inputs = 1 if name in ("binarynet", "binary_alexnet") else 0  # its first convolution reads the image
    assert sum(row.bops > 0 for row in layers) == convolutions - real_inputs
    assert all((row.flops > 0) != (row.bops > 0) and row.parameters > 0 for row in layers)
    assert max(map(len, cost.to_text(rows).splitlines())) <= 140


def test_layers_counted_by_hand():
    """react_tiny: stride, 1x1 kernels, thresholds, RPReLU. Every number here is a product worked out by hand."""
    one, real = (1, 1), (32, 32)
    seen = [
        (r.layer, r.kind, r.kernel, r.strides, r.input, r.output, (r.input_bits, r.weight_bits))
        for r in table("react_tiny")
        if r.kind != "other"
    ]
    assert seen == [
        ("stem_conv", "conv", (3, 3), (2, 2), (8, 8, 1), (4, 4, 16), real),
        ("block1/binary_conv1", "conv", (3, 3), (1, 1), (4, 4, 16), (4, 4, 16), one),
        ("block1/binary_conv2", "conv", (1, 1), (1, 1), (4, 4, 16), (4, 4, 32), one),
        ("block2/binary_conv1", "conv", (3, 3), (2, 2), (4, 4, 32), (2, 2, 32), one),
        ("block2/binary_conv2", "conv", (1, 1), (1, 1), (2, 2, 32), (2, 2, 64), one),
        ("block3/binary_conv1", "conv", (3, 3), (1, 1), (2, 2, 64), (2, 2, 64), one),
        ("block3/binary_conv2", "conv", (1, 1), (1, 1), (2, 2, 64), (2, 2, 64), one),
        ("head", "dense", (1, 1), (1, 1), (1, 1, 64), (1, 1, 10), real),
    ]
    # parameters (with one threshold per input channel), binary ones, bits, FLOPs, BOPs, OPs
    assert [(r.parameters, r.binary, r.memory, r.flops, r.bops, r.ops) for r in table("react_tiny")] == [
        (144, 0, 4608, 2304, 0, 2304.0),  # 9 * 1 * 16, at 16 pixels
        (2304 + 16, 2304, 2304 + 512, 0, 36864, 576.0),
        (512 + 16, 512, 512 + 512, 0, 8192, 128.0),
        (9216 + 32, 9216, 9216 + 1024, 0, 36864, 576.0),  # 4 pixels, behind the stride
        (2048 + 32, 2048, 2048 + 1024, 0, 8192, 128.0),
        (36864 + 64, 36864, 36864 + 2048, 0, 147456, 2304.0),
        (4096 + 64, 4096, 4096 + 2048, 0, 16384, 256.0),
        (640 + 10, 0, 20800, 640, 0, 640.0),
        (576, 0, 18432, 0, 0, 0.0),  # 7 batch norms: 2 * (16 + 16 + 32 + 32 + 64 + 64 + 64)
        (816, 0, 26112, 0, 0, 0.0),  # 6 RPReLUs: 3 * (16 + 32 + 32 + 64 + 64 + 64)
    ]
    assert [r.layer for r in table("react_tiny")[-2:]] == ["7 x batch norm", "6 x RPReLU"]


@pytest.mark.parametrize(
    ("act", "weight", "bits"), [("ste", "real", (1, 32)), ("clip", "released", (32, 1)), ("relu", "real", (32, 32))]
)
def test_a_layer_is_binary_only_with_both_operands_in_1_bit(act, weight, bits):
    """The first step of a two-step training, and the float network: real arithmetic, memory as stored."""
    rows = rows_of(models.build("bireal_tiny", 10, act=act, weight=weight), (8, 8, 1))
    total, row = cost.total(rows), rows[1]  # the one behind the stem
    assert (row.input_bits, row.weight_bits, row.flops, row.bops) == (*bits, 589_824, 0)
    assert (total.bops, total.flops) == (0, 51_840 + 4_423_680)
    assert total.binary == (0 if weight == "real" else MODELS["bireal_tiny"][1])
    assert (total.memory == 32 * total.parameters) == (weight == "real")


@pytest.mark.parametrize("weight", [name for name in binarize.WEIGHTS if name != "real"])
def test_every_weight_binarizer_costs_the_same(weight):
    """With a scale that follows from the weights, or is always 1."""
    assert rows_of(models.build("bireal_tiny", 10, weight=weight), (8, 8, 1)) == table("bireal_tiny")


class Moved(nn.Module):
    """Signs that reach a convolution by another way than directly, and one layer that is called twice."""

    how: str
    dtype: type = jnp.float32
    param_dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, train=False, progress=1.0):
        same = {"activation": lambda x: x, "weight": binarize.weight("sign"), "kernel_size": (1, 1)}
        y = binarize.sign(x)
        if self.how == "pooled":
            y = nn.max_pool(y, (2, 2), (2, 2))
        if self.how == "concatenated":
            y = jnp.concatenate([y, y], -1)
        if self.how == "beside a real one":
            y = jnp.concatenate([y, x], -1)
        if self.how == "scaled":
            y = y * 0.5
        conv = BinaryConv(4, **same, name="conv")
        y = conv(y)
        y = conv(binarize.sign(y)) if self.how == "twice" else y
        return y.reshape(len(y), -1)


@pytest.mark.parametrize(
    ("how", "bits", "parameters"),
    [
        ("directly", [1], [16]), ("pooled", [1], [16]), ("concatenated", [1], [32]), ("beside a real one", [32], [32]),
        ("scaled", [32], [16]), ("twice", [1, 1], [16, 0]),
    ],
)  # fmt: skip
def test_what_counts_as_1_bit_input(how, bits, parameters):
    rows = rows_of(Moved(how), (4, 4, 4))
    assert [r.input_bits for r in rows] == bits
    assert [r.parameters for r in rows] == [r.binary for r in rows] == parameters


def test_the_class_of_the_model_is_no_part_of_a_path():
    class lower(Moved):
        pass

    assert rows_of(lower("directly"), (4, 4, 4)) == rows_of(Moved("directly"), (4, 4, 4))


@pytest.mark.parametrize("name", ["bireal50", "react_tiny"])
def test_csv_holds_the_rows_and_the_total(name):
    rows = table(name)
    read = list(csv.DictReader(io.StringIO(cost.to_csv(rows))))
    for row, line in zip([*rows, cost.total(rows)], read, strict=True):
        numbers = [int(line[k]) for k in ("parameters", "binary_parameters", "memory_bits", "flops", "bops")]
        assert numbers == [row.parameters, row.binary, row.memory, row.flops, row.bops]
        assert float(line["ops"]) == row.ops
        assert (line["layer"], line["kind"]) == (row.layer, row.kind)
        for field in ("kernel", "strides", "input", "output"):
            assert tuple(int(v) for v in line[field].split("x") if v) == getattr(row, field)
        assert [line["input_bits"], line["weight_bits"]] == [str(b or "") for b in (row.input_bits, row.weight_bits)]
    assert read[-1]["layer"] == "total"


def test_csv_keeps_64ths():
    line = cost.to_csv([cost.Row("a", "conv", flops=10, bops=1)]).splitlines()[1]
    assert line.endswith(",10,1,10.015625")


@pytest.mark.parametrize("name", ["bireal18", "react_tiny"])
def test_text_and_markdown_show_the_same_cells(name):
    rows = table(name)
    markdown = cost.to_markdown(rows).split("\n\n")[0].splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in markdown]
    assert {len(line) for line in cells} == {11} and len(cells) == len(rows) + 3
    assert all(re.fullmatch("-{3,}:?", c) for c in cells[1])
    assert all(line.startswith("| ") and line.endswith(" |") for line in markdown)
    text = [line.split() for line in cost.to_text(rows).split("\n\n")[0].splitlines() if not line.startswith("---")]
    assert text == [" ".join(line).split() for line in [cells[0], *cells[2:]]]
    column = {heading.split(" ")[0]: i for i, heading in enumerate(cells[0])}
    unit = 1e6 if "[M]" in markdown[0] else 1e3
    for row, line in zip([*rows, cost.total(rows)], cells[2:], strict=True):
        value = lambda heading, line=line: float(line[column[heading]].replace(",", "").replace("-", "0"))
        assert (value("parameters"), value("binary")) == (row.parameters, row.binary)
        assert value("KiB") == pytest.approx(row.memory / 8192, abs=0.051)
        shown = [value("FLOPs"), value("BOPs"), value("OPs")]
        assert shown == pytest.approx([row.flops / unit, row.bops / unit, row.ops / unit], abs=0.00051)
    assert unit == (1e6 if name == "bireal18" else 1e3)


def test_summary_and_definitions_stand_below():
    text = cost.to_text(table("bireal18"))
    for words in (
        "33.51 Mbit, 11.16 times less than the 374.1 Mbit", "1.640e8 OPs, 11.06 times fewer than the 1.814e9",
        "92.40% of the operations", "93.98% of the parameters", "FLOPs + BOPs / 64", *cost.DEFINITIONS,
    ):  # fmt: skip
        assert words in text and words in cost.to_markdown(table("bireal18")), words
    assert all(text.count(words) == 1 for words in cost.DEFINITIONS.values())
    assert "1.102e10" in cost.to_markdown([cost.Row("a", "conv", parameters=1, bops=11_020_000_000)])


def test_known_data_sets():
    """One row for each data set, and the digits, which are always there, are as the row says."""
    digits, stand_in = data.build("digits", image_size=8), data.stand_in("digits", 8)
    assert (stand_in.image_shape, stand_in.num_classes) == (digits.image_shape, digits.num_classes)
    assert data.stand_in("cifar10", 32).image_shape == (32, 32, 3) and data.stand_in("cifar10", 32).num_classes == 10
    with pytest.raises(BadInput, match="unknown data set 'cifar'; .*did you mean cifar10"):
        data.stand_in("cifar", 32)


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def command(request, tmp_path, monkeypatch, capsys):
    """The standard output and error of the command, which leaves no workdir."""

    def run(*arguments):
        monkeypatch.chdir(request.config.rootpath)
        main.main(["main", *arguments, "--mode=cost", f"--workdir={tmp_path / 'w'}"])
        assert not (tmp_path / "w").exists()
        return capsys.readouterr()

    return run


def test_command_without_data(command):
    assert command("--config=configs/r18.py").out == cost.to_text(table("bireal18"))
    digits = cost.to_csv(table("bireal_tiny"))
    assert command("--config=configs/digits.py", "--format=csv").out == digits
    small = command("--config=configs/r18.py", "--config.data.image_size=64", "--format=md").out
    assert "| stem_conv | conv 7x7/2 | 64x64x3 | 32x32x64 |" in small


def test_command_takes_the_last_stage(command):
    """The first one has real weights."""
    out = command("--config=configs/digits_two_step.py", "--format=csv").out
    assert out == cost.to_csv(table("bireal_tiny"))


def test_command_counts_the_classes_of_a_folder(command, tmp_path):
    folder = ["--config=configs/r18.py", "--config.data.name=folder", "--config.data.image_size=32", "--format=csv"]
    absent = command(*folder)
    assert "1x1x1000" in absent.out and "no classes at config.data.dir=''; counted for 1000" in absent.err
    for split in ("train", "val"):
        for name in ("ant", "bee", "cow"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            (tmp_path / "images" / split / name / "1.png").touch()
    found = command(*folder, f"--config.data.dir={tmp_path / 'images'}")
    assert "1x1x3" in found.out and "1x1x1000" not in found.out and found.err == ""


def test_mistakes(command):
    with pytest.raises(BadInput, match="format"):
        command("--config=configs/digits.py", "--format=html")
    with pytest.raises(BadInput, match="unknown model 'bireal19'"):
        command("--config=configs/r18.py", "--config.model.name=bireal19")
    with pytest.raises(BadInput, match="images of 8 pixels are too small"):
        command("--config=configs/r18.py", "--config.data.image_size=8")


def test_help_names_the_mode():
    shown = subprocess.run([sys.executable, "-m", "bireal_jax.main", "--help"], capture_output=True, text=True)
    assert "--mode=cost" in shown.stdout and "--format=text|csv|md" in shown.stdout

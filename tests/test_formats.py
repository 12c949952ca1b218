"""Files for other engines compute what the numpy reference computes: ONNX, OpenVINO, QONNX and C, by the engines."""

import dataclasses
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import packed
import pytest
from engine.make_seeds import SEEDS, Builder
from small import small

from bireal_jax import main
from bireal_jax.errors import BadInput
from bireal_jax.runtime import container, reference
from bireal_jax.shipping import __main__ as command
from bireal_jax.shipping import cost, export, formats, to_c, to_onnx, walk
from bireal_jax.training import train
from experiments.mcu import run as mcu

COMPILER = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",), "qonnx": ("onnx", "onnxruntime", "qonnx")}
LARGER = [pytest.param(name, marks=pytest.mark.slow) for name in ("ebn_tiny", "xnor_tiny", "resnet_tiny", "bireal20")]


@pytest.fixture(params=list(formats.FORMATS))
def style(request):
    """Each format whose engine is there."""
    if request.param == "c" and COMPILER is None:
        pytest.skip("needs a C compiler (Debian: gcc)")
    for package in PACKAGES.get(request.param, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    return request.param


def pixels(program, count=3):
    return np.random.default_rng(1).integers(0, 256, (count, *program.shape(0))).astype(np.uint8)


def outputs(style, program, folder, images):
    """Those of the engine and of the reference, [n, outputs]."""
    row = formats.FORMATS[style]
    path = folder / f"net{row.suffixes[0]}"
    row.write(program, path)
    return row.run(path, images).reshape(len(images), -1), program.run(images)[-1].reshape(len(images), -1)


def agree(style, program, folder, images=None):
    images = pixels(program) if images is None else images
    ours, theirs = outputs(style, program, folder, images)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("seed", SEEDS)
def test_every_operation(style, seed, tmp_path):
    """Between them the seeds have every operation, groups, borders of each sign and odd numbers of channels."""
    agree(style, SEEDS[seed](), tmp_path)


@pytest.mark.parametrize("name", ["bireal_tiny", "react_tiny", *LARGER])
def test_networks(style, name, tmp_path):
    agree(style, packed.program(name), tmp_path)


def test_seeds_have_every_operation():
    assert {op["op"] for make in SEEDS.values() for op in make().spec["ops"]} == set(reference.KINDS)


def test_zero_has_the_sign_plus_one(style, tmp_path):
    """0 and -0, for what a binary convolution reads and for what others read."""
    net = Builder(2, 2, 1)
    net.conv(16, 1)
    net.add("affine", arrays={"scale": np.zeros(16), "offset": np.repeat([0.0, -0.0], 8)})
    sign = net.add("sign")
    net.conv(8, 1, pad=0)
    net.add("concat", net.last, sign)
    program = net.program()
    ours, theirs = outputs(style, program, tmp_path, pixels(program))
    np.testing.assert_array_equal(ours, theirs)
    assert (ours.reshape(3, 2, 2, 24)[..., 8:] == 1).all()


def test_a_sum_that_only_a_sign_reads(style, tmp_path):
    """OpenVINO fuses it wrongly, unless something lies between."""
    net = Builder(6, 6, 3)
    shortcut = net.conv(16, 1)
    net.add("sign")
    net.conv(16, 3, 1, 1, pad=0)
    net.channels("affine")
    net.add("add", net.last, shortcut)
    net.add("sign")
    net.conv(16, 3, 1, 1, pad=0)
    net.channels("affine")
    net.conv(4)
    agree(style, net.program(), tmp_path)


@pytest.mark.parametrize("channels", [8, 12, 33, 64])
def test_numbers_of_channels(style, channels, tmp_path):
    net = Builder(5, 5, 2)
    net.conv(channels, 1)
    net.add("sign")
    net.conv(channels, 3, 2, 1, pad=0)
    net.channels("affine")
    agree(style, net.program(), tmp_path)


def test_the_same_file_always(style, tmp_path):
    if style == "openvino":
        pytest.skip("its files number their nodes on")
    row, found = formats.FORMATS[style], []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        row.write(SEEDS["react"](), folder / f"net{row.suffixes[0]}")
        found.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert found[0] == found[1] and len(found[0]) == len(row.suffixes)


def test_onnx_files_have_bits(tmp_path):
    pytest.importorskip("onnx")
    program = packed.program("bireal_tiny")
    to_onnx.write(program, tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").stat().st_size < 1.2 * len(container.dump(program))


# ------------------------------------------------------------------------------------------------------------------- C


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    "seeds, flags",
    [
        (["groups", "pooled"], ["-mpopcnt"]),
        pytest.param(SEEDS, ["-fsanitize=address,undefined", "-fno-sanitize-recover"], marks=pytest.mark.slow),
    ],
    ids=["popcnt", "sanitizers"],
)
def test_c_with_a_population_count_and_within_its_arrays(seeds, flags, tmp_path, monkeypatch):
    (tmp_path / "try.c").write_text("int main(void) { return 0; }")
    if subprocess.run([COMPILER, *flags, "try.c"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip(f"the compiler has no {flags[0]}")
    monkeypatch.setattr(to_c, "STRICT", (*to_c.STRICT, *flags))
    for seed in seeds:
        agree("c", SEEDS[seed](), tmp_path)


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_c_adds_bits_exactly(tmp_path):
    """More than 31 words in a window: their sums of bytes would run over; and nothing is rounded."""
    net = Builder(4, 4, 1)
    net.conv(300, 1)
    net.add("sign")
    net.conv(3, 3, 1, 1, pad=0)
    program = net.program()
    ours, theirs = outputs("c", program, tmp_path, pixels(program))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.skipif(not COMPILER, reason="needs a C compiler")
@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_each_file_that_is_written_is_named_with_its_size(tmp_path, capsys):
    program = SEEDS["bireal"]()
    found = formats.write(program, tmp_path / "net.c", "c", pixels(program), "images of noise")
    sizes = {path: path.stat().st_size for path in (tmp_path / "net.c", tmp_path / "net.h")}
    assert ", ".join(f"{path}: {size:,} bytes" for path, size in sizes.items()) + "; " in capsys.readouterr().out
    assert found["bytes"] == sum(sizes.values())


def test_c_is_checked_by_a_relative_path_with_a_hyphen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, program = Path("my-net.c"), packed.program("bireal_tiny")
    to_c.write(program, path)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    np.testing.assert_allclose(to_c.run(path, images), program.run(images)[-1].reshape(2, -1), rtol=1e-4, atol=1e-4)


def test_words_of_a_packed_file_are_no_code(style, tmp_path):
    """A file is not trusted: its model, package, labels and layers may be called anything."""
    program, words = SEEDS["react"](), '*/ int x(; /* \n#error "?"\0 ]]> \\\n'
    program.spec |= {"model": words, "package": words, "labels": [words] * len(program.spec["labels"])}
    for op in program.spec["ops"]:
        op["path"] = words
    agree(style, container.parse(container.dump(program)), tmp_path)


def test_c_takes_little_memory_and_no_library(tmp_path):
    """One map of 8 KiB, a shortcut beside it, and the bits."""
    said = to_c.write(packed.program("bireal_tiny"), tmp_path / "my-net.c")
    body, header = (tmp_path / "my-net.c").read_text(), (tmp_path / "my-net.h").read_text()
    assert "10,568 of static arrays" in said and "#define MY_NET_RAM 10568 " in header
    assert "void my_net_run(const uint8_t *image, float *outputs);" in header
    assert set(re.findall(r"#include (\S+)", body + header)) == {"<stdint.h>", "<string.h>", '"my-net.h"'}
    assert not re.search(r"\b(malloc|free|static\s+(?!const|float|uint32_t|int|void|inline))\b", body)


def test_c_that_no_memory_holds():
    net = Builder(1, 1, 1)
    net.conv(1)
    program = net.program()
    for op in (program.spec["image"], *program.spec["ops"]):
        op["shape"] = [1 << 14, 1 << 14, 1]
    with pytest.raises(BadInput, match="static buffers would take 2,048 MB; the limit is 1,024"):
        to_c.Writer(program).sources("net", "net.h")
    program.spec["image"]["shape"] = program.spec["ops"][0]["shape"] = [1 << 14, 1 << 14, 9]
    with pytest.raises(BadInput, match=r"an image takes [\d,]+ MB in the numpy reference"):
        formats.write(program, Path("net.c"), "c", np.zeros((1, 1, 1, 1), np.uint8), "images")


@pytest.mark.slow
@pytest.mark.skipif(mcu.missing() != "", reason=f"needs {mcu.missing()} (Debian: gcc-arm-none-eabi qemu-system-arm)")
@pytest.mark.parametrize("board", mcu.BOARDS)
@pytest.mark.parametrize("name", ["bireal_tiny", "bireal20", "react_tiny"])
def test_c_on_a_microcontroller(name, board):
    program = packed.program(name)
    images = formats.pictures(program.shape(0), 4)
    done = mcu.run(program, images, board)
    theirs = program.run(images)[-1].reshape(4, -1)
    np.testing.assert_allclose(done.outputs, theirs, rtol=0, atol=3e-6 * np.abs(theirs).max())
    assert done.ram < 100_000 and 100_000 < done.instructions < 100_000_000


# ------------------------------------------------------------------------------------------------ files and commands


def test_a_wrong_file_takes_no_name(tmp_path, monkeypatch):
    def wrong(path, images):
        return -np.ones((len(images), 10), np.float32)

    def broken(path, images):
        raise RuntimeError("no such node\nmore")

    program, path = packed.program("bireal_tiny"), tmp_path / "net.c"
    images = formats.pictures(program.shape(0), 4)
    path.write_text("old")
    for run, said in [(wrong, "computes something else .* not written"), (broken, "does not take .*: no such node$")]:
        monkeypatch.setitem(formats.FORMATS, "c", dataclasses.replace(formats.FORMATS["c"], run=run))
        with pytest.raises(BadInput, match=re.compile(said, re.DOTALL)):
            formats.write(program, path, "c", images, "images")
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(BadInput, match="cannot write"):
        formats.write(program, path / "net.c", "c", images, "images")


def test_names_of_files_and_formats(tmp_path, capsys):
    for style, name in [("onnx", "net.xml"), ("openvino", "net"), ("c", "net.h"), ("qonnx", "net.safetensors")]:
        with pytest.raises(BadInput, match=f"{name} does not end in .*{style} do"):
            formats.named(style, tmp_path / name)
    with pytest.raises(BadInput, match="unknown format 'onxx'.*did you mean onnx"):
        formats.named("onxx", tmp_path / "net.onnx")
    for mode, styles in {"cost": cost.FORMATS, "export": ["packed", *formats.FORMATS]}.items():
        assert [main.chosen_format(mode, style) for style in styles] == [*styles]
    assert [main.chosen_format(mode, "") for mode in ("train", "cost", "export")] == ["", "text", "packed"]
    for mode, style in [("export", "csv"), ("cost", "onnx"), ("train", "c")]:
        with pytest.raises(BadInput, match=f"--format={style} is nothing that --mode={mode} writes"):
            main.chosen_format(mode, style)
    with pytest.raises(SystemExit):
        command.main([str(packed.written("bireal_tiny")), str(tmp_path / "net.tflite")])
    assert "ends in none of .onnx, .xml, .c" in capsys.readouterr().err


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    for name in ("onnx", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
        row = formats.FORMATS[name]
        with pytest.raises(BadInput, match=rf"{name} is missing; pip install -e '\.\[formats\]' where the package is"):
            row.write(packed.program("bireal_tiny"), tmp_path / f"net{row.suffixes[0]}")
    monkeypatch.setattr(to_c.shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match="no C compiler"):
        to_c.run(tmp_path / "net.c", np.zeros((1, 8, 8, 1), np.uint8))


def test_an_operation_that_a_format_does_not_have():
    program = packed.program("bireal_tiny")
    kinds = dict.fromkeys({op["op"] for op in program.spec["ops"]} - {"avg_pool"}, lambda *_, **__: None)
    with pytest.raises(BadInput, match=r"layer 'stage2_block1' has the operation avg_pool, .*\n.*packed"):
        walk.walk(program, None, kinds)


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_a_packed_file_is_converted(tmp_path, capsys):
    command.main([str(packed.written("bireal_tiny")), str(tmp_path / "deep" / "net.c")])
    out = capsys.readouterr().out
    assert "on 32 images of digits: " in out and "of constants (flash)" in out
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["net.c", "net.h"]


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_a_run_is_exported(tmp_path, capsys):
    config = small(total_steps=4, eval_steps=4)
    train.run(config, tmp_path)
    found = export.run(config, tmp_path, style="c")
    assert found["images"] == found["same_top1"] == 32 and found["flipped"] <= 2
    out = capsys.readouterr().out
    assert f"{tmp_path / 'net.c'}: " in out and "on 32 test images: 32 times the same class" in out
    assert not (tmp_path / "net.safetensors").exists()
    with pytest.raises(BadInput, match="does not end in .c"):
        export.run(config, tmp_path, tmp_path / "net.txt", style="c")

"""What files for other engines have beside the network, and on which images they are checked."""

import importlib.util
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import packed
import pytest
from engine.make_seeds import SEEDS
from PIL import Image
from small import small

from bireal_jax import build
from bireal_jax.running import described, settings
from bireal_jax.runtime import container
from bireal_jax.shipping import __main__ as command
from bireal_jax.shipping import formats, to_c, to_onnx

COMPILERS = [c for c in (["gcc", "-std=c99"], ["clang", "-std=c99"], ["g++", "-x", "c++"]) if shutil.which(c[0])]
# What ends a literal, a comment, a line or an element, begins an escape, a format or a trigraph, or is no text
HOSTILE = [
    '"; int main(void){return 1;} /*', "*/ #error\n#define x", "a\r\n\\", "??/", "??=include <x>", "\\n\\0\\x41",
    "größer 猫 🐈", "", "]]> <b a='1'>&amp;&lt;", "\u202e\u2066", "1", "\\", '\\"', "\ud800", "9" * 9000,
    "ä" * 200, "$(rm)", "%s%n",
]  # fmt: skip


def named(labels, ids=None):
    """A packed network with these classes, as read from a file."""
    net = SEEDS["smallest"]()
    program = container.Program(json.loads(json.dumps(net.spec)), {})
    count = len(labels)
    program.tensors["0.weight"] = np.ones((1, 1, 1, count), np.float32)
    program.spec["ops"][0]["shape"] = [1, 1, count]
    program.spec |= {"labels": labels} | ({"ids": ids} if ids else {})
    return container.parse(container.dump(program))


def printed(folder, compiler, count):
    """The names that a C program reads, as bytes."""
    (folder / "main.c").write_text(
        f'#include <stdio.h>\n#include "net.h"\nint main(void)\n{{\n  int i;\n  for (i = 0; i < {count}; i++)\n'
        '    printf("%s%c", net_classes[i], 1);\n  return 0;\n}\n'
    )
    flags = [flag for flag in to_c.STRICT if not flag.startswith("-std")]
    subprocess.run([*compiler, *flags, "main.c", "-o", "main"], cwd=folder, check=True, capture_output=True)
    return subprocess.run([folder / "main"], check=True, capture_output=True).stdout.split(b"\1")[:-1]


@pytest.mark.parametrize("compiler", COMPILERS, ids=lambda c: c[0])
def test_names_of_classes_in_c_are_data(compiler, tmp_path):
    program = named(HOSTILE)
    to_c.write(program, tmp_path / "net.c")
    header = (tmp_path / "net.h").read_text()
    assert header.isascii() and all(ord(letter) >= 32 or letter == "\n" for letter in header) and "??" not in header
    found = printed(tmp_path, compiler, len(HOSTILE))
    expected = [name.encode("utf-8", "backslashreplace") for name in HOSTILE]
    assert [e for e in expected if len(e) <= to_c.MAX_NAME] == [f for f in found if len(f) < to_c.MAX_NAME]
    assert [len(f) for f in found if len(f) >= to_c.MAX_NAME] == [250, 250]
    assert all(e.startswith(f) and f.decode() is not None for e, f in zip(expected, found, strict=True))


@pytest.mark.skipif(not COMPILERS, reason="needs a C compiler")
def test_names_cost_nothing_where_nobody_reads_them_and_the_file_still_runs(tmp_path):
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    sizes = []
    for labels in (HOSTILE, []):
        program = named(HOSTILE) if labels else named([""] * len(HOSTILE))
        program.spec["labels"] = labels
        to_c.write(program, tmp_path / "net.c")
        np.testing.assert_allclose(
            to_c.run(tmp_path / "net.c", images), program.run(images)[-1].reshape(5, -1), rtol=1e-6
        )
        assert ("net_classes" in (tmp_path / "net.h").read_text()) == bool(labels)
        subprocess.run([COMPILERS[0][0], *to_c.STRICT, "-c", "net.c"], cwd=tmp_path, check=True)
        made = subprocess.run(["size", "net.o"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        sizes.append(made.splitlines()[1].split()[:3])
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("style", ["onnx", "qonnx"])
def test_names_of_classes_in_onnx(style, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    row, path = formats.FORMATS[style], tmp_path / "net.onnx"
    ids = [f"n{i}" for i in range(len(HOSTILE))]
    row.write(named(HOSTILE, ids), path)
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(properties["classes"]) == HOSTILE and json.loads(properties["ids"]) == ids
    row.write(packed.program("bireal_tiny"), path)
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert set(properties) == {"bireal_jax", "classes"} and json.loads(properties["classes"])[3] == "name 3"
    row.write(SEEDS["map"](), path)
    assert [p.key for p in onnx.load(path).metadata_props] == ["bireal_jax"]
    if style == "onnx" and importlib.util.find_spec("onnxruntime"):
        to_onnx.write(named(HOSTILE), path)
        assert to_onnx.run(path, np.zeros((1, 1, 1, 1), np.uint8)).shape == (1, len(HOSTILE))


def test_names_of_classes_in_openvino(tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    formats.FORMATS["openvino"].write(named(HOSTILE), tmp_path / "net.xml")
    model = openvino.Core().read_model(str(tmp_path / "net.xml"))
    assert json.loads(model.get_rt_info(["bireal_jax", "classes"]).astype(str)) == HOSTILE


# ------------------------------------------------------------------------------------------------------ what it says


def run(capsys, *arguments, status=0):
    try:
        command.main([*map(str, arguments)])
        found = 0
    except SystemExit as left:
        found = left.code
    out = capsys.readouterr()
    assert found == status, out.err
    return out.out + out.err


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@needs_compiler
def test_a_run_is_checked_on_its_own_images(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs = tmp_path / "photos"
    for i in range(24):
        place = photographs / f"class {i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)).save(place / f"{i}.png")
    config = small(**{"data.name": "folder", "data.dir": str(photographs), "data.image_size": 8})
    (tmp_path / "run").mkdir()
    Path("run/config.json").write_text(settings.to_json(config))
    Path("run/data.json").write_text(json.dumps({"stages": [described.row(build.source(config))]}))
    Path("run/net.safetensors").write_bytes(container.dump(SEEDS["bireal"]()))
    for net in ("run", "run/net.safetensors"):
        said = run(capsys, net, "net.c")
        held_out = int(said.split(" held-out images of the run in run: ")[0].split()[-1])
        assert 1 <= held_out < 24 and "note" not in said and "digits" not in said
    assert '"\\303\\274"' in Path("net.h").read_text()
    assert "on 12 photos of photos/class 1: 12 times" in run(capsys, "run", "net.c", "--images=photos/class 1")
    assert "on 24 photos of photos: " in run(capsys, "run", "net.c", "--images", "photos")
    config.data.image_size = 16
    Path("run/config.json").write_text(settings.to_json(config))
    assert "are at hand: they are (16, 16, 3), and the network takes (8, 8, 3)\n" in run(capsys, "run", "net.c")
    shutil.move("photos", "gone")
    said = run(capsys, "run", "net.c")
    assert "note: no test images of the run in run are at hand: " in said and "on 32 images of digits" in said
    shutil.copy("run/net.safetensors", "net.safetensors")
    said = run(capsys, "net.safetensors", "net.c")
    assert said.startswith("note: it is checked on handwritten digits, enlarged; --images=PLACE checks it on photos\n")
    Path("gone/broken.jpg").write_text("<html>")
    assert "broken.jpg cannot be decoded" in run(capsys, "net.safetensors", "n.c", "--images=gone/*.jpg", status=2)
    assert "no photos at none*" in run(capsys, "net.safetensors", "n.c", "--images=none*", status=2)
    assert not Path("n.c").exists()


@needs_compiler
def test_a_network_of_the_package_is_written_by_its_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = run(capsys, "digits", "my.c")
    assert "note" not in said and "on 32 images of digits: 32 times the same class" in said
    assert "static const char *const my_classes[10]" in Path("my.h").read_text()


def test_arguments_in_the_other_order_and_none(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(packed.written("bireal_tiny"), "my net.safetensors")
    said = run(capsys, "net.c", "my net.safetensors", status=2).splitlines()
    assert shlex.split(said[1])[3:] == ["my net.safetensors", "net.c"] and "comes first" in said[0]
    Path("run").mkdir()
    assert "run is a folder, and none of a run" in run(capsys, "run", "net.c", status=2)
    said = run(capsys, status=2)
    assert said.count("\n  python -m bireal_jax.shipping ") == 2 and len(said.splitlines()) < 8

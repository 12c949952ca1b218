"""The engine in WebAssembly, web/bireal.mjs under Node: against the native engine, the reference, and damaged files."""

import importlib.util
import json
import platform
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import packed
import pytest
from engine import make_seeds
from expected import MODELS

from bireal_jax import runtime
from bireal_jax.errors import BadInput
from bireal_jax.runtime import container, photos, reference

ROOT = Path(__file__).parents[1]
TESTS, WEB = Path(__file__).parent / "engine", ROOT / "web"
build = runpy.run_path(str(WEB / "build.py"))
needs_engine = pytest.mark.skipif(not runtime.available(), reason="needs the compiled engine")
needs_zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs zig (pip install ziglang)")
EXACT = ("sign", "binary_conv", "max_pool", "reshape", "concat", "subsample", "pad_channels")


def node(verb, *arguments, flags=()):
    """What tests/engine/wasm.mjs prints."""
    if not shutil.which("node"):
        pytest.skip("needs Node 18 or newer (Debian: nodejs)")
    done = subprocess.run(
        ["node", *flags, TESTS / "wasm.mjs", verb, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def images(name, n):
    return np.random.default_rng(3).integers(0, 256, (n, *MODELS[name][-1])).astype(np.uint8)


def floats(path):
    return np.fromfile(path, np.float32)


def test_what_is_committed_was_built_of_these_sources():
    data = build["TARGET"].read_bytes()
    assert data.endswith(build["section"](b"sources", build["digest"]().encode())), "python web/build.py builds it anew"
    assert len(data) < 300_000


@needs_zig
@pytest.mark.slow
def test_the_same_file_is_built_again(tmp_path):
    build["build"](tmp_path / "bireal.wasm")
    assert (tmp_path / "bireal.wasm").read_bytes() == build["TARGET"].read_bytes()


@needs_engine
@pytest.mark.parametrize("precision", runtime.PRECISIONS)
@pytest.mark.parametrize("name", ["bireal_tiny", "react_tiny", "bireal20", "vgg_small"])
def test_logits_are_the_native_ones(name, precision, tmp_path):
    """On x86 those of the portable kernels bit for bit: both round after every product."""
    path, batch = packed.written(name), images(name, 3)
    batch.tofile(tmp_path / "images")
    said = json.loads(node("run", path, tmp_path / "images", tmp_path / "out", precision))
    found = floats(tmp_path / "out").reshape(3, -1)
    expected = runtime.load(path, precision=precision, kernels="portable")(batch)
    if platform.machine() in ("x86_64", "AMD64"):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    shares = np.exp(expected[0] - expected[0].max())
    best = np.argsort(-shares)[:5]
    assert [row["label"] for row in said["top"]] == [f"name {i}" for i in best]
    np.testing.assert_allclose([row["probability"] for row in said["top"]], (shares / shares.sum())[best], rtol=1e-3)
    program = container.read(path)
    weights = [a for i, _ in enumerate(program.spec["ops"]) for a in program.arrays(i).values()]
    assert said["float"] == 4 * sum(a.size for a in weights)


@pytest.mark.parametrize("name", ["bireal_tiny", "res_tiny", "react_tiny", "bireal20"])
def test_every_operation_is_the_reference(name, tmp_path):
    """On the engine's own inputs: what is ±1 bit for bit, what is real-valued to rounding."""
    path, image = packed.written(name), images(name, 1)
    image.tofile(tmp_path / "image")
    node("tensors", path, tmp_path / "image", tmp_path / "out")
    program, flat = container.read(path), floats(tmp_path / "out")
    shapes = [program.shape(i) for i in range(len(program.spec["ops"]) + 1)]
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    tensors = [part.reshape(1, *s) for part, s in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
    np.testing.assert_allclose(tensors[0], program.normalize(image), atol=1e-6)
    for i, op in enumerate(program.spec["ops"]):
        arrays = program.arrays(i)
        expected = reference.apply(op, arrays, [tensors[j] for j in op["inputs"]])
        terms = np.prod(arrays["weight"].shape[:-1]) if op["op"] == "conv" else 1
        tolerance = 0 if op["op"] in EXACT else max(2e-6, 2**-24 * terms**0.5) * np.abs(expected).max()
        np.testing.assert_allclose(tensors[i + 1], expected, rtol=0, atol=tolerance, err_msg=f"{i} {op['op']}")


def corpus(folder, count):
    """Damaged and odd files of the fuzzer."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("needs g++ (Debian: g++)")
    engine = ROOT / "bireal_jax" / "runtime" / "engine"
    sources = [TESTS / "corpus.cc", TESTS / "mutate.cc"]
    subprocess.run([compiler, "-std=c++17", "-O0", f"-I{engine}", *sources, "-o", folder / "corpus"], check=True)
    seeds = make_seeds.write(folder / "seeds")
    with open(folder / "files", "wb") as out:
        subprocess.run([folder / "corpus", str(count), *seeds], stdout=out, check=True)
    return folder / "files"


def files_of(path):
    data, at = path.read_bytes(), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def native(data):
    """Why the native engine refuses a file, by its own checks alone; None where it does not."""
    try:
        runtime._Handle(runtime._loaded(data, "x", 1, "float32", "portable", False, 0))
    except BadInput as error:
        return str(error).removeprefix("x: ")


@needs_engine
@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.campaign])])
def test_damaged_files_are_refused_in_the_same_words(count, tmp_path):
    """No trap, no file that only one of them takes, and nothing but words where sizes of 32 bits differ."""
    path = corpus(tmp_path, count)
    answers = [json.loads(line) for line in node("corpus", path).splitlines()]
    kinds = Counter()
    for data, answer in zip(files_of(path), answers, strict=True):
        assert "fault" not in answer, answer
        refused = native(data)
        kinds["refused" if "refused" in answer else "loaded"] += 1
        words = answer.get("refused", "")
        if any(limit in words or limit in (refused or "") for limit in ("MB of memory", "32 bits", "an integer from")):
            assert words or refused
            kinds["limits"] += 1
        elif words.startswith("resize"):  # Python's reader refuses it, too
            kinds["limits"] += 1
        else:
            assert answer.get("refused") == refused
    assert kinds["refused"] > count // 4 and kinds["loaded"] > count // 20 and kinds["limits"] < count // 4, kinds


def hostile(**image):
    """A file, sealed, of one operation that needs no weights."""
    spec = {
        "format": 1, "package": "0", "model": "x", "labels": [],
        "image": {"mean": [0.5], "std": [0.5], "resize": 0, **image},
        "ops": [{"op": "sign", "path": "", "inputs": [0], "shape": image["shape"]}],
    }  # fmt: skip
    return container.dump(container.Program(spec, {}))


def test_sizes_beyond_32_bits_are_refused(tmp_path):
    """2^32 pixels are 0 in 32 bits, and 2^28 of one channel take 16 GB."""
    data = [hostile(shape=[65536, 65536, 1]), hostile(shape=[16384, 16384, 1]), hostile(shape=[2048, 2048, 1])]
    (tmp_path / "files").write_bytes(b"".join(len(d).to_bytes(4, "little") + d for d in data))
    said = [json.loads(line).get("refused", "") for line in node("corpus", tmp_path / "files").splitlines()]
    assert [s[:20] for s in said] == ["a map has more than ", "a map or weight take", "the network needs mo"], said


def test_what_is_wrong_is_said_and_the_network_goes_on():
    said = json.loads(node("wrong", packed.written("bireal_tiny")))
    assert said.pop("same") is True
    for name, words in {
        "size": "3 values; this network takes", "none": "0 values", "type": "neither Uint8Array",
        "nan": "NaN or infinity",
        "far": "up to 255", "fused": "fused away", "several": "several images",
        "precision": "int4; known: float32, int16",
        "memory": "MB of memory", "absurd": "use 0 to", "nothing": "from a Uint8Array", "empty": "too short",
        "missing": "none.safetensors cannot be read",
    }.items():  # fmt: skip
        assert words in said.pop(name), name
    assert not said


def test_memory_does_not_grow():
    before, after = json.loads(node("growth", packed.written("bireal_tiny"), flags=["--expose-gc"]))
    for kind in ("heapUsed", "external", "arrayBuffers"):
        assert after[kind] < before[kind] + (4 << 20), (kind, before, after)


@pytest.mark.parametrize(
    "width, height, side, channels, resize",
    [
        (50, 40, 32, 3, 36), (40, 53, 32, 1, 0), (31, 200, 8, 3, 9),
        (20, 21, 32, 3, 40), (32, 32, 32, 3, 0), (33, 48, 32, 3, 33),
    ],
)  # fmt: skip
def test_photos_are_pillows(width, height, side, channels, resize, tmp_path):
    from PIL import Image

    rgba = np.random.default_rng(width).integers(0, 256, (height, width, 4)).astype(np.uint8)
    rgba[..., 3] = 255
    rgba.tofile(tmp_path / "rgba")
    node("photo", width, height, tmp_path / "rgba", side, channels, resize, tmp_path / "out")
    expected = photos.read(Image.fromarray(rgba[..., :3]), (side, side, channels), resize)
    found = np.fromfile(tmp_path / "out", np.uint8).reshape(expected.shape)
    # Of very high pictures Pillow 13 takes the columns first, and then rounds otherwise.
    np.testing.assert_allclose(found.astype(int), expected, rtol=0, atol=height > 4 * width)


@needs_zig
@pytest.mark.slow
def test_kernels_equal_plain_loops(tmp_path):
    """tests/engine/kernels_test.cc, compiled for WebAssembly, under Node."""
    if not shutil.which("node"):
        pytest.skip("needs Node")
    engine = ROOT / "bireal_jax" / "runtime" / "engine"
    sources = [
        TESTS / "kernels_test.cc",
        engine / "winograd.cc",
        *sorted(engine.glob("kernels_*.cc")),
        engine / "wasm.cc",
    ]
    flags = ["-target", "wasm32-wasi", "-msimd128", "-std=c++17", "-O2", f"-I{engine}", "-Wl,-z,stack-size=1048576"]
    program = tmp_path / "kernels_test.wasm"
    subprocess.run([sys.executable, "-m", "ziglang", "c++", *flags, *sources, "-o", program], check=True)
    done = subprocess.run(
        ["node", "--no-warnings", TESTS / "wasi.mjs", program, "wasm", "5"], capture_output=True, text=True
    )
    assert done.returncode == 0 and " 0 failed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]

"""The compiled engine against its reference, operation by operation; its options, errors and commands."""

import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import packed
import pytest
from expected import EXPORTED, LARGE, MODELS

from bireal_jax import runtime
from bireal_jax.errors import BadInput
from bireal_jax.runtime import __main__ as command
from bireal_jax.runtime import container, reference
from bireal_jax.runtime import photos as photo_files

needs_engine = pytest.mark.skipif(not runtime.available(), reason="needs the compiled engine")
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in EXPORTED]
ROOM = 1 << 30  # bytes, for networks whose every tensor is kept


def usable():
    """The kernels of this CPU."""
    found = []
    for kernels in runtime.KERNELS[:-1]:
        try:
            found.append(runtime.load(packed.written("bireal_tiny"), kernels=kernels).kernels)
        except BadInput:
            continue
    return found


def photos(name, n):
    return np.random.default_rng(2).integers(0, 256, (n, *MODELS[name][-1])).astype(np.uint8)


def test_there_is_an_engine():
    """A broken source installs as silently as a missing compiler; where a compiler is, this must not pass."""
    compiler = any(subprocess.run(["which", c], capture_output=True).returncode == 0 for c in ("g++", "clang++"))
    assert runtime.available() or not compiler


@needs_engine
@pytest.mark.parametrize("name", EVERY)
def test_every_operation_is_the_reference(name):
    """On the engine's own inputs: what is ±1 bit for bit, what is real-valued to rounding."""
    program, image = container.read(packed.written(name)), photos(name, 1)[0]
    options = {"unfused": True, "max_memory": ROOM}
    runs = {k: runtime.load(packed.written(name), kernels=k, **options).tensors(image) for k in usable()}
    for i, op in enumerate(program.spec["ops"]):
        arrays, known = program.arrays(i), None
        for kernels, tensors in runs.items():
            inputs = [tensors[j][None] for j in op["inputs"]]
            if known is None or not all(map(np.array_equal, inputs, known)):
                expected, known = reference.apply(op, arrays, inputs)[0], inputs
            where = f"{kernels}: {i} {op['op']} {op['path']}"
            if op["op"] in ("sign", "binary_conv", "max_pool", "reshape", "concat", "subsample", "pad_channels"):
                np.testing.assert_array_equal(tensors[i + 1], expected, where)
            else:
                terms = np.prod(arrays["weight"].shape[:-1]) if op["op"] == "conv" else 1
                tolerance = max(2e-6, 2**-24 * terms**0.5) * np.abs(expected).max()  # roundings of a long sum
                np.testing.assert_allclose(tensors[i + 1], expected, rtol=0, atol=tolerance, err_msg=where)


@needs_engine
@pytest.mark.parametrize("name", [row for row in EVERY if not row.values[0].endswith("alexnet")])
def test_fusing_and_threads_change_nothing(name):
    images = photos(name, 3)
    plain = runtime.load(packed.written(name), unfused=True, max_memory=ROOM)(images)
    assert np.isfinite(plain).all() and plain.std() > 0
    for threads in (1, 2, 3):
        net = runtime.load(packed.written(name), threads=threads)
        np.testing.assert_array_equal(net(images), plain)
        np.testing.assert_array_equal(net(images[:1]), plain[:1])


@needs_engine
def test_float_images_are_taken_as_normalized():
    net, images = runtime.load(packed.written("bireal_tiny")), photos("bireal_tiny", 4)
    normalized = container.read(packed.written("bireal_tiny")).normalize(images)
    np.testing.assert_array_equal(net(normalized), net(images))
    np.testing.assert_array_equal(net(normalized.astype(np.float64)), net(images))
    assert net(images[:0]).shape == (0, 10)
    with pytest.raises(BadInput, match="values up to 25[0-9].*, and normalized pixels none beyond .*\ngive uint8"):
        net(images.astype(np.float32))


@needs_engine
@pytest.mark.parametrize("name", ["bireal20", "react_tiny", "vgg_small"])
def test_16_bit_weights_are_close(name):
    """The first map within 2e-4 of its largest value; border pixels, whose offsets differ, included."""
    image = photos(name, 1)[0]
    first = [
        runtime.load(packed.written(name), precision=precision, unfused=True, max_memory=ROOM).tensors(image)[1]
        for precision in runtime.PRECISIONS
    ]
    apart = np.abs(first[0] - first[1])
    assert 0 < apart.max() < 2e-4 * np.abs(first[0]).max()
    assert apart[1:-1, 1:-1].max() > apart[0].max() / 20, "the border is no worse than the middle"


@needs_engine
def test_a_network_serves_many_threads_at_once():
    net, images = runtime.load(packed.written("res_tiny"), threads=2), photos("res_tiny", 64)
    expected = net(images)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda _: net(images), range(64)):
            np.testing.assert_array_equal(answer, expected)


def test_the_reference_runs_without_an_engine(monkeypatch):
    images = photos("bireal_tiny", 2)
    slow = runtime.load(packed.written("bireal_tiny"), kernels="reference")
    if runtime.available():
        np.testing.assert_allclose(slow(images), runtime.load(packed.written("bireal_tiny"))(images), atol=1e-3)
    monkeypatch.setattr(runtime, "_engine", None)
    assert runtime.load(packed.written("bireal_tiny"), kernels="reference")(images).shape == (2, 10)
    assert len(slow.tensors(images[0])) == 41
    with pytest.raises(BadInput, match="engine is missing: no C\\+\\+ compiler"):
        runtime.load(packed.written("bireal_tiny"))


@needs_engine
def test_wrong_images_are_refused():
    net = runtime.load(packed.written("bireal_tiny"))
    with pytest.raises(BadInput, match=r"\(2, 8, 9, 1\); this network takes \[n, 8, 8, 1\]"):
        net(np.zeros((2, 8, 9, 1), np.uint8))
    with pytest.raises(BadInput, match="int64; give uint8"):
        net(np.zeros((1, 8, 8, 1), np.int64))
    for bad in (np.nan, np.inf):
        images = np.zeros((2, 8, 8, 1), np.float32)
        images[1, 3, 3] = bad
        with pytest.raises(BadInput, match="NaN or infinity"):
            net(images)
    with pytest.raises(BadInput, match="fused away"):
        net.tensors(np.zeros((8, 8, 1), np.uint8))


@needs_engine
def test_wrong_options_are_refused(monkeypatch, tmp_path):
    path = packed.written("bireal_tiny")
    for options, message in [
        ({"threads": 0}, "use 1 to 256"), ({"threads": 300}, "use 1 to 256"), ({"threads": "2"}, "use 1 to 256"),
        ({"precision": "int4"}, "known: float32, int16"), ({"kernels": "sse"}, "known: avx512"),
        ({"max_memory": 1000}, "more than"),
    ]:  # fmt: skip
        with pytest.raises(BadInput, match=message):
            runtime.load(path, **options)
    monkeypatch.setenv("BIREAL_KERNELS", "mmx")
    with pytest.raises(BadInput, match="mmx.*usable: "):
        runtime.load(path)
    monkeypatch.setenv("BIREAL_KERNELS", "portable")
    assert runtime.load(path).kernels == "portable"
    with pytest.raises(BadInput, match="cannot be read"):
        runtime.load(tmp_path / "none")


def test_no_jax_is_needed(tmp_path):
    """In a process where JAX, Flax and Grain cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'grain'): sys.modules[name] = None\n"
        "from bireal_jax.runtime import __main__\n"
        "__main__.main(sys.argv[1:])\n"
    )
    from PIL import Image

    Image.fromarray(np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)).save(tmp_path / "photo.png")
    kernels = [] if runtime.available() else ["--kernels=reference"]
    for arguments in ([], [tmp_path / "photo.png", *kernels]):
        done = subprocess.run(
            [sys.executable, "-c", code, packed.written("bireal_tiny"), *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert ("name " if arguments else "binary_conv") in done.stdout


def test_a_photo_is_prepared_as_in_evaluation(tmp_path, capsys):
    from PIL import Image

    from bireal_jax import pixels

    colours = np.random.default_rng(0).integers(0, 256, (50, 40, 3)).astype(np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(colours).save(path)
    expected = pixels.centre_crop(Image.fromarray(colours), 36, 32)
    np.testing.assert_array_equal(photo_files.read(path, (32, 32, 3), 36), expected)
    assert photo_files.read(path, (32, 32, 1), 0).shape == (32, 32, 1)
    (tmp_path / "no.jpg").write_bytes(b"nothing")
    for wrong in ("no.jpg", "none.jpg"):
        with pytest.raises(BadInput, match=wrong):
            photo_files.read(tmp_path / wrong, (32, 32, 3), 36)
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "none.safetensors")])
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("compiler", ["false", "a compiler that is not there"])
def test_install_without_a_compiler(tmp_path, compiler, request):
    """The build succeeds and the library is missing."""
    import shutil

    root = request.config.rootpath
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(root / "configs", tmp_path / "configs")
    shutil.copytree(root / "bireal_jax", tmp_path / "bireal_jax", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "setup.py", "build"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "CC": compiler, "CXX": compiler},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "build").rglob("recipes/configs/digits.py"))
    assert list((tmp_path / "build").rglob("graph.py")) and not list((tmp_path / "build").rglob("*.so"))

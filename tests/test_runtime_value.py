"""A loaded network is a value: copied, pickled, forked and sent in any order it works, or there is one clear error."""

import copy
import gc
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import packed
import pytest

from bireal_jax import runtime
from bireal_jax.errors import BadInput

needs_engine = pytest.mark.skipif(not runtime.available(), reason="needs the compiled engine")
TESTS = Path(__file__).parent / "engine"
NAME = "bireal_tiny"
SLOW = {"kernels": "reference"}
HOW = [copy.copy, copy.deepcopy]
HOW += [lambda net, way=way: pickle.loads(pickle.dumps(net, way)) for way in (0, 2, pickle.HIGHEST_PROTOCOL)]


def photos(n=3):
    return np.random.default_rng(2).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)


def program(*command, **environment):
    """Runs Python on the package under test; returns what it prints."""
    root = str(Path(runtime.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": root, **environment},
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-3000:])
    return done.stdout


def script(code, **environment):
    """Runs a program without JAX, which warns of forks: `net`, by threads, `x` and what `right` is for x are there."""
    start = (
        "import os, pickle, sys, threading, time\n"
        "import numpy as np\n"
        "from bireal_jax import runtime\n"
        "from bireal_jax.errors import BadInput\n"
        "x = np.random.default_rng(2).integers(0, 256, (9, 8, 8, 1)).astype(np.uint8)\n"
        "right = runtime.load(sys.argv[1])(x)\n"
        "def same(net): return np.array_equal(net(x), right) and np.array_equal(net(x[:1]), right[:1])\n"
        "def ends_well(child):\n"  # the status of a child process that must not hang
        "    for _ in range(2000):\n"
        "        if (found := os.waitpid(child, os.WNOHANG))[0]: return found[1] == 0\n"
        "        time.sleep(0.005)\n"
        "    os.kill(child, 9)\n"
    )
    program("-c", start + code, packed.written(NAME), **environment)


# ------------------------------------------------------------------------------------------------ copies and pickles


@pytest.mark.parametrize("options", [pytest.param({"threads": 2, "precision": "int16"}, marks=needs_engine), SLOW])
def test_copies_live_without_the_original(options):
    net = runtime.load(packed.written(NAME), **options)
    right = net(photos())
    twins = [how(how(net)) for how in HOW]
    del net
    gc.collect()
    for number in range(len(twins)):
        twin = copy.copy(twins[number])
        twins[number] = None
        np.testing.assert_array_equal(twin(photos()), right)
        assert twin.labels[3] == "name 3" and twin.image_shape == (8, 8, 1)


@needs_engine
def test_settings_travel_with_a_pickle():
    options = {"threads": 2, "precision": "int16", "kernels": "portable", "unfused": True, "max_memory": 1 << 28}
    twin = pickle.loads(pickle.dumps(runtime.load(packed.written(NAME), **options)))
    assert twin.kernels == "portable" and len(twin.tensors(photos()[0])) == 41
    assert twin._made_of[2:] == tuple(options.values())


@needs_engine
def test_a_pickle_is_checked_where_it_arrives(monkeypatch):
    net = runtime.load(packed.written(NAME))
    data = bytearray(pickle.dumps(net))
    data[data.index(packed.written(NAME).read_bytes()[-99:])] ^= 4
    with pytest.raises(BadInput, match=f"{NAME}.safetensors is damaged"):
        pickle.loads(bytes(data))
    whole, right = pickle.dumps(net), net(photos())
    monkeypatch.setattr(runtime, "_engine", None)
    with pytest.raises(BadInput, match="engine is missing.*\n.*\n.*BIREAL_KERNELS=reference"):
        pickle.loads(whole)
    monkeypatch.setenv("BIREAL_KERNELS", "reference")
    there = pickle.loads(whole)
    assert there.kernels == "reference"
    np.testing.assert_allclose(there(photos()), right, atol=1e-3)


@needs_engine
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes(method, tmp_path):
    """As an argument of a task, and of what starts a worker; after a call with two threads."""
    pools = tmp_path / "pools.py"
    pools.write_text(
        "import concurrent.futures, multiprocessing, sys\n"
        "import numpy as np\n"
        "from bireal_jax import runtime\n"
        "def keep(net): global kept; kept = net\n"
        "def use(net, x): return net(x), kept(x)\n"
        "if __name__ == '__main__':\n"
        "    x, net = np.full((4, 8, 8, 1), 7, np.uint8), runtime.load(sys.argv[1], threads=2)\n"
        "    right, context = net(x), multiprocessing.get_context(sys.argv[2])\n"
        "    with concurrent.futures.ProcessPoolExecutor(2, context, keep, (net,)) as pool:\n"
        "        for found in pool.map(use, [net] * 4, [x] * 4):\n"
        "            assert all(np.array_equal(f, right) for f in found)\n"
        "    print('right')\n"
    )
    assert program(pools, packed.written(NAME), method) == "right\n"


# --------------------------------------------------------------------------------------------------- forks and threads


@needs_engine
def test_forked_children_call_and_free():
    """And their children, and the parent afterwards; the network unused, used by one thread or two, and copied."""
    script(
        "for threads in (1, 2):\n"
        "    net = runtime.load(sys.argv[1], threads=threads)\n"
        "    for used in (False, True):\n"
        "        assert not used or same(net)\n"
        "        child = os.fork()\n"
        "        if child == 0:\n"
        "            assert same(net)\n"
        "            again = os.fork()\n"
        "            if again == 0:\n"
        "                twin = pickle.loads(pickle.dumps(net))\n"
        "                assert same(twin) and same(net)\n"
        "                del twin, net\n"
        "                os._exit(0)\n"
        "            assert ends_well(again) and same(net)\n"
        "            del net\n"
        "            os._exit(0)\n"
        "        unused = os.fork()\n"
        "        if unused == 0:\n"
        "            del net\n"
        "            sys.exit()\n"  # with all that an exit frees
        "        assert ends_well(child) and ends_well(unused) and same(net)\n"
    )


@needs_engine
def test_a_fork_while_other_threads_call():
    script(
        "net, end = runtime.load(sys.argv[1], threads=2), threading.Event()\n"
        "def call():\n"
        "    while not end.is_set(): assert same(net)\n"
        "others = [threading.Thread(target=call) for _ in range(3)]\n"
        "for other in others: other.start()\n"
        "for _ in range(30):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        assert same(net)\n"
        "        del net\n"
        "        os._exit(0)\n"
        "    assert ends_well(child)\n"
        "end.set()\n"
        "for other in others: other.join()\n"
    )


@needs_engine
def test_calls_and_deletions_at_once():
    net, right = runtime.load(packed.written(NAME), threads=2, unfused=True), []
    expected, tensors = net(photos()), net.tensors(photos()[0])

    def work(net, seed):
        other = np.random.default_rng(seed).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
        for _ in range(10):
            twin = copy.copy(net)
            net = pickle.loads(pickle.dumps(twin)) if seed % 2 else twin  # the one before goes
            twin(other)
            shown = twin.tensors(photos()[0])
            right.append(all(map(np.array_equal, shown, tensors)) and np.array_equal(twin(photos()), expected))

    team = [threading.Thread(target=work, args=(net, seed)) for seed in range(6)]
    for one in team:
        one.start()
    del net
    for one in team:
        one.join()
    assert len(right) == 60 and all(right)


def compiled(tmp_path, *command):
    compiler = next((c for c in ("gcc", "cc", "clang") if shutil.which(c)), None)
    if compiler is None:
        pytest.skip("needs a C compiler (Debian: gcc)")
    done = subprocess.run([compiler, *command], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@needs_engine
@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
def test_threads_that_cannot_be_started(tmp_path):
    """BadInput with how many there were; the network works again when they can be, also in a forked child."""
    compiled(tmp_path, "-shared", "-fPIC", TESTS / "few_threads.c", "-o", "few.so", "-ldl")
    script(
        "import ctypes\n"
        "left = ctypes.c_int.in_dll(ctypes.CDLL(None), 'threads_left')\n"
        "def refused(net, started):\n"
        "    left.value = started - 1\n"
        "    try: net(x)\n"
        "    except BadInput as error: assert f'only {started} of {threads} threads could be' in str(error), error\n"
        "    else: sys.exit('taken')\n"
        "    left.value = -1\n"
        "for threads in (2, 4, 8):\n"
        "    net = runtime.load(sys.argv[1], threads=threads)\n"
        "    for started in (1, threads - 1): refused(net, started)\n"
        "    assert same(net)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        refused(net, 1)\n"
        "        assert same(net)\n"
        "        os._exit(0)\n"
        "    assert ends_well(child) and same(net)\n",
        LD_PRELOAD=str(tmp_path / "few.so"),
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
def test_training_goes_on_with_fewer_threads(tmp_path):
    """The packed products of a training step take XLA's threads and make none, so they go on where none can be made."""
    from bireal_jax.binary import packed as products

    if not products.available():
        pytest.skip("no compiler when the package was installed")
    compiled(tmp_path, "-shared", "-fPIC", TESTS / "few_threads.c", "-o", "few.so", "-ldl")
    found = program(
        "-c",
        "import ctypes, os\n"
        "os.sched_getaffinity = lambda _: range(4)\n"
        "import jax, numpy as np\n"
        "from bireal_jax.binary import conv, packed\n"
        "left = ctypes.c_int.in_dll(ctypes.CDLL(None), 'threads_left')\n"
        "packed.WORTH_A_THREAD = 1\n"
        "x = np.random.default_rng(0).choice([-1, 1], (7, 6, 5, 70)).astype(np.float32)\n"
        "w = np.random.default_rng(1).choice([-1, 1], (3, 2, 70, 20)).astype(np.float32)\n"
        "how = {'strides': (2, 1), 'padding': ((0, 2), (1, 0))}\n"
        "product, right = jax.jit(lambda x: packed.product(x, w, **how)), conv.xla_conv(x, w, **how)\n"
        "product(x).block_until_ready()\n"
        "for left.value in (0, 1, 2, 3):\n"
        "    print(np.array_equal(product(x), right), left.value)\n",
        LD_PRELOAD=str(tmp_path / "few.so"), JAX_PLATFORMS="cpu",
    )  # fmt: skip
    assert found == "".join(f"True {left}\n" for left in range(4)), "none was asked for"


# ------------------------------------------------------------------------------------------- files, options and images


@pytest.mark.parametrize("options", [pytest.param({}, marks=needs_engine), SLOW])
def test_a_file_is_read_once(options):
    """What is checked is what is used: a pipe gives its bytes once."""
    data = packed.written(NAME).read_bytes()
    out, into = os.pipe()

    def fill():
        with os.fdopen(into, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=fill)
    thread.start()
    net = runtime.load(f"/dev/fd/{out}", **options)
    os.close(out)
    thread.join()
    assert net(photos()).shape == (3, 10)


def test_paths_of_every_kind():
    path = packed.written(NAME)
    for kind in (path, str(path), bytes(path)):
        assert runtime.load(kind, **SLOW).num_classes == 10
    for wrong in (None, 3, "a\0b", b"a\0b", [path], "", b"\xff", path.parent):
        with pytest.raises(BadInput, match="is no path|cannot be read|is a folder, and none of a run"):
            runtime.load(wrong, **SLOW)


@needs_engine
def test_integers_of_every_kind():
    path = packed.written(NAME)
    for kind in (np.int64, np.uint8, np.array):
        assert runtime.load(path, threads=kind(2), max_memory=kind(0)).memory
    for threads in (True, np.True_, 2.0, np.float32(2), "2", None, -1, 0, 257, 1 << 40, np.array([2])):
        with pytest.raises(BadInput, match="threads is .*; use 1 to 256"):
            runtime.load(path, threads=threads)
    for size in (-1, 1 << 64, 1e9, "1G", None, False):
        for options in ({}, SLOW):
            with pytest.raises(BadInput, match="max_memory is .*; use 0 to"):
                runtime.load(path, max_memory=size, **options)
    net = runtime.load(path)
    assert net.profile(photos()[0], np.int64(2))
    for repeats in (0, -1, 1 << 40, 2.5):
        with pytest.raises(BadInput, match="repeats is .*; use 1 to"):
            net.profile(photos()[0], repeats)


def test_the_reference_by_its_environment_variable(monkeypatch):
    monkeypatch.setenv("BIREAL_KERNELS", "reference")
    net = runtime.load(packed.written(NAME))
    assert net.kernels == "reference" and net(photos()).shape == (3, 10)
    if runtime.available():
        assert runtime.load(packed.written(NAME), kernels="portable").kernels == "portable"


@pytest.mark.parametrize("options", [pytest.param({}, marks=needs_engine), SLOW])
def test_arrays_of_every_layout(options):
    net, images = runtime.load(packed.written(NAME), **options), photos(6)
    right, normalized = net(images), (images / np.float64(255) - 0.4) / 0.3
    wide = np.zeros((6, 16, 8, 3), np.uint8)
    wide[:, ::2, :, 1:2] = images
    locked = images.copy()
    locked.flags.writeable = False
    for other in (wide[:, ::2, :, 1:2], np.asfortranarray(images), locked, images[::-1][::-1], memoryview(images)):
        np.testing.assert_array_equal(net(other), right)
    for dtype in (">f4", "<f4", ">f8", np.longdouble):
        np.testing.assert_allclose(net(normalized.astype(dtype)), right, atol=1e-3)
    for huge in (1e300, np.inf, -np.inf, np.nan):
        with pytest.raises(BadInput, match="NaN or infinity"):
            net(np.full((1, 8, 8, 1), huge))
    for dtype in (np.int8, np.uint16, bool, ">u2", object, complex):
        with pytest.raises(BadInput, match="give uint8, or floats"):
            net(images.astype(dtype))

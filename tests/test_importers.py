import argparse
import os
import pickle
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from jax import lax

from bireal_jax import build, config, importers, models
from bireal_jax.errors import BadInput
from bireal_jax.importers import larq, readers

SUFFIXES = [".npz", ".safetensors", ".h5", ".hdf5", ".pt", ".pth", ".pth.tar"]


def random_variables(name, size, channels=3, classes=10):
    model = models.build(name, classes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)
    squared = {"var": np.square}  # no variance is below 0
    return jax.tree_util.tree_map_with_path(lambda path, leaf: squared.get(path[-1].key, np.array)(leaf), drawn)


@pytest.mark.parametrize(
    ("name", "size", "split"),  # split: leaves of theirs beyond ours; ReActNet-A has five convolutions and norms in two
    [("bireal18", 64, 0), ("bireal50", 64, 0), ("bireal20", 32, 0), ("react_r18", 64, 0), ("react_a", 64, 5 * 5)],
)
def test_round_trip(name, size, split):
    variables = random_variables(name, size)
    state = importers.to_torch(name, variables)
    assert len(state) == len(jax.tree.leaves(variables)) + split
    back = importers.from_torch(
        name, {f"module.{k}": v for k, v in state.items()} | {"module.bn1.num_batches_tracked": 7}
    )
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    grads = importers.to_torch(name, variables["params"])
    assert set(grads) == {k for k in state if "running" not in k}


def test_names_and_layouts_are_the_authors():
    variables = random_variables("bireal18", 64, classes=1000)
    state = importers.to_torch("bireal18", variables)
    assert state["layer1.0.binary_conv.weights"].shape == (36864, 1)
    assert state["layer2.0.downsample.1.weight"].shape == (128, 64, 1, 1)
    latent = variables["params"]["stage1_block1"]["binary_conv"]["latent"]  # [kh, kw, cin, cout]
    w = state["layer1.0.binary_conv.weights"].reshape(64, 64, 3, 3)
    assert w[5, 7, 1, 2] == latent[1, 2, 7, 5]


def test_keys_agree_with_the_authors_lists(shared):
    import json

    for name, keys in json.loads((shared / "oracles" / "keys.json").read_text()).items():
        if name in models.MODELS:
            state = importers.to_torch(name, random_variables(name, 64, classes=1000))
            assert {k: list(v.shape) for k, v in state.items()} == keys


def test_wrong_weights_are_named(tmp_path):
    state = importers.to_torch("bireal20", random_variables("bireal20", 32))
    with pytest.raises(BadInput, match=r"not weights of bireal18:\nmissing bn1|missing layer"):
        importers.from_torch("bireal18", state)
    with pytest.raises(BadInput, match="missing conv1.weight, fc.weight; found a"):
        importers.from_torch("bireal18", {"a": np.zeros(3)})
    wrong = state | {"layer1.0.bn1.weight": np.zeros(17)}
    with pytest.raises(BadInput, match=r"layer1.0.bn1.weight has shape \(17,\), the model wants \(16,\)"):
        importers.from_torch("bireal20", wrong)
    with pytest.raises(BadInput, match="is no variable of bireal18"):
        importers.to_torch("bireal18", {"params": {"stage9": {"kernel": np.zeros(3)}}})


def write(path, arrays):
    """A weights file of the format that the suffix says, as its own library writes it."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, path)
    elif path.suffix in (".h5", ".hdf5"):
        h5py = pytest.importorskip("h5py", reason="needs h5py")
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        torch = pytest.importorskip("torch", reason="needs torch")
        state = {name: torch.nn.Parameter(torch.from_numpy(np.array(array))) for name, array in arrays.items()}
        nest = {".tar": lambda s: {"epoch": 3, "state_dict": s}, ".pth": lambda s: {"model": s}}
        zipped = path.suffix != ".tar"  # .pth.tar files are of the time before PyTorch's zip format
        torch.save(nest.get(path.suffix, dict)(state), path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture(scope="module")
def tiny():
    """Variables of bireal_tiny in float32, and their state under the authors' names."""
    variables = jax.tree.map(np.float32, random_variables("bireal_tiny", 8))
    return variables, importers.to_torch("bireal_tiny", variables)


def init_from(path, variables, name="bireal_tiny"):
    """What a run with --config.init_from=PATH starts from."""
    c = config.default()
    c.model.name, c.init_from = name, str(path)
    return build.variables(c, jax.eval_shape(lambda: variables))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_variables(suffix, tiny, tmp_path):
    variables, state = tiny
    path = write(tmp_path / f"weights{suffix}", {f"module.{name}": array for name, array in state.items()})
    out = tmp_path / "ours" / "tiny.npz"
    importers.main(["--model=bireal_tiny", str(path), str(out)])
    with np.load(out) as written:
        assert "params/stage1_block1/binary_conv/latent" in written and len(written) == len(jax.tree.leaves(variables))
    for start in (path, out):  # by the authors' names, and by ours
        jax.tree.map(np.testing.assert_array_equal, init_from(start, variables), variables)
    assert os.listdir(out.parent) == ["tiny.npz"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"hello", lambda b: b""])
def test_a_damaged_file_is_named(suffix, damage, tmp_path):
    path = write(tmp_path / f"weights{suffix}", {"conv1.weight": np.ones((50, 50), np.float32)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=rf"weights{suffix}( is not a readable|: holds Python objects)[^\n]+\n.*write"):
        readers.read(path)


def test_files_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="no such file"):
        readers.read(tmp_path / "none.npz")
    with pytest.raises(
        BadInput, match=r"net.onnx ends in '.onnx'; known: .bin, .ckpt, .h5, .hdf5, .npz, .pt, .pth, .safetensors"
    ):
        readers.read(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_text("")
    with pytest.raises(BadInput, match="ends in '.onnx'"):
        init_from(tmp_path / "net.onnx", {})
    with pytest.raises(BadInput, match="no checkpoint in"):
        init_from(tmp_path / "run_0.1", {})
    for suffix, library in ((".h5", "h5py"), (".pt", "torch")):
        (tmp_path / f"a{suffix}").write_bytes(b"\0")
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(BadInput, match=rf"a{suffix}: files of this kind need {library}.*\npip install {library}"):
            readers.read(tmp_path / f"a{suffix}")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "x")


def test_nothing_is_unpickled(tmp_path):
    mark = tmp_path / "mark"
    payload = pickle.dumps({"conv1.weight": Touch(mark)})
    pickle.loads(payload)["conv1.weight"].close()
    mark.unlink()  # the payload works; no name below may make it work
    (tmp_path / "a.npz").write_bytes(payload)
    np.savez(tmp_path / "b.npz", a=np.array([Touch(mark)], dtype=object))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(BadInput, match=f"{name} is not a readable .npz"):
            readers.read(tmp_path / name)
    torch = pytest.importorskip("torch", reason="needs torch")
    (tmp_path / "a.pt").write_bytes(payload)
    torch.save({"conv1.weight": Touch(mark)}, tmp_path / "b.pth")
    torch.save({"conv1.weight": Touch(mark)}, tmp_path / "c.tar", _use_new_zipfile_serialization=False)
    for name in ("a.pt", "b.pth", "c.tar"):
        with pytest.raises(BadInput, match=rf"{name}: holds Python objects.*\n.*torch.save\(model.state_dict"):
            readers.read(tmp_path / name)
    for found, named in (
        ({"a": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
        (torch.nn.ReLU(), "torch.nn.*ReLU"),
    ):
        torch.save(found, tmp_path / "d.pt")
        with pytest.raises(BadInput, match=rf"tensors, such as {named}; .*\nonly where you trust it.*\n.*NEW\)$"):
            readers.read(tmp_path / "d.pt")
    assert not mark.exists()


def test_torch_files_that_hold_something_else(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    for found, message in (({"epoch": 1, "net": torch.ones(2)}, "a dict of epoch, net"), ([torch.ones(2)], "list")):
        torch.save(found, tmp_path / "a.pt")
        with pytest.raises(BadInput, match=f"a.pt: holds no state_dict but {message}"):
            readers.read(tmp_path / "a.pt")
    torch.save({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "a.pt")
    assert readers.read(tmp_path / "a.pt")["a"].tolist() == [1.5, -2.0]


def test_weights_that_are_no_numbers_are_named(tiny, tmp_path):
    _, state = tiny
    wrong = state["bn1.weight"].copy()
    wrong[[3, 5]] = np.nan, -np.inf
    path = write(tmp_path / "a.npz", state | {"bn1.weight": wrong})
    with pytest.raises(BadInput, match=r"a.npz: bn1.weight has 2 of 32 values that are NaN or infinite\n"):
        importers.load("bireal_tiny", path)
    path = write(tmp_path / "a.npz", state | {"bn1.weight": np.array(["1"] * 32)})
    with pytest.raises(BadInput, match=r"a.npz: bn1.weight has the dtype <U1"):
        importers.load("bireal_tiny", path)
    path = write(tmp_path / "a.npz", {k: v.astype(np.float16) for k, v in state.items()})
    assert {leaf.dtype for leaf in jax.tree.leaves(importers.load("bireal_tiny", path))} == {np.dtype(np.float32)}


LATENT, SCALE, VAR = "layer1.0.binary_conv.weight", "layer1.0.bn1.weight", "layer1.0.bn1.running_var"


def changed(array, value, index=3):
    array = array.copy()
    array.flat[index] = value
    return array


# what is wrong, in which tensor, what is said
IMPOSSIBLE = [
    (lambda a: changed(a, -1e-3), VAR, "1 of 32 values cannot be, such as -0.001; a running variance is 0 or more"),
    (lambda a: changed(a, 1e30), LATENT, r"such as 1e\+30; a latent is at most 10000 in size"),
    (lambda a: changed(a, 1e30), "conv1.weight", r"such as 1e\+30; a kernel is at most 1e\+06 in size"),
    (lambda a: changed(a, -1e20), "layer1.0.bn1.running_mean", r"such as -1e\+20; a mean is at most 1e\+12 in size"),
    (lambda a: a.astype(np.float64) * 1e100, "fc.bias", "a bias is at most"),
    (lambda a: a * 0, LATENT, "values of the latent are 0; no latent weights were stored"),
    (lambda a: a * 0, SCALE, "all 32 values of the scale are 0; its layer gives the same for every image"),
    (lambda a: a.astype(np.int64), SCALE, "has the dtype int64, and weights are real numbers"),
    (lambda a: a > 0, LATENT, "has the dtype bool"),
    (lambda a: a.astype(np.complex64), SCALE, "has the dtype complex64"),
    (lambda a: changed(a, np.nan), VAR, "NaN|such as nan; every number must be finite"),
]


@pytest.mark.parametrize("change, name, message", IMPOSSIBLE)
def test_numbers_that_cannot_be_are_named(change, name, message, tiny, tmp_path):
    variables, state = tiny
    name = name if name in state else f"{name}s"
    wrong = state | {name: change(state[name])}
    with pytest.raises(BadInput, match=f"{name}.*({message})"):
        importers.from_torch("bireal_tiny", wrong)
    path = write(tmp_path / "a.npz", wrong)
    with pytest.raises(BadInput, match=f"a.npz: {name}.*({message})"):
        init_from(path, variables)


@pytest.mark.parametrize("change, name, message", IMPOSSIBLE)
def test_nor_under_our_names_nor_on_the_way_back(change, name, message, tiny, tmp_path):
    ours = {
        LATENT: "params/stage1_block1/binary_conv/latent", SCALE: "params/stage1_block1/bn/scale",
        VAR: "batch_stats/stage1_block1/bn/var", "layer1.0.bn1.running_mean": "batch_stats/stage1_block1/bn/mean",
        "conv1.weight": "params/stem_conv/kernel", "fc.bias": "params/head/linear/bias",
    }[name]  # fmt: skip
    flat = {"/".join(k): v for k, v in importers.pytorch.leaves(tiny[0])}
    flat[ours] = change(flat[ours])
    with pytest.raises(BadInput, match=f"a.npz: {ours}.*({message})"):
        init_from(write(tmp_path / "a.npz", flat), tiny[0])
    tree = traverse_util.unflatten_dict({tuple(k.split("/")): v for k, v in flat.items()})
    with pytest.raises(BadInput, match=f"{ours}.*({message})"):
        importers.to_torch("bireal_tiny", tree)


def test_a_gradient_may_be_anything(tiny):
    gradient = jax.tree.map(np.zeros_like, tiny[0]["params"])
    assert not any(array.any() for array in importers.to_torch("bireal_tiny", gradient).values())


@pytest.mark.parametrize(
    "one, other",
    [
        ("conv1.weight", "module.conv1.weight"),
        ("module.conv1.weight", "module._orig_mod.conv1.weight"),
        ("layer1.0.bn1.bias", "layer1._orig_mod.0.bn1.bias"),
        (LATENT, f"module.{LATENT}"),
    ],
)
def test_two_names_of_one_array(one, other, tiny, tmp_path):
    variables, state = tiny
    key = one.removeprefix("module.").replace("_orig_mod.", "")
    rest = {k: v for k, v in state.items() if k != key}
    for path, last in ((tmp_path / "a.npz", state[key]), (tmp_path / "b.safetensors", changed(state[key], 7.0))):
        write(path, rest | {one: state[key], other: last})
    jax.tree.map(np.testing.assert_array_equal, init_from(tmp_path / "a.npz", variables), variables)
    with pytest.raises(BadInput, match="b.safetensors: .* and .* are two names of one array") as error:
        init_from(tmp_path / "b.safetensors", variables)
    assert one in str(error.value) and other in str(error.value)


def test_latent_weights_of_both_steps_of_the_authors():
    """The first step calls them `weight`, the second `weights` [size, 1]."""
    ends = {"conv1.weight": np.ones((64, 3, 7, 7)), "fc.weight": np.ones((10, 512))}
    both = {LATENT: np.ones((64, 64, 3, 3)), f"{LATENT}s": np.zeros((36864, 1))}
    with pytest.raises(BadInput, match=f"{LATENT} and {LATENT}s are two names of one array"):
        importers.from_torch("bireal18", ends | both)


def test_a_name_twice_in_a_file(tiny, tmp_path):
    path = write(tmp_path / "a.npz", tiny[1])
    with zipfile.ZipFile(path, "a") as archive, archive.open("bn1.bias", "w") as file:  # beside bn1.bias.npy
        np.lib.format.write_array(file, np.ones(32, np.float32))
    with pytest.raises(BadInput, match="a.npz: holds bn1.bias twice"):
        readers.read(path)
    torch = pytest.importorskip("torch", reason="needs torch")
    torch.save({"state_dict": {"a": torch.ones(2)}, "model": {"a": torch.zeros(2)}}, tmp_path / "a.pt")
    with pytest.raises(BadInput, match="a.pt: holds two sets of weights, state_dict and model"):
        readers.read(tmp_path / "a.pt")


def fails(capsys, *argv):
    with pytest.raises(SystemExit) as stopped:
        importers.main([str(arg) for arg in argv])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out and len(printed.err.splitlines()) <= 3
    return printed.err


def test_the_command(tiny, tmp_path, capsys, monkeypatch):
    variables, state = tiny
    weights, out = write(tmp_path / "a.npz", state), tmp_path / "out.npz"
    importers.main(["--model=bireal_tiny", str(weights), str(out)])
    latents = [v for k, v in state.items() if "binary_conv" in k]
    share = np.mean(np.concatenate([w.ravel() for w in latents]) >= 0)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    binary = 4 * 9 * 32 * 32 + 9 * 32 * 64 + 3 * 9 * 64 * 64
    expected = f"{count:,} parameters, {binary:,} of them binary, {share:.1%} of those +1; 10 classes"
    assert capsys.readouterr().out == f"{out}: bireal_tiny, {expected}\n"
    with pytest.raises(SystemExit):
        importers.main(["--list"])
    assert "\nreact_a         feature.0.conv1, feature.1.binary_3x3\n" in capsys.readouterr().out
    before = out.read_bytes()
    assert "exists; --force overwrites it" in fails(capsys, "--model=bireal_tiny", weights, out)
    assert "is no name of an .npz" in fails(capsys, "--model=bireal_tiny", weights, tmp_path / "out.pt")
    assert "did you mean bireal_tiny?" in fails(capsys, "--model=bireal_tiy", weights, out, "--force")
    lacking = write(tmp_path / "lacking.npz", {k: v for k, v in state.items() if k != "bn1.bias"})
    said = fails(capsys, "--model=bireal_tiny", lacking, out, "--force")
    assert said.endswith("missing bn1.bias\n") and "unexpected" not in said
    assert "lacking.npz: these are not weights of bireal18:" in fails(
        capsys, "--model=bireal18", lacking, out, "--force"
    )
    assert "only larq's weights can be turned" in fails(
        capsys, "--model=bireal_tiny", weights, out, "--force", "--turn"
    )
    ours = dict(np.load(out)) | {"params/stem_bn/bias": np.zeros(31, np.float32)}
    odd = write(tmp_path / "odd.npz", ours)
    assert "params/stem_bn/bias has shape (31,), the model wants (32,)" in fails(
        capsys, "--model=bireal_tiny", odd, tmp_path / "new.npz"
    )

    def full(file, **arrays):
        file.write(b"some bytes")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full)
        assert "No space left" in fails(capsys, "--model=bireal_tiny", weights, out, "--force")
        assert "No space left" in fails(capsys, "--model=bireal_tiny", weights, tmp_path / "new.npz")
    assert out.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "lacking.npz", "odd.npz", "out.npz"]
    out.write_bytes(b"")
    importers.main(["--model=bireal_tiny", str(weights), str(out), "--force"])
    assert out.read_bytes() == before


def test_the_command_needs_no_accelerator(tiny, tmp_path):
    weights = write(tmp_path / "a.npz", tiny[1])
    command = [sys.executable, "-m", "bireal_jax.importers", "--model=bireal_tiny", weights, tmp_path / "b.npz"]
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "nonsense"})
    assert found.returncode == 0 and "10 classes" in found.stdout, found.stderr


class LarqBiRealNet:
    """larq_zoo's BiRealNet18 in its own terms: layers named as they are made, `same` padding, epsilon 1e-3.

    Makes its weights on the way, in `state`.
    """

    def __init__(self, classes):
        self.classes, self.state, self.counts, self.rng = classes, {}, {}, np.random.default_rng(0)

    def weights(self, kind, **shapes):
        number = self.counts[kind] = self.counts.get(kind, -1) + 1
        name = f"{kind}_{number}" if number else kind
        made = {k: self.rng.normal(0.1, 1, s) ** (2 if k == "moving_variance" else 1) for k, s in shapes.items()}
        self.state |= {f"{name}/{name}/{k}:0": v for k, v in made.items()}
        return made

    def conv(self, x, features, size, strides, kind="conv2d"):
        w = self.weights(kind, kernel=(size, size, x.shape[-1], features))["kernel"]
        if kind == "quant_conv2d":
            x, w = jnp.where(x >= 0, 1.0, -1.0), np.abs(w).mean((0, 1, 2)) * np.where(w >= 0, 1, -1)
        return lax.conv_general_dilated(x, w, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def norm(self, x):
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        gamma, beta, mean, variance = self.weights("batch_normalization", **{k: x.shape[-1:] for k in names}).values()
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def block(self, x, features):
        shortcut, strides = x, 1 if features == x.shape[-1] else 2
        if strides == 2:
            shortcut = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "SAME") / 4
            shortcut = self.norm(self.conv(shortcut, features, 1, 1))
        return self.norm(self.conv(x, features, 3, strides, "quant_conv2d")) + shortcut

    def __call__(self, x):
        x = self.norm(self.conv(x, 64, 7, 2))
        x = lax.reduce_window(x, -np.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        for features in (64, 128, 256, 512):
            for _ in range(4):
                x = self.block(x, features)
        kernel, bias = self.weights("dense", kernel=(512, self.classes), bias=(self.classes,)).values()
        return x.mean((1, 2)) @ kernel + bias


def test_larq_network_gives_its_logits_on_turned_images(x64):
    x = np.random.default_rng(1).normal(size=(1, 64, 96, 3))
    theirs = LarqBiRealNet(classes=1000)
    expected = theirs(x)
    assert sum(v.size for v in theirs.state.values()) == 11_699_112, "larq's published count"
    model = models.build("bireal18", 1000, jnp.float64)
    turned = importers.from_flat("bireal18", larq.renamed(theirs.state, turn=True))
    got = model.apply(turned, x[:, ::-1, ::-1])
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())
    plain = importers.from_flat("bireal18", larq.renamed(theirs.state))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[::-1, ::-1] if a.ndim == 4 else a, b), plain, turned)
    assert np.abs(model.apply(plain, x) - expected).max() > 1e-3 * np.abs(expected).max(), "the padding differs"


@pytest.fixture(scope="module")
def larq_state():
    theirs = LarqBiRealNet(classes=3)
    jax.eval_shape(theirs, jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    return {name: array.astype(np.float32) for name, array in theirs.state.items()}


@pytest.mark.parametrize("whole_model", [False, True])
def test_larq_files(whole_model, larq_state, tmp_path, caplog):
    """Keras' two layouts, with layers in another order than that in which they were made."""
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    path = tmp_path / "larq.h5"
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        for name in reversed(larq_state):
            root[name] = larq_state[name]
        layers = sorted({name.split("/")[0] for name in larq_state})
        root.attrs["layer_names"] = [layer.encode() for layer in [*layers, "max_pooling2d"]]
        root.create_group("max_pooling2d").attrs["weight_names"] = np.zeros(0)
        if whole_model:
            file["optimizer_weights/Adam/conv2d/kernel/m:0"] = np.zeros(3)
    variables = importers.load("bireal18", path)
    assert "--turn makes them equal" in caplog.text
    stem = variables["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(stem, larq_state["conv2d/conv2d/kernel:0"])
    # The sixth norm made is that of the first shortcut, the seventh that of the convolution beside it.
    block = variables["params"]["stage2_block1"]
    for ours, number in (("downsample_bn", 5), ("bn", 6)):
        gamma = larq_state[f"batch_normalization_{number}/batch_normalization_{number}/gamma:0"]
        np.testing.assert_array_equal(block[ours]["scale"], gamma)
    caplog.clear()
    out = tmp_path / "turned.npz"
    importers.main(["--model=bireal18", "--turn", str(path), str(out)])
    assert not caplog.text
    np.testing.assert_array_equal(np.load(out)["params/stem_conv/kernel"], stem[::-1, ::-1])


def test_other_keras_networks_are_refused(larq_state, tmp_path):
    for change, message in (
        ({"prelu/prelu/alpha:0": np.ones(3)}, "layout are not known.*found prelu/prelu/alpha:0"),
        ({"conv2d/conv2d/bias:0": np.ones(64)}, "layout are not known.*found conv2d/conv2d/bias:0"),
        ({"conv2d/conv2d/kernel": np.ones((7, 7, 3, 64))}, "kernel:0 and conv2d/conv2d/kernel are two names of one"),
        ({"dense/dense/bias:0": np.full(3, np.inf)}, "dense/dense/bias:0: 3 of 3 values cannot be, such as inf"),
        (
            {"batch_normalization/batch_normalization/moving_variance:0": np.full(64, -1e-4)},
            "moving_variance:0: 64 of 64 values cannot be, such as -0.0001; a running variance",
        ),
        ({"conv2d_4/conv2d_4/kernel:0": np.ones((1, 1, 64, 64))}, "found 5 conv2d, 16 quant_conv2d.*it has 4 conv2d"),
        ({"dense/dense/bias:0": None}, "a dense has kernel, of kernel, bias"),
        ({"dense/dense/bias:0": np.ones(2)}, r"head/linear/bias has shape \(2,\), the model wants \(3,\)"),
        ({"quant_conv2d_4/quant_conv2d_4/kernel:0": np.ones((3, 3, 64, 64))}, "block1/binary_conv/latent has shape"),
    ):  # fmt: skip
        state = {name: array for name, array in (larq_state | change).items() if array is not None}
        with pytest.raises(BadInput, match=message):
            importers.from_flat("bireal18", larq.renamed(state))
    path = write(tmp_path / "a.npz", {"batch_normalization/gamma": np.ones(3)})
    with pytest.raises(BadInput, match="of which only bireal18 is known"):
        importers.load("bireal34", path)


def test_cifar_network_comes_through_the_command(shared, tmp_path):
    """The really trained network, from a PyTorch file, is what `from_torch` makes of its arrays."""
    arrays = dict(np.load(shared / "data" / "weights" / "bireal20_cifar10.npz"))
    importers.main(["--model=bireal20", str(write(tmp_path / "a.pth.tar", arrays)), str(tmp_path / "b.npz")])
    expected = importers.from_torch("bireal20", arrays)
    jax.tree.map(np.testing.assert_array_equal, init_from(tmp_path / "b.npz", expected, "bireal20"), expected)

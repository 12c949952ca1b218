"""PyTorch's usual wrappings of weights, tensors from Python, and the way back."""

import collections
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from small import small

from bireal_jax import build, config, importers, runtime
from bireal_jax.errors import BadInput
from bireal_jax.importers import readers
from bireal_jax.runtime import named
from bireal_jax.training import train

NAME = "bireal_tiny"


@pytest.fixture(scope="module")
def tiny():
    """Variables, and the authors' state of them."""
    config = small()
    _, shapes = build.model(config, build.source(config))
    rng = np.random.default_rng(0)
    draw = lambda s: rng.uniform(0.1, 1, s.shape).astype(np.float32)
    variables = jax.tree.map(draw, shapes)
    return variables, importers.to_torch(NAME, variables)


def same(found, variables):
    jax.tree.map(np.testing.assert_array_equal, found, variables)


PREFIXES = (
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "net.",
    "model._orig_mod.",
    "a.b.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_known(prefix, tiny):
    variables, state = tiny
    same(importers.from_torch(NAME, {prefix + name: array for name, array in state.items()}), variables)


def test_what_is_beside_the_network_is_not_dropped_unsaid(tiny):
    _, state = tiny
    wrapped = {f"model.{name}": array for name, array in state.items()}
    with pytest.raises(BadInput, match=r"_tiny:\nunexpected criterion.weight\n.*: drop=\['criterion'\]$"):
        importers.from_torch(NAME, wrapped | {"criterion.weight": np.ones(3, np.float32)})
    average = {f"ema.{name}": array for name, array in state.items()}
    with pytest.raises(
        BadInput, match=r"holds 2 networks, under ema., model.\nstore the weights of one.*\n.*: drop=\['ema'\]$"
    ):
        importers.from_torch(NAME, wrapped | average)
    with pytest.raises(BadInput, match="holds 2 networks, under ema. and bare"):
        importers.from_torch(NAME, state | average)


def test_what_is_to_be_left_out_is_counted(tiny, tmp_path, capsys, caplog):
    variables, state = tiny
    beside = {"criterion.weight": np.ones(3, np.float32), "metrics.top1.sum": np.ones(1, np.float32)}
    average = {f"ema.{name}": array + 1 for name, array in state.items()}
    wrapped = {f"module.model.{name}": array for name, array in state.items()}
    safetensors.numpy.save_file(wrapped | beside | average, tmp_path / "a.safetensors")
    options = [f"--model={NAME}", *(f"--drop={name}" for name in ("criterion", "metrics", "ema"))]
    importers.main([*options, str(tmp_path / "a.safetensors"), str(tmp_path / "b.npz")])
    total = 2 * len(state) + 2
    assert f"{len(state) + 2} of {total} arrays left out: criterion, metrics, ema" in caplog.text
    same(importers.load(NAME, tmp_path / "b.npz"), variables)
    same(importers.from_torch(NAME, wrapped | average, drop=["model"]), importers.from_torch(NAME, average))
    with pytest.raises(BadInput, match="nothing to leave out is called crit; found criterion.weight, "):
        importers.from_torch(NAME, wrapped | beside, drop=["crit"])
    with pytest.raises(BadInput, match="b.npz: only of PyTorch's weights something can be left out"):
        importers.load(NAME, tmp_path / "b.npz", drop=["params"])
    with pytest.raises(SystemExit):
        importers.main([*options, str(tmp_path), str(tmp_path / "c.npz")])
    assert "is a run, which holds one network; leave --key and --drop out" in capsys.readouterr().err


# what two networks lie below, in one file, as loops write them: how the second is chosen, and what is said without that
PAIRS = {
    ("model", "model_ema"): "model_ema",  # torchvision's
    ("state_dict", "state_dict_ema"): "state_dict_ema",  # timm's
    ("state_dict", "callbacks.EMA.average"): "callbacks",  # of Lightning's callbacks
    ("student", "teacher"): "teacher",
}


def nested(where, value):
    for key in reversed(where.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("pair", PAIRS)
def test_of_two_networks_in_a_file_one_is_named(pair, tiny, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    variables, state = tiny
    one = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    other = {f"module.{name}": tensor + 1 for name, tensor in one.items()} | {"n_averaged": torch.tensor(7)}
    moments = {"state": {0: {"exp_avg": one["conv1.weight"]}}, "param_groups": [{"lr": 0.1}]}
    found = nested(pair[0], one) | nested(pair[1], other) | {"epoch": 3, "optimizer": moments}
    torch.save(found, tmp_path / "a.pt")
    with pytest.raises(
        BadInput, match=f"a.pt: holds two sets of weights, {pair[0]} and {pair[1]}\n.*: key='{pair[1]}'$"
    ):
        importers.load(NAME, tmp_path / "a.pt")
    same(importers.load(NAME, tmp_path / "a.pt", key=pair[0]), variables)
    importers.main([f"--model={NAME}", f"--key={PAIRS[pair]}", str(tmp_path / "a.pt"), str(tmp_path / "b.npz")])
    same(importers.load(NAME, tmp_path / "b.npz"), jax.tree.map(lambda leaf: leaf + 1, variables))
    with pytest.raises(BadInput, match=f"no weights under the key ema; keys of weights: {pair[0]}, {pair[1]}$"):
        importers.load(NAME, tmp_path / "a.pt", key="ema")
    with pytest.raises(BadInput, match="b.npz: only PyTorch's files have keys"):
        importers.load(NAME, tmp_path / "b.npz", key="ema")


def test_weights_under_a_key_that_is_not_known_are_found(tiny, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    variables, state = tiny
    torch.save({"weights": {k: torch.from_numpy(np.array(a)) for k, a in state.items()}, "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(BadInput, match="holds weights under the key weights, .*\n.*: key='weights'$"):
        importers.load(NAME, tmp_path / "a.pt")
    same(importers.load(NAME, tmp_path / "a.pt", key="weights"), variables)
    loop = {}
    loop |= {"a": loop, "net": {"b": torch.ones(1)}}
    torch.save(loop, tmp_path / "loop.pt")
    assert list(readers.read(tmp_path / "loop.pt")) == ["b"]


def test_weights_of_another_of_our_networks_are_told_so(tiny):
    said = f"these are not weights of bireal18; they fit {NAME}\nmissing layer3[^\n]*$"
    with pytest.raises(BadInput, match=said):
        importers.from_torch("bireal18", tiny[1])
    with pytest.raises(BadInput) as told:
        importers.from_torch("bireal18", tiny[1] | {"fc.bias": np.full(10, np.nan, np.float32)})
    assert "fit" not in str(told.value)


WRAPPINGS = {
    "a.pt": lambda state: {"model_state_dict": state, "optimizer_state_dict": {}, "epoch": 3},
    "b.pth": lambda state: {"net": state, "acc": 91.5},
    "c.pt": lambda state: {"model": {"state_dict": state}},
    "d.bin": lambda state: state,
    "lightning.ckpt": lambda state: {
        "state_dict": collections.OrderedDict((f"model.{k}", v) for k, v in state.items()), "epoch": 3,
        "global_step": 9, "pytorch-lightning_version": "2.5.0", "hyper_parameters": {"lr": 0.1}, "loops": {},
        "callbacks": {}, "optimizer_states": [], "lr_schedulers": [],
    },
}  # fmt: skip


@pytest.mark.parametrize("file", WRAPPINGS)
def test_files_as_training_loops_write_them(file, tiny, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    variables, state = tiny
    tensors = {name: torch.nn.Parameter(torch.from_numpy(np.array(array))) for name, array in state.items()}
    torch.save(WRAPPINGS[file](tensors), tmp_path / file)
    same(importers.load(NAME, tmp_path / file), variables)


def test_tensors_are_taken_as_they_are(tiny):
    torch = pytest.importorskip("torch", reason="needs torch")
    variables, state = tiny
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    trained = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    short = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    for given in (tensors, trained):
        same(importers.from_torch(NAME, given), variables)
    found = importers.from_torch(NAME, short)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))
    same(found, jax.tree.map(lambda leaf: torch.from_numpy(leaf).bfloat16().float().numpy(), variables))

    class Module(torch.nn.Module):
        def state_dict(self):
            return trained

    same(importers.from_torch(NAME, Module()), variables)
    same(importers.from_torch(NAME, {k: jax.numpy.asarray(v) for k, v in state.items()}), variables)


def test_sizes_are_checked_both_ways(tiny):
    variables, state = tiny
    latent = next(name for name in state if "binary_conv" in name)
    o, i, h, w = state[latent].shape
    for shape in ((h, w, i, o), (o, i * h * w), (i, o // 2, h, 2 * w)):
        with pytest.raises(BadInput, match=rf"{latent} has shape .*, the model wants \({o}, {i}, {h}, {w}\)"):
            importers.from_torch(NAME, state | {latent: state[latent].reshape(shape)})
    same(importers.from_torch(NAME, state | {latent: state[latent].reshape(-1, 1)}), variables)
    flat = dict(jax.tree_util.tree_leaves_with_path(variables))
    path = next(p for p in flat if p[-1].key == "latent")
    turned = jax.tree_util.tree_map_with_path(
        lambda p, leaf: leaf.transpose(3, 2, 0, 1) if p == path else leaf, variables
    )
    with pytest.raises(
        BadInput, match=r"binary_conv/latent has shape \(32, 32, 3, 3\), bireal_tiny wants \(3, 3, 32, 32\)"
    ):
        importers.to_torch(NAME, turned)


def test_the_command_writes_what_pytorch_reads(tiny, tmp_path, capsys):
    variables, state = tiny
    importers.save(variables, tmp_path / "ours.npz")
    for suffix in (".safetensors", ".npz", ".pth"):
        if suffix == ".pth":
            torch = pytest.importorskip("torch", reason="needs torch")
        out = tmp_path / f"out{suffix}"
        importers.main(["--to-torch", f"--model={NAME}", str(tmp_path / "ours.npz"), str(out)])
        assert f"{out}: {NAME}, " in capsys.readouterr().out
        found = readers.read(out)
        assert set(found) == set(state) and all(np.array_equal(found[name], state[name]) for name in state)
    stored = torch.load(out, weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 for tensor in stored.values())
    for arguments, message in (
        (
            ["--to-torch", f"--model={NAME}", "ours.npz", "out.h5"],
            "does not end in one of .pt, .pth, .safetensors, .npz",
        ),
        ([f"--model={NAME}", "ours.npz", "out.pt"], "is no name of an .npz file; --to-torch writes .pt"),
        (["ours.npz", "new.npz"], "does not say what network it is of: --model=NAME"),
        (["--to-torch", ".", "new.pth"], "no run in "),
    ):
        with pytest.raises(SystemExit):
            importers.main([a if a.startswith("-") else str(tmp_path / a) for a in arguments])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_goes_to_pytorch_and_back(tmp_path, capsys):
    run = tmp_path / "run"
    config = small(**{"model.widths": (8, 16), "total_steps": 1, "eval_steps": 1})
    train.run(config, run)
    importers.main([str(run), str(tmp_path / "ours.npz")])
    importers.main(["--to-torch", str(run), str(tmp_path / "theirs.safetensors")])
    trained = build.trained(run)[1]
    assert "bireal_tiny, " in capsys.readouterr().out
    with np.load(tmp_path / "ours.npz") as stored:
        assert stored["params/stage2_block4/binary_conv/latent"].shape == (3, 3, 16, 16)
        np.testing.assert_array_equal(
            stored["params/head/linear/kernel"], trained["params"]["head"]["linear"]["kernel"]
        )
    with pytest.raises(SystemExit):
        importers.main(["--model=bireal18", str(run), str(tmp_path / "b.npz")])
    assert "is of bireal_tiny, not of bireal18; leave --model out" in capsys.readouterr().err


def test_each_kind_of_safetensors_is_told_what_it_is(tiny, tmp_path):
    _, state = tiny
    safetensors.numpy.save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(BadInput, match="weights.safetensors .*no packed network.*\n.*--mode=export"):
        runtime.load(tmp_path / "weights.safetensors")
    safetensors.numpy.save_file(state, tmp_path / "packed.safetensors", {"bireal_jax": "{}"})
    with pytest.raises(
        BadInput, match="packed.safetensors: is a packed network, for bireal_jax.runtime: .*\ngive the work"
    ):
        importers.load(NAME, tmp_path / "packed.safetensors")


def command(said):
    """The arguments of the command in a message."""
    return shlex.split(
        next(line for line in said.splitlines() if "python -m" in line).partition(": python -m ")[2].split(";")[0]
    )[1:]


def test_an_option_that_lacks_is_said_as_a_whole_command(tiny, tmp_path, capsys):
    """It runs, and what it writes is started from: for who gave a command, and for who gave a field."""
    variables, state = tiny
    average = {f"ema.{name}": array + 1 for name, array in state.items()}
    wrapped = {f"model.{name}": array for name, array in state.items()} | average
    weights, out = tmp_path / "my weights.safetensors", tmp_path / "out.npz"
    safetensors.numpy.save_file(wrapped | {"ema.criterion.weight": np.ones(3, np.float32)}, weights)
    with pytest.raises(SystemExit):
        importers.main([f"--model={NAME}", "--drop=model", str(weights), str(out)])
    arguments = command(capsys.readouterr().err)
    assert arguments == [f"--model={NAME}", "--drop=model", "--drop=criterion", str(weights), str(out)]
    importers.main(arguments)
    same(importers.load(NAME, out), jax.tree.map(lambda leaf: leaf + 1, variables))
    c = config.default()
    c.model.name, c.init_from = NAME, str(weights)
    with pytest.raises(BadInput) as caught:
        build.variables(c, jax.eval_shape(lambda: variables))
    importers.main(command(str(caught.value)))
    c.init_from = str(tmp_path / "my weights_chosen.npz")
    assert str(caught.value).endswith(f"; then name {c.init_from} in its place") and "holds 2 networks" in str(
        caught.value
    )
    same(build.variables(c, jax.eval_shape(lambda: variables)), variables)


def test_a_network_without_a_counterpart_stays_under_our_names(tmp_path, capsys):
    train.run(small(**{"model.name": "react_tiny", "total_steps": 1}), tmp_path / "w")
    with pytest.raises(SystemExit):
        importers.main(["--to-torch", str(tmp_path / "w"), str(tmp_path / "own.pth")])
    said = capsys.readouterr().err
    assert "react_tiny has no counterpart in the authors' PyTorch code" in said and "RUN OUT.npz" in said
    assert len(said.splitlines()) <= 3
    importers.main([str(tmp_path / "w"), str(tmp_path / "own.npz")])
    _, variables, _ = build.trained(tmp_path / "w")
    same(importers.load("react_tiny", tmp_path / "own.npz"), variables)
    c = config.default()
    c.model.name, c.init_from = "react_tiny", str(tmp_path / "own.npz")
    same(build.variables(c, jax.eval_shape(lambda: variables)), variables)
    with pytest.raises(BadInput, match="react_tiny has no counterpart"):
        importers.to_torch("react_tiny", variables)
    page = (Path(__file__).parents[1] / "docs" / "pytorch.md").read_text().partition("come\nwith the package")[2]
    those = {name for name, row in named.rows().items() if row.model not in importers.FAMILIES}
    assert {name for name in named.rows() if f"`{name}`" in page} == those


def test_a_pytorch_file_that_is_cut_off_is_told_so(tiny, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in tiny[1].items()}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[:-500])
    says = f"it is cut off, or damaged: {len(whole) - 500:,} bytes are there, and its end is missing"
    with pytest.raises(BadInput, match=f"a.pt is not a readable PyTorch file: {says}\ncopy it again"):
        importers.load(NAME, tmp_path / "a.pt")

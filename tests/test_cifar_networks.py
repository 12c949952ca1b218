"""The options of the CIFAR-10 networks: against PyTorch twins in float64, packed, and what only training sees."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest

from bireal_jax import models, runtime
from bireal_jax.binary import norm
from bireal_jax.binary.layers import TwoSidedPReLU
from bireal_jax.errors import BadInput
from bireal_jax.main import load_recipe
from bireal_jax.models import vgg
from bireal_jax.models.bireal import CIFAR, padded_shortcut, pooled_padded_shortcut
from bireal_jax.models.vgg import VGGS
from bireal_jax.runtime import container, reference
from bireal_jax.shipping import cost, export, graph
from bireal_jax.training import train

SMALL = {"blocks": (2, 2), "widths": (5, 7)}  # odd, and 10 pixels become 5


def build(name, dtype=jnp.float32, **fields):
    """A network of the table in its smallest form."""
    module = models.build(name, 10, dtype=dtype, latent_init="he")
    return module if name in VGGS else module.clone(**SMALL | fields)


@pytest.fixture
def narrow(monkeypatch):
    """VGG-small of a few channels."""
    monkeypatch.setattr(vgg, "WIDTHS", (5, 5, 6, 6, 7, 7))


def twin(name):
    """The same network in plain PyTorch, its modules called as ours are."""
    torch = pytest.importorskip("torch", reason="needs torch")
    from torch import nn
    from torch.nn import functional as F

    from experiments.speed.torch_bireal import ApproxSign

    row = (CIFAR | VGGS)[name]

    class Signs(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w, alpha):
            ctx.save_for_backward(w, alpha)
            return torch.where(w >= 0, 1.0, -1.0).to(w.dtype)

        @staticmethod
        def backward(ctx, g):
            w, alpha = ctx.saved_tensors
            return g / alpha * (w.abs() <= 1), None

    class BinaryConv(nn.Module):  # the scale behind the sum: equal sums stay equal, of which pooling takes the first
        def __init__(self, cin, cout, stride):
            super().__init__()
            self.weights, self.stride = nn.Parameter(torch.zeros(cout, cin, 3, 3)), stride

        def forward(self, x):
            alpha = self.weights.abs().mean((1, 2, 3), keepdim=True).detach()
            y = F.conv2d(ApproxSign.apply(x), Signs.apply(self.weights, alpha), None, self.stride, 1)
            return y * alpha[:, :, 0].transpose(0, 1)[..., None]

    class TwoSlopes(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.positive = nn.Parameter(torch.ones(channels))
            self.negative = nn.Parameter(0.25 * torch.ones(channels))

        def forward(self, x):
            return self.positive[:, None, None] * F.relu(x) - self.negative[:, None, None] * F.relu(-x)

    class RPReLU(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.shift_in, self.shift_out = (nn.Parameter(torch.zeros(channels)) for _ in range(2))
            self.slope = nn.Parameter(torch.full((channels,), 0.25))

        def forward(self, x):
            return F.prelu(x + self.shift_in[:, None, None], self.slope) + self.shift_out[:, None, None]

    kind = getattr(row.get("nonlinearity"), "__name__", "clip")
    make = {"clip": lambda c: nn.Hardtanh(), "PReLU": nn.PReLU, "TwoSidedPReLU": TwoSlopes, "RPReLU": RPReLU}[kind]

    def scaled(x, train):
        if "rescale" not in row or not train:
            return x
        deviation = torch.sqrt(x.var((1, 2, 3), keepdim=True) + 1e-5)
        return x / (deviation.detach() if row["rescale"] is norm.by_constant_deviation else deviation)

    class Block(nn.Module):
        def __init__(self, cin, cout, stride):
            super().__init__()
            self.count, self.stride = row.get("convs_per_shortcut", 1), stride
            for k in range(self.count):
                number = str(k + 1) if self.count > 1 else ""
                conv = BinaryConv(cout if k else cin, cout, 1 if k else stride)
                setattr(self, f"binary_conv{number}", conv)
                setattr(self, f"bn{number}", nn.BatchNorm2d(cout))
            self.nonlinearity = make(cout)
            if self.count > 1:
                self.nonlinearity1 = make(cout)
            self.real = stride > 1 and row.get("shortcut") not in (padded_shortcut, pooled_padded_shortcut)
            if self.real:
                self.downsample_conv = nn.Conv2d(cin, cout, 1, bias=False)
                self.downsample_bn = nn.BatchNorm2d(cout)

        def forward(self, x):
            y, extra = x, self.extra
            for k in range(self.count):
                number = str(k + 1) if self.count > 1 else ""
                conv, bn = getattr(self, f"binary_conv{number}"), getattr(self, f"bn{number}")
                y = bn(conv(scaled(y, self.training)))
                y = self.nonlinearity1(y) if k < self.count - 1 else y
            if self.real:
                x = self.downsample_bn(self.downsample_conv(F.avg_pool2d(x, 2)))
            elif self.stride > 1:
                pooled = row["shortcut"] is pooled_padded_shortcut
                x = F.avg_pool2d(x, 2) if pooled else x[:, :, ::2, ::2]
                x = F.pad(x, (0, 0, 0, 0, extra // 2, extra - extra // 2))
            return self.nonlinearity(y + x)

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            widths = vgg.WIDTHS if name in VGGS else SMALL["widths"]
            self.stem_conv, self.stem_bn = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
            self.stem_nonlinearity, cin, self.body = make(widths[0]), widths[0], []
            for i, cout in enumerate(widths[1:] if name in VGGS else widths, 1):
                if name in VGGS:
                    layers = {"binary_conv": BinaryConv(cin, cout, 1), "bn": nn.BatchNorm2d(cout)}
                    layers["nonlinearity"] = make(cout)
                    self.body.append([f"{key}{i}" for key in layers])
                    for key, layer in layers.items():
                        setattr(self, f"{key}{i}", layer)
                else:
                    for j in range(SMALL["blocks"][0] // row.get("convs_per_shortcut", 1)):
                        block = Block(cin if j == 0 else cout, cout, 2 if i > 1 and j == 0 else 1)
                        block.extra = cout - cin
                        self.body.append(f"stage{i}_block{j + 1}")
                        setattr(self, self.body[-1], block)
                cin = cout
            self.head_bn = nn.BatchNorm1d(cin) if row.get("head_norm") else None
            self.head = nn.Linear(cin, 10)

        def forward(self, x):
            x = self.stem_nonlinearity(self.stem_bn(self.stem_conv(x)))
            for i, step in enumerate(self.body, 1):
                if isinstance(step, str):
                    x = getattr(self, step)(x)
                else:
                    conv, bn, nonlinearity = (getattr(self, key) for key in step)
                    x = conv(scaled(x, self.training))
                    x = nonlinearity(bn(F.max_pool2d(x, 2) if i % 2 else x))
            x = x.flatten(1) if name in VGGS else x.mean((2, 3))
            return self.head(self.head_bn(x) if self.head_bn else x)

    return Twin().double()


LEAVES = {"latent": "weights", "kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def fill(peer, tree):
    """Copies our tree, of variables or of gradients, under the names of the peer: name -> array in its layout."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *modules, leaf_name = (key.key for key in path)
        modules = [m for m in modules if m not in ("params", "batch_stats", "linear")]
        owner = peer.get_submodule(".".join(modules))
        own = "weight" if type(owner).__name__ == "PReLU" else leaf_name
        key = own if hasattr(owner, own) and leaf_name != "bias" else LEAVES.get(own, own)
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, range(leaf.ndim))
        found[".".join([*modules, key])] = np.asarray(leaf).transpose(*order)
    return found


EVERY = [
    pytest.param(
        name, marks=[] if name in ("maxout20", "recu20", "ovsw20", "clip18_cifar", "prelu_vgg") else pytest.mark.slow
    )
    for name in (*CIFAR, "prelu_vgg", "recu_vgg")
]


@pytest.mark.parametrize("name", EVERY)
def test_logits_statistics_and_gradients_are_pytorchs(name, x64, narrow):
    peer = twin(name)
    import torch

    module = build(name, jnp.float64)
    size = 8 if name in VGGS else 10
    variables = packed.drawn(module, (size, size, 3))
    state = {key: torch.from_numpy(value.copy()) for key, value in fill(peer, variables).items()}
    missing = [key for key in peer.state_dict() if key not in state and "num_batches" not in key]
    assert not missing and set(state) <= set(peer.state_dict())
    peer.load_state_dict(state, strict=False)
    rng = np.random.default_rng(0)
    images, wanted = rng.normal(size=(4, size, size, 3)), rng.normal(size=(4, 10))
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = peer.eval()(pixels).numpy()
    np.testing.assert_allclose(jax.jit(module.apply)(variables, images), expected, rtol=1e-9, atol=1e-11)

    def objective(params):
        logits, updated = module.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.sum(logits * wanted), (logits, updated)

    grads, (logits, updated) = jax.jit(jax.grad(objective, has_aux=True))(variables["params"])
    expected = peer.train()(pixels)
    (expected * torch.from_numpy(wanted)).sum().backward()
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-8, atol=1e-10)
    grads = fill(peer, grads)
    for key, value in peer.named_parameters():
        theirs = value.grad.numpy()
        assert np.abs(theirs).max() > 0 or key.endswith("head_bn.weight"), key
        assert np.abs(grads[key] - theirs).max() < 1e-7 * np.abs(theirs).max() + 1e-13, key
    for key, value in fill(peer, updated).items():
        np.testing.assert_allclose(value, peer.state_dict()[key].numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_packed_is_the_model_and_the_head_has_no_batch_norm_left(name, x64, narrow, tmp_path):
    """In float64 by the reference; by the engine to rounding, and the maps of ±1 and of their sums bit for bit."""
    module, size = build(name, jnp.float64), 8 if name in VGGS else 10
    variables, source = packed.drawn(module, (size, size, 3)), packed.source((size, size, 3))
    images = np.random.default_rng(1).normal(size=(2, size, size, 3))
    theirs = np.asarray(jax.jit(module.apply)(variables, images))
    made = export.program(name, module, variables, source, dtype=np.float64)
    ours = made.run(images, np.float64)[-1].reshape(2, -1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
    assert [op["op"] for op in made.spec["ops"]][-3:] == [
        {"prelu_vgg": "rprelu", "recu_vgg": "clip"}.get(name, "mean"),
        "conv",
        "affine",
    ]
    if runtime.available():
        path = tmp_path / "net.safetensors"
        export.write(export.program(name, module, variables, source), path)
        np.testing.assert_allclose(runtime.load(path)(images), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
        net, image = runtime.load(path, unfused=True), images[0].astype(np.float32)
        tensors = net.tensors(image)
        program = container.read(path)
        for i, op in enumerate(program.spec["ops"]):
            if op["op"] in ("sign", "binary_conv"):
                (number,) = op["inputs"]
                expected = reference.apply(op, program.arrays(i), [tensors[number][None]])[0]
                np.testing.assert_array_equal(tensors[i + 1], expected, op["path"])


@pytest.mark.parametrize("name", ["recu20", pytest.param("recu_vgg", marks=pytest.mark.slow)])
def test_rescaled_inputs_of_signs_change_the_training_alone(name, narrow):
    """Exported bytes and logits are those of the same network without, its gradients are not."""
    module, size = build(name), 8 if name in VGGS else 10
    variables, source = packed.drawn(module, (size, size, 3)), packed.source((size, size, 3))
    variables = jax.tree.map(jnp.float32, variables)
    plain = module.clone(rescale=None)
    made, without = (container.dump(export.program(name, m, variables, source)) for m in (module, plain))
    assert made == without
    images = np.random.default_rng(1).normal(size=(3, size, size, 3)).astype(np.float32)
    np.testing.assert_array_equal(*(jax.jit(m.apply)(variables, images) for m in (module, plain)))

    def first(params, m):
        logits, _ = m.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.sum(logits[:, 0]), logits

    grad = jax.jit(jax.grad(first, has_aux=True), static_argnums=1)
    (a, x), (b, y) = (grad(variables["params"], m) for m in (module, plain))
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    a, b = (np.asarray(g["stem_conv"]["kernel"]) for g in (a, b))
    assert np.abs(a - b).max() > 0.01 * np.abs(b).max()


def test_deviation_is_that_of_a_sample_and_carries_a_gradient_or_none(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (2, 3, 4, 5)))
    deviation = np.sqrt(np.asarray(x).var((1, 2, 3), ddof=1) + 1e-5)
    for rule in (norm.by_deviation, norm.by_constant_deviation):
        np.testing.assert_allclose(rule(x) * deviation[:, None, None, None], x, rtol=1e-12)
        assert rule(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    slope = lambda rule: jax.grad(lambda x: jnp.sum(rule(x)[0] ** 2))(x)
    np.testing.assert_allclose(slope(norm.by_constant_deviation)[0], 2 * x[0] / deviation[0] ** 2, rtol=1e-12)
    # what the deviation divides away, the length of a centred sample, gets no gradient from that length
    centred = x - x.mean((1, 2, 3), keepdims=True)
    inner = jnp.vdot(jax.grad(lambda x: jnp.sum(norm.by_deviation(x) ** 2))(centred), centred)
    assert abs(inner) < 1e-3 < abs(jnp.vdot(slope(norm.by_constant_deviation), x))


def test_rescaling_is_for_signs():
    with pytest.raises(BadInput, match="recu20 rescales the input of its signs in training, and act='clip' is no sign"):
        models.build("recu20", 10, act="clip", weight="real")
    models.build("clip20", 10, act="clip", weight="real")


class Slopes(TwoSidedPReLU):
    """A network of nothing else."""

    def __call__(self, x, train=False):
        return super().__call__(x)


def test_two_slopes_of_any_value_are_packed(x64):
    """None, either or both of them zero, negative, the second one larger."""
    slopes = np.array([0.0, 1.0, -0.5, 3.0, 1e-30])
    positive, negative = (np.asarray(v).ravel() for v in np.meshgrid(slopes, slopes))
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 25))
    x[0, 0, 0] = 0.0
    ops = graph.trace(Slopes(), {"params": {"positive": positive, "negative": negative}}, (3, 3, 25))
    assert [op.kind for op in ops] == ["affine", "rprelu", "affine"]
    y = x
    for op in ops:
        y = reference.apply({"op": op.kind}, op.arrays, [y])
    np.testing.assert_allclose(y, np.where(x >= 0, positive * x, negative * x), rtol=1e-14)
    usual = {"positive": np.full(25, 0.8), "negative": np.full(25, 0.1)}
    assert [op.kind for op in graph.trace(Slopes(), {"params": usual}, (3, 3, 25))] == ["rprelu", "affine"]


def test_cost_names_the_options():
    """Six convolutions a stage: 18 sums and the stem. What the literature calls 0.27 M parameters."""

    def others(name):
        shapes = jax.eval_shape(models.build(name, 10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        return cost.rows(models.build(name, 10), shapes, (32, 32, 3))

    found = {name: others(name) for name in ("clip20", "maxout20", "prelu20")}
    assert [row.layer for row in found["maxout20"][-2:]] == ["20 x batch norm", "19 x two-sided PReLU"]
    assert [row.layer for row in found["prelu20"][-2:]] == ["20 x batch norm", "19 x PReLU"]
    totals = {name: cost.total(rows) for name, rows in found.items()}
    assert len({(t.flops, t.bops) for t in totals.values()}) == 1
    assert totals["clip20"].bops == 9 * 1024 * (
        6 * 16 * 16 + (16 * 32 + 5 * 32 * 32) // 4 + (32 * 64 + 5 * 64 * 64) // 16
    )
    assert totals["clip20"].flops == 9 * 3 * 16 * 1024 + 640
    assert round(totals["clip20"].parameters / 1e6, 2) == 0.27


@pytest.mark.slow
def test_the_recipe_trains_and_ships_with_every_option(tmp_path):
    """A few steps on a few images: teacher, then student of teacher and labels, OvSW's rules, cutout, packed."""
    rng = np.random.default_rng(0)
    arrays = {f"x_{s}": rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for s, n in (("train", 48), ("test", 8))}
    np.savez(tmp_path / "c.npz", **arrays, y_train=np.arange(48) % 10, y_test=np.arange(8))
    few = {"batch_size": 16, "total_epochs": 1.0, "optim.warmup_epochs": 0.0, "eval_epochs": 1.0, "save_epochs": 1.0}

    def run(variant, **fields):
        c = load_recipe(Path(__file__).parents[1] / "configs" / "cifar10_sgd.py", variant)
        c.update_from_flattened_dict({"data.dir": str(tmp_path / "c.npz"), **few, **fields})
        return c, train.run(c, tmp_path / variant)

    run("r20_teacher")
    options = {"optim.gradient_floor": 0.04, "optim.silent_decay": 9e-4, "data.cutout": 16, "model.name": "recu20"}
    c, _ = run("r20_distilled", **options, **{"teacher.weights": str(tmp_path / "r20_teacher")})
    lines = [json.loads(line) for line in (tmp_path / "r20_distilled" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "flipped" in line] == [3], "logged once an epoch"
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    found = export.run(c, tmp_path / "r20_distilled")
    assert found["same_top1"] == found["images"] == 8

"""The same network written in plain PyTorch, for machines without the oracles: needs torch, which no extra installs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bireal_jax import importers, models
from bireal_jax.binary import losses
from bireal_jax.models.resnet import RESNET

torch = pytest.importorskip("torch", reason="needs torch")


@pytest.mark.parametrize(("name", "size"), [("bireal18", 64), ("bireal18_cifar", 16), ("bireal20", 16)])
def test_logits_statistics_and_gradients_are_pytorchs(name, size, x64):
    from experiments.speed.torch_bireal import BiReal

    torch.manual_seed(0)
    peer = BiReal(name, 10).double()
    with torch.no_grad():
        for key, value in peer.named_parameters():
            if key.endswith("weights"):
                value.normal_(0, 0.6)  # a tenth beyond +-1
    # The peer stores latent weights as [o, i, kh, kw] under the authors' name for the 18-layer net.
    state = {k: v.detach().numpy() for k, v in peer.state_dict().items()}
    if name != "bireal18":
        state = {k.replace(".weights", ".weight"): v for k, v in state.items()}
    variables = importers.from_torch(name, state)
    model = models.build(name, 10, jnp.float64)
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(4, size, size, 3)), rng.integers(0, 10, 4)

    def objective(params):
        logits, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return losses.cross_entropy(logits, labels, 0.1).mean(), (logits, updated)

    grads, (logits, updated) = jax.jit(jax.grad(objective, has_aux=True))(variables["params"])
    expected = peer(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    torch.nn.functional.cross_entropy(expected, torch.from_numpy(labels), label_smoothing=0.1).backward()
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-8, atol=1e-10)
    grads, updated = importers.to_torch(name, grads), importers.to_torch(name, updated)
    for key, value in peer.named_parameters():
        ours = grads[key if name == "bireal18" else key.replace(".weights", ".weight")]
        theirs = value.grad.numpy()
        # The bias of a convolution before batch norm has no gradient but rounding.
        assert np.abs(ours.reshape(theirs.shape) - theirs).max() < 1e-6 * np.abs(theirs).max() + 1e-14, key
    for key, ours in updated.items():
        np.testing.assert_allclose(ours, peer.state_dict()[key].numpy(), rtol=1e-8, atol=1e-12)


def twin_block(cin, width, stride, bottleneck):
    """The residual branch of torchvision's ResNet under its names, and the shortcut."""
    nn, module = torch.nn, torch.nn.Module()
    out = 4 * width if bottleneck else width
    convs = [(cin, width, 3, stride), (width, width, 3, 1)]
    if bottleneck:
        convs = [(cin, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
    for k, (a, b, size, s) in enumerate(convs, 1):
        module.add_module(f"conv{k}", nn.Conv2d(a, b, size, s, size // 2, bias=False))
        module.add_module(f"bn{k}", nn.BatchNorm2d(b))
    if stride > 1 or cin != out:
        module.downsample = nn.Sequential(nn.Conv2d(cin, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    return module, out


class TwinResNet(torch.nn.Module):
    """torchvision's ResNet, written again."""

    def __init__(self, blocks, widths, bottleneck=False, imagenet_stem=True, classes=10):
        nn = torch.nn
        super().__init__()
        self.imagenet_stem, channels = imagenet_stem, widths[0]
        self.conv1 = nn.Conv2d(3, channels, *((7, 2, 3) if imagenet_stem else (3, 1, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            stage = nn.ModuleList()
            for j in range(count):
                block, channels = twin_block(channels, width, 2 if i > 1 and j == 0 else 1, bottleneck)
                stage.append(block)
            self.add_module(f"layer{i}", stage)
        self.fc, self.depth = nn.Linear(channels, classes), len(blocks)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1) if self.imagenet_stem else x
        for i in range(1, self.depth + 1):
            for block in self.get_submodule(f"layer{i}"):
                parts, y = dict(block.named_children()), x
                last = sum(name.startswith("conv") for name in parts)
                for k in range(1, last + 1):
                    y = parts[f"bn{k}"](parts[f"conv{k}"](y))
                    y = y.relu() if k < last else y
                x = (y + (parts["downsample"](x) if "downsample" in parts else x)).relu()
        return self.fc(x.mean((2, 3)))


def randomized(network):
    """In float64 and evaluation mode, with running statistics, scales and biases as after a training."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.double().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.1)
    return network.eval()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] if n in ("resnet18", "resnet34", "resnet18_cifar") else [])
        for n in RESNET
    ],
)
def test_resnets_are_torchvisions(name, x64):
    """Logits of our twin on the same weights; and those of torchvision's own network where it is installed."""
    twin = randomized(TwinResNet(**RESNET[name]))
    state = {key: value.numpy() for key, value in twin.state_dict().items()}
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3))
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = twin(pixels).numpy()
    variables = importers.from_torch(name, state)
    logits = jax.jit(models.build(name, 10, jnp.float64).apply)(variables, images)
    assert np.abs(logits - expected).max() < 1e-8 * np.abs(expected).max()
    back = importers.to_torch(name, variables)
    assert all(np.array_equal(back[key], value) for key, value in state.items() if "num_batches" not in key)
    if RESNET[name].get("imagenet_stem", True):
        torchvision = pytest.importorskip("torchvision", reason="the twin alone was compared: needs torchvision")
        theirs = getattr(torchvision.models, name)(num_classes=10).double().eval()
        theirs.load_state_dict(twin.state_dict())
        with torch.no_grad():
            np.testing.assert_allclose(theirs(pixels).numpy(), expected, rtol=1e-10, atol=1e-12)

"""The same network written in plain PyTorch, for machines without the oracles: needs torch, which no extra installs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bireal_jax import importers, losses, models

torch = pytest.importorskip("torch", reason="needs torch")


@pytest.mark.parametrize(("name", "imagenet_stem", "size"), [("bireal18", True, 64), ("bireal18_cifar", False, 16)])
def test_logits_statistics_and_gradients_are_pytorchs(name, imagenet_stem, size, x64):
    from experiments.speed.torch_bireal import BiReal18

    torch.manual_seed(0)
    peer = BiReal18(10, imagenet_stem).double()
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
        assert np.abs(ours.reshape(theirs.shape) - theirs).max() < 1e-6 * np.abs(theirs).max(), key
    for key, ours in updated.items():
        np.testing.assert_allclose(ours, peer.state_dict()[key].numpy(), rtol=1e-8, atol=1e-12)

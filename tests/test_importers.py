import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bireal_jax import importers, models
from bireal_jax.errors import BadInput


def random_variables(name, size, channels=3, classes=10):
    model = models.build(name, classes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)


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
    with pytest.raises(BadInput, match="no such file"):
        importers.read_npz(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(BadInput, match="not a readable .npz"):
        importers.read_npz(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(BadInput, match="not a readable .npz"):
        importers.read_npz(tmp_path / "objects.npz")

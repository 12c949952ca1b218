"""The PruningNet against networks really built at the widths that genes name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bireal_jax import data
from bireal_jax.binary import losses
from bireal_jax.data import batching
from bireal_jax.models import layouts
from bireal_jax.models.layouts import LAYOUTS
from bireal_jax.models.metaprune import Pruned, PruningNet, crop
from bireal_jax.running import parallel
from bireal_jax.training import optim
from bireal_jax.training.step import make_state, make_train_step

# Every kind of block of the three families, in small.
FAMILIES = {
    "mbv1": layouts.mobilenet_v1([16, 24, 40, 40], [2, 1, 2, 1]),
    "mbv2": layouts.mobilenet_v2([(12, 1, 2), (10, 1, 1), (14, 2, 2)], 32),
    "r50": layouts.resnet(16, [(32, 2), (48, 1)]),
}
SHAPE = (16, 16, 3)


def network(family, dtype=jnp.float64):
    """A PruningNet whose batch norms have statistics, scales and biases of their own in every row."""
    net = PruningNet(num_classes=10, layout=FAMILIES[family], dtype=dtype, param_dtype=dtype)
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *SHAPE), dtype))
    rng = np.random.default_rng(0)
    other = lambda path, leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), dtype) if "_bn" in str(path) else leaf * 3
    return net, jax.tree_util.tree_map_with_path(other, variables)


@pytest.mark.parametrize("family", ["mbv1", *(pytest.param(f, marks=pytest.mark.slow) for f in ("mbv2", "r50"))])
def test_masked_is_cropped_and_twenty_networks_share_one_compilation(family, x64):
    net, variables = network(family)
    layout, rng = net.layout, np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(4, *SHAPE)))
    traced = []

    @jax.jit
    def run(variables, genes):
        traced.append(genes)
        trained, updated = net.apply(variables, x, train=True, genes=genes, mutable=["batch_stats"])
        return net.apply(variables, x, genes=genes), trained, updated["batch_stats"]

    for number in range(20):
        genes = tuple(int(g) for g in rng.integers(0, 31, layout.num_genes))
        evaluated, trained, stats = run(variables, jnp.asarray(genes))
        if number == 0:  # compared; the others are counted
            compare(net, variables, genes, x, evaluated, trained, stats)
    assert len(traced) == 1


def compare(net, variables, genes, x, evaluated, trained, stats):
    small = crop(net, variables, genes, SHAPE)
    pruned = Pruned(num_classes=10, layout=net.layout, genes=genes, dtype=jnp.float64, param_dtype=jnp.float64)
    shapes = jax.eval_shape(pruned.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, shapes)
    train = jax.jit(lambda v: (pruned.apply(v, x), *pruned.apply(v, x, train=True, mutable=["batch_stats"])))
    expected, expected_trained, updated = train(small)
    assert np.std(expected) > 1e-3
    for ours, theirs in ((evaluated, expected), (trained, expected_trained)):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())
    scales, widths = net.layout.scales(genes), net.layout.widths(genes)
    for i, block in enumerate(net.layout.blocks):
        for k, conv in enumerate(block.convs):
            name, row, width = f"block{i}_conv{k + 1}_bn", scales[conv.out], widths[conv.out]
            for leaf, table in stats[name].items():
                close = updated["batch_stats"][name][leaf]
                np.testing.assert_allclose(table[row, :width], close, rtol=0, atol=1e-6 * np.abs(close).max())
                others = np.delete(table, row, 0), np.delete(variables["batch_stats"][name][leaf], row, 0)
                np.testing.assert_array_equal(*others)


# Counted on the authors' modules, in millions, without batch norms.
@pytest.mark.parametrize(("name", "millions"), [("mbv1", 106.1), ("mbv2", 242.0), ("r50", 776.1)])
def test_parameters_of_the_authors_pruning_nets(name, millions):
    net = PruningNet(num_classes=1000, layout=LAYOUTS[name])
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    others = {module: leaves for module, leaves in shapes["params"].items() if not module.endswith("_bn")}
    count = sum(p.size for p in jax.tree.leaves(others))
    assert round(count / 1e6, 1) == millions
    if name == "mbv1":
        assert 31 * len(shapes["batch_stats"]) == 837
        affine = [c.out for block in net.layout.blocks for c in block.convs if c.affine]
        tables = sum(2 * layouts.scaled(net.layout.bases[slot], i) for slot in affine for i in range(31))
        assert round((count + tables) / 1e6, 1) == 106.3  # with scales and biases; theirs are cropped, ours are not


def test_training_draws_genes_and_every_draw_is_another(x64):
    net, variables = network("mbv1")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, *SHAPE)))
    apply = jax.jit(lambda key: net.apply(variables, x, train=True, rngs={"genes": key}, mutable=["batch_stats"]))
    rows = set()
    for seed in range(20):
        logits, updated = apply(jax.random.key(seed))
        table = updated["batch_stats"]["block0_conv1_bn"]["mean"]
        before = variables["batch_stats"]["block0_conv1_bn"]["mean"]
        (row,) = np.flatnonzero((table != before).any(-1))
        rows.add(int(row))
        assert np.isfinite(logits).all()
    assert len(rows) > 10
    np.testing.assert_array_equal(*[apply(jax.random.key(3))[0] for _ in range(2)])


def test_training_steps_draw_the_same_genes_on_all_devices():
    source = data.build("digits", image_size=8)
    net = PruningNet(num_classes=10, layout=LAYOUTS["mbv1_tiny"])
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    tx = optim.make("sgd", optim.schedule("constant", 0.05, 9), variables["params"])
    step = make_train_step(net, losses.cross_entropy, tx, source)
    run = jax.pmap(step, parallel.AXIS, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:2])
    state, rows = make_state(variables, tx, 0, False, jnp.float32), []
    for _, batch in zip(range(6), batching.train_batches(source, 16, 0, 0, devices=2), strict=False):
        before, (state, loss) = state, run(state, batch)
        name = "block1_conv2_bn"
        changed = np.asarray(state.batch_stats[name]["mean"]) != np.asarray(before.batch_stats[name]["mean"])
        (row,) = np.flatnonzero(changed.any(-1))  # another row on the other device would be averaged in
        rows.append(int(row))
        assert np.isfinite(loss)
    assert len(set(rows)) > 3

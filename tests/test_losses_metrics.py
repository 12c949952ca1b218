import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bireal_jax.binary import losses
from bireal_jax.running import metrics


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_against_numpy(smoothing, x64):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (6, 7)), rng.integers(0, 7, 6)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = (1 - smoothing) * np.eye(7)[labels] + smoothing / 7
    np.testing.assert_allclose(
        losses.cross_entropy(jnp.asarray(logits), labels, smoothing), -(target * np.log(p)).sum(1), rtol=1e-12
    )


def test_sixteen_bit_logits_are_widened():
    assert losses.cross_entropy(jnp.zeros((2, 3), jnp.bfloat16), jnp.zeros(2, int)).dtype == jnp.float32


def test_masked_sums_and_means():
    logits = jnp.asarray([[5.0, 1, 0, 0, 0, 0, 0], [0, 6, 5, 4, 3, 2, 1], [9, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]])
    labels, mask = jnp.asarray([0, 0, 0, 6]), jnp.asarray([True, True, False, True])
    sums = metrics.sums(logits, labels, jnp.asarray([0.5, 2.0, jnp.nan, 1.0]), mask)
    assert {k: float(v) for k, v in sums.items()} == {"loss": 3.5, "top1": 2.0, "top5": 2.0, "seen": 3.0}
    np.testing.assert_allclose(list(metrics.means(sums).values()), [3.5 / 3, 200 / 3, 200 / 3])


def test_top5_counts_the_fifth_and_not_the_sixth():
    logits, ones = -jnp.arange(8.0)[None].repeat(8, 0), jnp.ones(8, bool)
    sums = metrics.sums(logits, jnp.arange(8), jnp.zeros(8), ones)
    assert (sums["top1"], sums["top5"]) == (1, 5)


def test_of_five_classes_one_is_always_among_the_five_likeliest():
    totals = {"loss": 3.0, "top1": 2.0, "top5": 4.0, "seen": 4.0}
    for classes, names in ((5, {"loss", "top1"}), (6, {"loss", "top1", "top5"})):
        task = metrics.task(None, classes)
        scores = task.means(totals)
        assert set(scores) == names and metrics.task_of(scores) is task
        assert ("top-5" in task.report.format(**scores)) == (classes > 5)


def test_flips_are_counted_with_zero_as_plus():
    before = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 4, 5)))
    after = before.at[0, 0, 0, :3].multiply(-1.0).at[1, 1, 1, 1].set(0.0)
    expected = np.sum((np.asarray(before) >= 0) != (np.asarray(after) >= 0))
    assert metrics.flipped(metrics.pack_signs(before), metrics.pack_signs(after)) == expected >= 3
    assert metrics.pack_signs(before).dtype == jax.numpy.uint8 and metrics.pack_signs(before).size == 23

"""The same bits on a GPU, as far as it can be seen without one."""

import dataclasses
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small

from bireal_jax import data, main
from bireal_jax.binary import pool
from bireal_jax.errors import BadInput
from bireal_jax.running import bits
from bireal_jax.training.step import Plan


@pytest.fixture
def a_gpu(monkeypatch):
    """JAX would compile for one, and the command has set the flag."""
    monkeypatch.setattr(bits, "platform", lambda: "cuda")
    monkeypatch.setenv("XLA_FLAGS", bits.FLAG + "=true")


def test_what_a_gpu_adds_in_any_order_is_named_before_compiling(a_gpu):
    x, i = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32), jax.ShapeDtypeStruct((2,), np.int32)
    for loss, said in (
        (lambda x, i: nn.max_pool(jnp.tanh(x), (3, 3), (2, 2)).sum(), "select_and_scatter of .*select_and_scatter"),
        (lambda x, i: x[0, 0, 0][i].sum(), "scatter of .*scatter-add"),
        (lambda x, i: pool.max_pool(x).sum() + x[0, 0, 0].at[i].set(0.0, unique_indices=True).sum(), ""),
    ):
        if said:
            with pytest.raises(BadInput, match=f"a GPU adds in any order in {said}\\nuse another layer there"):
                bits.check(jax.grad(loss), x, i)
        else:
            bits.check(jax.grad(loss), x, i)


@pytest.mark.parametrize("name, size", [("bireal_tiny", 8), pytest.param("bireal18", 32, marks=pytest.mark.slow)])
def test_a_step_of_ours_has_nothing_of_the_kind(name, size, a_gpu, monkeypatch):
    fields = {"model.name": name, "deterministic": True, "batch_size": 32, "data.image_size": size}
    fields["data.name"] = "digits" if size == 8 else "cifar10"
    source = dataclasses.replace(data.stand_in(fields["data.name"], size), train=range(64))
    plan = Plan(small(**fields), source)
    plan.check(1)
    monkeypatch.delenv("XLA_FLAGS")
    with pytest.raises(BadInput, match="takes XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=true"):
        plan.check(1)


def test_the_flags_are_set_before_jax_starts_and_what_was_chosen_goes_with_the_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_some=1")
    monkeypatch.setattr(bits, "wanted", lambda: True)
    work = tmp_path / "w"
    main.repeat(small(), work)
    assert os.environ["XLA_FLAGS"] == "--xla_some=1", "no run asked for it"
    main.repeat(small(deterministic=True), None)
    assert os.environ["XLA_FLAGS"] == "--xla_some=1 --xla_gpu_exclude_nondeterministic_ops=true"
    main.repeat(small(deterministic=True), work)
    new, kept = work / bits.NEW, work / bits.KEPT
    assert os.environ["XLA_FLAGS"].split()[2:] == [f"--xla_gpu_dump_autotune_results_to={new}"]
    bits.keep(work)
    assert not kept.exists()
    new.write_text("results: 1")
    bits.keep(work)
    new.write_text("resu")  # the next start is killed while it compiles
    assert kept.read_text() == "results: 1"
    monkeypatch.setenv("XLA_FLAGS", "")
    main.repeat(small(deterministic=True), work)
    assert f"--xla_gpu_load_autotune_results_from={kept}" in os.environ["XLA_FLAGS"].split()

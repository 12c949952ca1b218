"""One training step as a pure function of (state, batch), and the state that it maps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from bireal_jax import metrics, optim, parallel
from bireal_jax.data import Source
from bireal_jax.evaluate import normalize


@flax.struct.dataclass
class State:
    """All that a training step changes, and all that a checkpoint holds. A pytree without a device axis.

    Attributes:
      step: int32 [], steps done in this stage.
      params, batch_stats: the model's variables.
      opt_state: of the optax transformation.
      rng: uint32 [2], key data for steps that need random numbers. None of today's models draws any.
      ema: moving average of {"params", "batch_stats"}, or {} if it is off.
      window: sums of the metrics since they were last logged.
      signs: the packed signs of the latent weights when they were last logged, for the flip rate.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    rng: jax.Array
    ema: Any
    window: dict[str, jax.Array]
    signs: list[jax.Array]

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to evaluate, to ship and to start the next stage from: the moving average, if there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}

    def trees(self) -> dict[str, Any]:
        """The parts of a checkpoint: `variables`, and what else it takes to resume."""
        rest = {
            "step": self.step,
            "opt_state": self.opt_state,
            "rng": self.rng,
            "window": self.window,
            "signs": self.signs,
        }
        raw = {"raw": {"params": self.params, "batch_stats": self.batch_stats}} if self.ema else {}
        return {"variables": self.variables, "rest": rest | raw}

    @classmethod
    def from_trees(cls, trees: dict[str, Any]) -> "State":
        """The inverse of `trees`."""
        rest = dict(trees["rest"])
        raw = rest.pop("raw", None)
        return cls(**(raw or trees["variables"]), ema=trees["variables"] if raw else {}, **rest)


def make_state(variables: Any, tx: optax.GradientTransformation, seed: int, ema: bool, dtype: Any) -> State:
    """The state before the first step. `dtype`: of the losses."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    return State(
        step=jnp.zeros((), jnp.int32), params=params, batch_stats=batch_stats, opt_state=tx.init(params),
        rng=jax.random.key_data(jax.random.key(seed)), ema=jax.tree.map(jnp.copy, dict(variables)) if ema else {},
        window={name: jnp.zeros((), dtype) for name in ("loss", "top1", "top5", "seen")},
        signs=[metrics.pack_signs(w) for w in optim.latents(params)],
    )  # fmt: skip


def make_train_step(
    model: nn.Module, loss: Callable, tx: optax.GradientTransformation, source: Source, ema_decay: float = 0.0
) -> Callable:
    """(state, batch) -> (state, loss), to be pmapped.

    Args:
      model: applied with train=True; its batch statistics are averaged over the devices.
      loss: (logits, labels) -> [n].
      tx: the optimizer.
      source: whose mean and std normalize the images.
      ema_decay: of the moving average of the variables; 0 for none.
    """

    def step(state, batch):
        images = normalize(batch["image"], source, model.dtype)

        def objective(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            values = loss(logits, batch["label"])
            return jnp.mean(values), (logits, values, updated["batch_stats"])

        (_, (logits, values, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        grads, batch_stats = lax.pmean((grads, batch_stats), parallel.AXIS)
        sums = lax.psum(metrics.sums(logits, batch["label"], values, batch["mask"]), parallel.AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = (
            optax.incremental_update({"params": params, "batch_stats": batch_stats}, state.ema, 1 - ema_decay)
            if ema_decay
            else {}
        )
        state = dataclasses.replace(
            state, step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema,
            window=jax.tree.map(jnp.add, state.window, sums),
        )  # fmt: skip
        return state, sums["loss"] / sums["seen"]

    return step


def close_window(state: State) -> tuple[State, dict[str, jax.Array], jax.Array]:
    """(state with an empty window, the sums of the old one, how many binary weights flipped since)."""
    signs = [metrics.pack_signs(w) for w in optim.latents(state.params)]
    flips = sum((metrics.flipped(a, b) for a, b in zip(state.signs, signs, strict=True)), jnp.zeros((), jnp.int32))
    empty = jax.tree.map(jnp.zeros_like, state.window)
    return dataclasses.replace(state, window=empty, signs=signs), state.window, flips

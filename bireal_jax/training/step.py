"""One training step as a pure function of (state, batch), and the state that it maps."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from bireal_jax import build
from bireal_jax import config as config_lib
from bireal_jax.binary import losses
from bireal_jax.binary.layers import CONV
from bireal_jax.data import Source
from bireal_jax.data.normalize import normalize
from bireal_jax.errors import BadInput
from bireal_jax.pixels import listing
from bireal_jax.running import bits, metrics, parallel
from bireal_jax.training import bop, division, flat, optim
from bireal_jax.training import teacher as teacher_lib
from bireal_jax.training.evaluate import make_eval_step


@flax.struct.dataclass
class State:
    """All that a training step changes, and all that a checkpoint holds. A pytree without a device axis.

    Attributes:
      step: int32 [], steps done in this stage.
      params, batch_stats: the model's variables.
      opt_state: of the optax transformation.
      rng: uint32 [2], key data for steps that need random numbers. Supernets draw the genes of a batch.
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


def make_state(
    variables: Any, tx: optax.GradientTransformation, seed: int, ema: bool, dtype: Any,
    task: metrics.Task = metrics.CLASSES,
) -> State:  # fmt: skip
    """The state before the first step. `dtype`: of the losses."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    return State(
        step=jnp.zeros((), jnp.int32), params=params, batch_stats=batch_stats, opt_state=tx.init(params),
        rng=jax.random.key_data(jax.random.key(seed)), ema=jax.tree.map(jnp.copy, dict(variables)) if ema else {},
        window={name: jnp.zeros((), dtype) for name in (*task.names, "log_flips")},
        signs=[metrics.pack_signs(w) for w in optim.latents(params)],
    )  # fmt: skip


def make_train_step(
    model: nn.Module,
    loss: Callable,
    tx: optax.GradientTransformation,
    source: Source,
    ema_decay: float = 0.0,
    total_steps: int = 1,
    teacher: nn.Module | None = None,
    parts: int = 1,
    replica: int = 0,
    remat: bool = False,
    teacher_source: Source | None = None,
    form: flat.Form = flat.APART,
) -> parallel.Step:
    """(state, batch) -> (state, loss), to be pmapped; with a teacher (state, batch, its variables).

    Args:
      model: applied with train=True; its batch statistics are averaged over the parts and devices.
      loss: (logits, labels) -> [n], with a teacher (logits, its logits, labels) -> [n].
      tx: the optimizer.
      source: whose mean and std normalize the images, and whose labels say what is summed.
      ema_decay: of the moving average of the variables; 0 for none.
      total_steps: length of the stage, from which binarizers that change with it know how far it is.
      teacher: applied in evaluation mode to the same images.
      parts, replica: how a batch is divided, as of `parallel.Step`.
      remat: keep only what convolutions give for the backward pass, which computes the rest again.
      teacher_source: whose mean and std normalize the images for the teacher; None: those of `source`.
      form: in which the state comes and goes; `tx` is of such parameters.
    """
    task = metrics.task(source.depth_range, source.num_classes)

    def part(state, batch, teacher_variables: Any = None):
        """What some images contribute: (gradients, batch statistics, sums)."""
        state = form.apart(state)
        progress = state.step.astype(jnp.promote_types(model.dtype, jnp.float32)) / total_steps
        images = normalize(batch["image"], source, model.dtype)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)  # the same for all
        targets = [batch["label"]]
        if teacher is not None:
            seen = normalize(batch["image"], teacher_source or source, teacher.dtype)
            targets.insert(0, teacher.apply(teacher_variables, seen))

        def objective(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(
                variables, images, train=True, progress=progress, mutable=["batch_stats"], rngs={"genes": key}
            )
            values = loss(logits, *targets)
            return jnp.mean(values), (task.sums(logits, batch["label"], values, batch["mask"]), updated["batch_stats"])

        if remat:
            objective = jax.checkpoint(objective, policy=jax.checkpoint_policies.save_only_these_names(CONV))
        (_, (sums, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        return form.flat((grads, batch_stats, sums))

    def finish(state, total, count):
        *means, sums = total
        grads, batch_stats = jax.tree.map(lambda v: v / count, means)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        log_flips = metrics.log_flip_ratio(optim.latents(state.params), optim.latents(params))
        sums["log_flips"] = (log_flips * sums["seen"]).astype(sums["seen"].dtype)  # a mean over examples, as the others
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

    return parallel.Step(part, finish, parts, replica)


def close_window(state: State) -> tuple[State, dict[str, jax.Array], jax.Array]:
    """(state with an empty window, the sums of the old one, how many binary weights flipped since)."""
    signs = [metrics.pack_signs(w) for w in optim.latents(state.params)]
    flips = sum((metrics.flipped(a, b) for a, b in zip(state.signs, signs, strict=True)), jnp.zeros((), jnp.int32))
    empty = jax.tree.map(jnp.zeros_like, state.window)
    return dataclasses.replace(state, window=empty, signs=signs), state.window, flips


def _check_binary(binary, weight, latent_init):
    """Weights without latent ones need an optimizer of their own, and the other way round."""
    if binary and weight != "direct":
        raise BadInput(
            f"optim.binary={binary!r} trains weights that have no latent ones, but config.model.weight is {weight!r}\n"
            "set it to 'direct', and config.model.latent_init to 'signs'; in a recipe with stages, in the stage"
        )
    if not binary and weight == "direct":
        raise BadInput(
            "config.model.weight='direct' has no latent weights, which optim.binary='bop' alone can train\n"
            "set config.optim.binary, or another config.model.weight such as 'released'"
        )
    if not binary and latent_init == "signs":
        raise BadInput(
            "config.model.latent_init='signs' is for optim.binary: latent weights of ±1 hardly ever change their sign\n"
            "set it to another one such as 'he'"
        )


class Plan:
    """What the config of one stage fixes: data, network, durations, and its steps as pure functions.

    Attributes:
      source, task, model, shapes: the data set, what its labels are, the module, and the shapes of its variables.
      total, log_every, eval_every, save_every: in steps.
      rate, tx: learning rate by the step, and the optimizer.
      train_step, eval_step: from `make_train_step` and `evaluate.make_eval_step`.
      form, loop_step: how the steps of a call keep the state, and one that takes it so.
      loading: arguments of the functions of `batching`.
      latents: how many binary weights there are, 0 while they are real-valued.
      teacher, teacher_shapes, teacher_source: the module that a loss asks, the shapes of its variables, and the data
        set as it sees it; None for other losses.

    Raises:
      BadInput: the config, or what it points to, cannot work.
    """

    def __init__(self, config: ConfigDict, source: Source | None = None):
        self.config, c = config, config.optim
        self.source = source = source or build.source(config)
        build.check_training(config, source)
        self.model, self.shapes = build.model(config, source)
        self.total, self.log_every, self.eval_every, self.save_every, warmup = (
            config_lib.steps(config, prefix, len(source.train))
            for prefix in ("total", "log", "eval", "save", "optim.warmup")
        )
        epoch_steps = len(source.train) / config.batch_size
        self.rate = optim.schedule(c.schedule, c.lr, self.total, epoch_steps, c.milestones, warmup, c.lr_end)
        _check_binary(c.binary, config.model.weight, config.model.latent_init)
        make_tx = partial(
            optim.make,
            c.name,
            self.rate,
            weight_decay=c.weight_decay,
            decay_on=c.decay_on,
            binary_lr=c.binary_lr,
            latent_clip=c.latent_clip,
            frozen=c.frozen,
            gradient_floor=c.gradient_floor,
            silent_decay=c.silent_decay,
            binary=bop.make(c.binary, **c.bop, total_steps=self.total, epoch_steps=epoch_steps) if c.binary else None,
        )
        self.tx = make_tx(params=self.shapes["params"])
        self.form = flat.form(c, self.shapes)
        self.task = metrics.task(source.depth_range, source.num_classes)
        asks = config.loss in losses.DISTILLED
        taught = teacher_lib.network(config, source) if asks else (None, None, None)
        self.teacher, self.teacher_shapes, self.teacher_source = taught
        loss = losses.get(config.loss, config.label_smoothing, config.teacher.temperature, config.teacher.share)
        replica = config.batch_size // (division.REPLICAS * config.accumulate) if config.deterministic else 0
        make_step = lambda tx, form: make_train_step(  # noqa: E731
            self.model, loss, tx, source, config.ema_decay, self.total, self.teacher,
            config.accumulate, replica, config.remat, self.teacher_source, form,
        )  # fmt: skip
        self.train_step = make_step(self.tx, flat.APART)
        self.loop_step = make_step(make_tx(params=jax.eval_shape(self.form.flat, self.shapes["params"])), self.form)
        self.eval_step = make_eval_step(self.model, losses.evaluation(config.loss), source, replica)
        self.loading = {"threads": config.data.threads, "workers": config.data.workers}
        self.latents = 0 if config.model.weight == "real" else optim.count_latents(self.shapes["params"])

    def check(self, devices: int) -> None:
        """Raises BadInput where so many devices would train on one image twice, or batch norms on one value, or could
        not compute the same bits again that the config asks for."""
        size, count = self.config.batch_size, len(self.source.train)
        taught = self.source.num_classes - len(self.source.lacking(self.source.train))
        if taught < 2 and not self.source.depth_range:
            place = self.config.data.dir and f": config.data.dir={self.config.data.dir}"
            left_out = f"\n{listing.note(self.source.left_out)}" if self.source.left_out else ""
            raise BadInput(
                f"the training images of {self.config.data.name} are of one class, and so there is nothing to learn"
                f"{place}\n"
                f"put images of another class beside them, each class in a folder of its own{left_out}"
            )
        if size > count:
            raise BadInput(
                f"config.batch_size={size} is more than the {count:,} training images of {self.config.data.name}, so "
                f"that the same image would come twice in a batch\nuse {count} or fewer"
            )
        division.check_statistics(self.config, self.model, self.source, devices)
        if self.config.deterministic:
            state = jax.eval_shape(partial(self.fresh, seed=0), self.shapes)
            frozen = () if self.teacher is None else (self.teacher_shapes,)
            bits.check(self.train_step.part, state, self._replica(), *frozen)

    def _replica(self):
        """Shapes of the images that a logical replica sees together."""
        n, label = self.train_step.replica, np.float32 if self.source.depth_range else np.int32
        each = {
            "image": (self.source.image_shape, np.uint8),
            "label": (self.source.label_shape, label),
            "mask": ((), bool),
        }
        return {name: jax.ShapeDtypeStruct((n, *shape), dtype) for name, (shape, dtype) in each.items()}

    def notes(self) -> list[str]:
        """What can be, and is hardly meant, in a line each."""
        c, found, epochs = self.config.optim, [], self.total * self.config.batch_size / len(self.source.train)
        late = [m for m in c.milestones if m >= epochs]
        if c.milestones and c.schedule != "steps":
            found.append(f"config.optim.milestones are of the schedule 'steps', and this is {c.schedule!r}")
        elif late:
            found.append(f"config.optim.milestones: {late[0]:g} is not reached in {epochs:.4g} epochs")
        if c.schedule == "steps" and not c.milestones:
            found.append("config.optim.schedule is 'steps', and without milestones the rate does not fall")
        left = self.config.ema_decay**self.total
        if left > 0.5:
            found.append(
                f"config.ema_decay={self.config.ema_decay:g}: after {self.total} steps the average that is evaluated "
                f"is {left:.0%} what the training began with"
            )
        return [f"note: {line}" for line in found]

    def fresh(self, variables: Any, seed: Any) -> State:
        """The state before the first step."""
        dtype = jnp.promote_types(self.model.dtype, jnp.float32)
        return make_state(variables, self.tx, seed, self.config.ema_decay > 0, dtype, self.task)

    def flip_rates(self, totals: dict[str, Any], flips: Any) -> dict[str, Any]:
        """Of what `close_window` gave: flipped, the share of binary weights whose sign is another than at the last log;
        log_flips, log(flips / n + e^-9) of one step, averaged over the steps. {} while the weights are real-valued.
        """
        if not self.latents:
            return {}
        log_flips = np.asarray(totals["log_flips"]) / np.asarray(totals["seen"])
        return {"flipped": np.asarray(flips) / self.latents, "log_flips": log_flips}

    def redrawn(self, variables: Any, seed: int) -> Any:
        """`variables` with latent weights drawn anew."""
        return jax.tree_util.tree_map_with_path(
            lambda path, old, new: np.asarray(new) if path[-1].key == "latent" else old, variables, self.initial(seed)
        )

    def initial(self, seed: int) -> Any:
        """Variables drawn anew."""
        # An initializer is compiled for every layer and runs once: unoptimized, that takes 1 s instead of 9.
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(self.model.init, compiler_options=quick)(jax.random.key(seed), build.blank(self.source))


def teacher_arguments(plans: Sequence[Plan]) -> tuple[Any, ...]:
    """What a train step takes behind state and batch where its stage has a teacher: the variables of the teacher.

    One teacher serves all stages, so it is read once. () where none of them asks one.

    Raises:
      BadInput: as `teacher.variables`.
    """
    asking = [plan for plan in plans if plan.teacher is not None]
    return (teacher_lib.variables(asking[0].config, asking[0].teacher_shapes),) if asking else ()

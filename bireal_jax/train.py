"""The training loop: one loop over stages, and within a stage one over steps."""

import collections
import contextlib
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bireal_jax import checkpoint, data, importers, losses, models, optim, parallel, progress, workdir
from bireal_jax import config as config_lib
from bireal_jax.data import batching
from bireal_jax.errors import BadInput
from bireal_jax.evaluate import evaluate, make_eval_step
from bireal_jax.metrics import means
from bireal_jax.step import State, close_window, make_state, make_train_step


def run(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Trains all stages, from wherever an earlier start of the same run was cut off.

    Args:
      config: a recipe, as `config.default()` fills it.
      directory: the workdir.

    Returns:
      What is in result.json: the final metrics, the best top-1 and its step.

    Raises:
      BadInput: the config or what it points to cannot work; before anything is compiled, where possible.
    """
    config_lib.validate(config)
    stages, offset = [], 0
    for i, stage in enumerate(config_lib.stages(config)):
        stages.append(Stage(i, config_lib.stage_name(config, i), stage, make_source(stage), directory, offset))
        offset += stages[-1].total
    finished = workdir.result(directory)
    workdir.claim(directory, config)
    if finished:
        progress.say(f"{directory} is finished: top-1 {finished['top1']:.2f} %. Another --workdir trains again.")
        return finished
    variables, results = None, []
    for stage in stages:
        variables, result = stage.run(variables)
        results.append(result)
    final = results[-1] | ({"stages": results} if len(results) > 1 else {})
    if jax.process_index() == 0:
        workdir.write(directory / "result.json", json.dumps(final, indent=1) + "\n")
    progress.say(
        f"test top-1 {final['top1']:.2f} %  (best {final['best_top1']:.2f} % at step {final['best_step']})  {directory}"
    )
    return final


class Stage:
    """One stage of a run: what its config fixes, and the loop.

    Args:
      index, name: which stage, and what it is called.
      config: of this stage, overrides applied.
      source: its data set.
      directory: the workdir.
      offset: steps of all earlier stages.
    """

    def __init__(self, index: int, name: str, config: ConfigDict, source: data.Source, directory: Path, offset: int):
        self.index, self.name, self.config, self.source = index, name, config, source
        self.directory, self.offset = directory, offset
        num_train = len(source.train)
        self.total, self.log_every, self.eval_every, self.save_every, warmup = (
            config_lib.steps(config, prefix, num_train) for prefix in ("total", "log", "eval", "save", "optim.warmup")
        )
        self.model = make_model(config, source)
        self.shapes = jax.eval_shape(self.model.init, jax.random.key(0), _blank(source))
        self.rate = optim.schedule(
            config.optim.schedule,
            config.optim.lr,
            self.total,
            num_train / config.batch_size,
            config.optim.milestones,
            warmup,
        )
        self.tx = optim.make(
            config.optim.name, self.rate, self.shapes["params"], config.optim.weight_decay, config.optim.decay_on
        )
        loss = partial(losses.get(config.loss), label_smoothing=config.label_smoothing)
        step = make_train_step(self.model, loss, self.tx, source, config.ema_decay)
        self.step = parallel.pmap(step, donate=True)
        self.close_window = parallel.on_all(close_window, donate=True)
        self.eval_step = parallel.pmap(make_eval_step(self.model, losses.get(config.loss), source))
        self.loading = {"threads": config.data.threads, "workers": config.data.workers}
        self.latents = optim.count_latents(self.shapes["params"])

    def run(self, variables: Any) -> tuple[Any, dict[str, Any]]:
        """Trains from the newest sound checkpoint of this stage, or else from `variables`, or else from the config.

        Args:
          variables: of the stage before, or None.

        Returns:
          (variables at the end, result).
        """
        place = self.directory / f"stage_{self.index}" / "checkpoints"
        with checkpoint.Checkpoints(place, self.config.keep_last) as self.checkpoints:
            found = self.checkpoints.restore_latest(jax.eval_shape(self._fresh, self.shapes).trees())
            if found:
                state = State.from_trees(found[1])
                progress.say(f"{self.name}: resuming from step {found[0]} of {self.total}")
            else:
                state = jax.jit(self._fresh)(self._initial(variables))
            start = int(state.step)
            state = parallel.replicate(state)
            with (
                workdir.Log(self.directory, self.index, start, self.offset) as self.log,
                progress.Bar(self.name, start, self.total) as self.bar,
            ):
                state = self._loop(state, start)
            self.checkpoints.wait()
            final, best = self.checkpoints.metrics(self.total), self.checkpoints.best_step()
            assert final and best, "the last step is evaluated and saved"
            scores = self.checkpoints.metrics(best)
            assert scores
            result = {"steps": self.total, **final, "best_step": best, "best_top1": scores["top1"]}
        return parallel.fetch(state.variables), result

    def _fresh(self, variables):
        dtype = jnp.promote_types(self.model.dtype, jnp.float32)
        return make_state(variables, self.tx, self.config.seed, self.config.ema_decay > 0, dtype)

    def _initial(self, variables):
        if variables is not None:
            return checkpoint.merge(variables, self.shapes, f"stage {self.name!r}: the network of the stage before")
        if self.config.init_from:
            return load_variables(self.config, self.shapes)
        # An initializer is compiled for every layer and runs once: unoptimized, that takes 1 s instead of 9.
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(self.model.init, compiler_options=quick)(jax.random.key(self.config.seed), _blank(self.source))

    def _loop(self, state, start):
        seed = int(np.random.SeedSequence([self.config.seed, self.index]).generate_state(1)[0])
        batches = batching.train_batches(
            self.source, self.config.batch_size, seed, start, devices=jax.local_device_count(),
            process=jax.process_index(), processes=jax.process_count(), **self.loading,
        )  # fmt: skip
        batches = parallel.prefetch(batches)
        under_way = collections.deque()
        clock = Clock(self.config.batch_size)
        for step in range(start + 1, self.total + 1):
            last = step == self.total
            self._profile(step - start)
            with clock.waiting():
                batch = next(batches)
            state, loss = self.step(state, batch)
            if step == start + 1:  # it compiled; the figures begin here
                jax.block_until_ready(loss)
                clock.restart()
                self.bar.restart(step)
            under_way.append(loss)
            if len(under_way) > 2:  # no further ahead of the device, or batches pile up
                jax.block_until_ready(under_way.popleft())
            clock.steps += 1
            self.bar.advance(step)
            if last or (self.log_every and step % self.log_every == 0):
                state = self._write_log(state, step, clock)
            scores = None
            if last or (self.eval_every and step % self.eval_every == 0):
                scores = self._evaluate(state, step)
            if scores or (self.save_every and step % self.save_every == 0):
                self.checkpoints.save(step, parallel.fetch(state.trees()), scores)
            if scores:
                clock.restart()
        return state

    def _write_log(self, state, step, clock):
        """Logs the window and empties it."""
        state, totals, flips = self.close_window(state)
        values = means(totals) | {"learning_rate": float(self.rate(step - 1))}
        if self.latents:
            values["flipped"] = int(flips) / self.latents
        timing = clock.read()
        self.log.write(step, "train", values, timing)
        self.bar.line(step, "train", values, timing)
        return state

    def _evaluate(self, state, step):
        scores = evaluate(self.eval_step, state.variables, self.source, self.config.batch_size, **self.loading)
        self.log.write(step, "eval", scores)
        self.bar.line(step, "eval", scores)
        return scores

    def _profile(self, done):
        """Traces profile_steps steps from the 10th after the start on, when compilation and warm-up are over."""
        if self.config.profile_steps and jax.process_index() == 0:
            if done == 10:
                jax.profiler.start_trace(str(self.directory / "profile"))
            if done == 10 + self.config.profile_steps:
                jax.profiler.stop_trace()


def run_eval(config: ConfigDict, directory: Path) -> dict[str, float]:
    """Evaluates config.init_from, or else the best checkpoint of the workdir, with the config of the last stage.

    Returns:
      The metrics, which eval.json in the workdir holds as well.

    Raises:
      BadInput: the config, the data set or the weights cannot be used.
    """
    config_lib.validate(config)
    config = list(config_lib.stages(config))[-1]
    source = make_source(config)
    model = make_model(config, source)
    shapes = jax.eval_shape(model.init, jax.random.key(0), _blank(source))
    variables = load_variables(config, shapes) if config.init_from else best_variables(directory, shapes)
    step = parallel.pmap(make_eval_step(model, losses.get(config.loss), source))
    loading = {"threads": config.data.threads, "workers": config.data.workers}
    scores = evaluate(step, parallel.replicate(variables), source, config.batch_size, **loading)
    if jax.process_index() == 0:
        workdir.write(directory / "eval.json", json.dumps(scores, indent=1) + "\n")
    progress.say(
        f"test top-1 {scores['top1']:.2f} %  top-5 {scores['top5']:.2f} %  loss {scores['loss']:.4f}  "
        f"({len(source.eval)} images)"
    )
    return scores


class Clock:
    """Images per second, and the share of the time spent waiting for input, since it was last read."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.restart()

    def restart(self):
        """Forgets what was before, such as an evaluation."""
        self.steps, self.waited, self.began = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self):
        """Time in here is waiting for input."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def read(self) -> dict[str, float]:
        """The figures; starts anew."""
        seconds = time.monotonic() - self.began
        figures = {"images_per_second": self.steps * self.batch_size / seconds, "input_wait": self.waited / seconds}
        self.restart()
        return figures


def make_source(config: ConfigDict) -> data.Source:
    """The data set of a config. Raises BadInput if it is not there or the batch does not divide over the devices."""
    batching.check_divisible(config.batch_size, jax.device_count())
    return data.build(config.data.name, config.data.dir, config.data.image_size, config.data.resize)


def make_model(config: ConfigDict, source: data.Source) -> nn.Module:
    """The model of a config for a data set. Raises BadInput for unknown names and images that are too small for it."""
    c = config.model
    model = models.build(
        c.name, source.num_classes, jnp.dtype(c.dtype), act=c.act, weight=c.weight, latent_init=c.latent_init,
        bn_axis=parallel.AXIS if c.sync_bn else None,
    )  # fmt: skip
    if min(source.image_shape[:2]) < model.min_size:
        raise BadInput(
            f"images of {source.image_shape[0]} pixels are too small for {c.name}, "
            f"which divides the size by {model.min_size}\n"
            f"use config.data.image_size of {model.min_size} or more, or a smaller model such as bireal_tiny"
        )
    return model


def load_variables(config: ConfigDict, shapes: Any) -> Any:
    """The variables that config.init_from names: an .npz of the authors' names, or the best checkpoint of a workdir.

    Raises:
      BadInput: nothing there, or not of this model.
    """
    path = Path(config.init_from)
    if path.suffix == ".npz":
        return checkpoint.merge(importers.from_torch(config.model.name, importers.read_npz(path)), shapes, str(path))
    return best_variables(path, shapes)


def best_variables(directory: Path, shapes: Any) -> Any:
    """The variables of the best checkpoint of a workdir's last stage.

    Raises:
      BadInput: there is none, it is damaged, or it is not of this model.
    """
    places = sorted(directory.glob("stage_*/checkpoints"), key=lambda p: int(p.parent.name.removeprefix("stage_")))
    for place in reversed(places):
        with checkpoint.Checkpoints(place) as checkpoints:
            if checkpoints.steps():
                step = checkpoints.best_step() or checkpoints.steps()[-1]
                try:
                    return checkpoints.restore(step, {"variables": shapes})["variables"]
                except checkpoint.Damaged as error:
                    raise BadInput(f"damaged checkpoint: {error}") from None
    raise BadInput(
        f"no checkpoint in {directory}; train first (--mode=train), or name weights with --config.init_from="
    )


def _blank(source):
    return jnp.zeros((1, *source.image_shape))

"""The training loop: one loop over stages, and within a stage one over steps."""

import collections
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bireal_jax import build, checkpoint, losses, parallel, progress, workdir
from bireal_jax import config as config_lib
from bireal_jax.data import batching
from bireal_jax.errors import BadInput
from bireal_jax.evaluate import evaluate, make_eval_step
from bireal_jax.metrics import means
from bireal_jax.step import Plan, State, close_window, teacher_arguments


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
    configs = build.stages(config)
    finished = workdir.finished(directory, config)
    if finished:
        progress.say(f"{directory} is finished: top-1 {finished['top1']:.2f} %. Another --workdir trains again.")
        return finished
    stages, offset = [], 0
    for i, stage in enumerate(configs):
        batching.check_divisible(stage.batch_size, jax.device_count())
        stages.append(Stage(i, config_lib.stage_name(config, i), stage, directory, offset))
        offset += stages[-1].total
    variables, results, teacher = None, [], parallel.replicate(teacher_arguments(stages))
    if config.init_from and not workdir.begun(directory):
        variables = build.variables(configs[0], stages[0].shapes)  # a mistake here must not claim the workdir
    with workdir.claim(directory, config, [stage.source for stage in stages]):
        for stage in stages:
            variables, result = stage.run(variables, teacher)
            results.append(result)
        final = results[-1] | ({"stages": results} if len(results) > 1 else {})
        if jax.process_index() == 0:
            workdir.write(directory / "result.json", json.dumps(final, indent=1) + "\n")
    best = f"best {final['best_top1']:.2f} % at step {final['best_step']}"
    progress.say(f"test top-1 {final['top1']:.2f} %  ({best})  {directory}")
    return final


def run_eval(config: ConfigDict, directory: Path) -> dict[str, float]:
    """Evaluates config.init_from, or else the best checkpoint of the workdir, with the config of the last stage.

    Returns:
      The metrics, which eval.json in the workdir holds as well.

    Raises:
      BadInput: the config, the data set or the weights cannot be used.
    """
    last = build.stages(config)[-1]
    source = build.source(last)
    model, shapes = build.model(last, source)
    if last.init_from:
        variables, origin = build.variables(last, shapes), last.init_from
    else:
        variables, origin = build.best_variables(directory, shapes)
        for change in workdir.changes(directory, config):
            progress.say(f"note: the run in {directory} had another config: {change}")
    step = parallel.pmap(make_eval_step(model, losses.evaluation(last.loss), source))
    loading = {"threads": last.data.threads, "workers": last.data.workers}
    scores = evaluate(step, parallel.replicate(variables), source, last.batch_size, **loading)
    if jax.process_index() == 0:
        workdir.write(directory / "eval.json", json.dumps(scores, indent=1) + "\n")
    figures = f"top-1 {scores['top1']:.2f} %  top-5 {scores['top5']:.2f} %  loss {scores['loss']:.4f}"
    progress.say(f"test {figures}  ({len(source.eval)} images)  {origin}")
    return scores


class Stage(Plan):
    """One stage of a run: what its config fixes, and the loop.

    Args:
      index, name: which stage, and what it is called.
      config: of this stage, overrides applied.
      directory: the workdir.
      offset: steps of all earlier stages.

    Raises:
      BadInput: the config, or what it points to, cannot work.
    """

    def __init__(self, index: int, name: str, config: ConfigDict, directory: Path, offset: int):
        super().__init__(config)
        self.index, self.name, self.directory, self.offset = index, name, directory, offset
        self.step = parallel.pmap(self.train_step, donate=True, more=int(self.teacher is not None))
        self.close_window = parallel.on_all(close_window, donate=True)
        self.mapped_eval_step = parallel.pmap(self.eval_step)

    def run(self, variables: Any, teacher: tuple[Any, ...] = ()) -> tuple[Any, dict[str, Any]]:
        """Trains from the newest sound checkpoint of this stage, or else from `variables`, or else from the config.

        Args:
          variables: of the stage before, or None.
          teacher: `teacher_arguments`, replicated.

        Returns:
          (variables at the end, result).
        """
        self.frozen = teacher if self.teacher is not None else ()
        place = self.directory / f"stage_{self.index}" / "checkpoints"
        with checkpoint.Checkpoints(place, self.config.keep_last) as self.checkpoints:
            found = self.checkpoints.restore_latest(jax.eval_shape(self._fresh, self.shapes).trees())
            state = State.from_trees(found[1]) if found else jax.jit(self._fresh)(self._initial(variables))
            start = int(state.step)
            if start < self.total:
                progress.say(self._headline(start))
                state = self._log_and_loop(state, start)
            self.checkpoints.wait()
            final, best = self.checkpoints.metrics(self.total), self.checkpoints.best_step()
            assert final and best, "the last step is evaluated and saved"
            scores = self.checkpoints.metrics(best)
            assert scores
            result = {"steps": self.total, **final, "best_step": best, "best_top1": scores["top1"]}
        return parallel.fetch(state.variables), result

    def _headline(self, start):
        train, test, classes = len(self.source.train), len(self.source.eval), self.source.num_classes
        begin = f"resuming from step {start} of {self.total:,}" if start else f"{self.total:,} steps"
        return (
            f"{self.name}: {self.config.model.name} on {train:,} training and {test:,} test images, {classes} classes\n"
            f"{begin}, {self.config.batch_size} images a step, {jax.device_count()} x {jax.devices()[0].device_kind}; "
            "compiling ..."
        )

    def _fresh(self, variables):
        return self.fresh(variables, self.config.seed)

    def _initial(self, variables):
        if variables is not None:
            found = checkpoint.merge(variables, self.shapes, f"stage {self.name!r}: the network of the stage before")
            again = self.index == 1 and self.config.reinit_step2
            return self.redrawn(found, self.config.seed) if again else found
        if self.config.init_from:
            return build.variables(self.config, self.shapes)
        return self.initial(self.config.seed)

    def _log_and_loop(self, state, start):
        with (
            workdir.Log(self.directory, self.index, start, self.offset) as self.log,
            progress.Bar(self.name, start, self.total) as self.bar,
            Profile(self.directory / "profile", self.config.profile_steps) as self.profile,
        ):
            return self._loop(parallel.replicate(state), start)

    def _loop(self, state, start):
        seed = batching.stage_seed(self.config.seed, self.index)
        batches = batching.train_batches(
            self.source, self.config.batch_size, seed, start, devices=jax.local_device_count(),
            process=jax.process_index(), processes=jax.process_count(), **self.loading,
        )  # fmt: skip
        batches, under_way, clock = (
            parallel.prefetch(batches),
            collections.deque(),
            progress.Clock(self.config.batch_size),
        )
        for step in range(start + 1, self.total + 1):
            last = step == self.total
            self.profile.before(step - start)
            with clock.waiting():
                batch = next(batches)
            state, loss = self.step(state, batch, *self.frozen)
            if step == start + 1:  # it compiled; the figures begin here
                jax.block_until_ready(loss)
                clock.restart()
                self.bar.restart(step)
            else:
                clock.steps += 1
            under_way.append(loss)
            if len(under_way) > 2:  # no further ahead of the device, or batches pile up
                jax.block_until_ready(under_way.popleft())
            self.bar.advance(step)
            if last or (self.log_every and step % self.log_every == 0):
                state = self._write_log(state, step, clock)
            scores = None
            if last or (self.eval_every and step % self.eval_every == 0):
                scores = self._evaluate(state, step)
            if scores or (self.save_every and step % self.save_every == 0):
                self._save(state, step, scores)
            if scores:
                clock.restart()
        return state

    def _write_log(self, state, step, clock):
        """Logs the window and empties it."""
        timing = clock.read()
        state, totals, flips = self.close_window(state)
        values = means(totals) | {"learning_rate": float(self.rate(step - 1))}
        self._stop_unless_finite(step, values["loss"])
        values |= {name: float(value) for name, value in self.flip_rates(totals, flips).items()}
        self.log.write(step, "train", values, timing)
        self.bar.line(step, "train", values, timing)
        return state

    def _save(self, state, step, scores):
        trees = parallel.fetch(state.trees())
        self._stop_unless_finite(step, *jax.tree.leaves(trees["variables"]))
        self.checkpoints.save(step, trees, scores)

    def _stop_unless_finite(self, step, *values):
        """Raises BadInput if a loss or a weight is not finite: no such checkpoint is ever written."""
        if all(np.isfinite(value).all() for value in values):
            return
        saved = self.checkpoints.steps()
        raise BadInput(
            f"{self.name}: at step {step} the loss or a weight is not finite (nan or inf)\n"
            f"the last checkpoint, of step {saved[-1] if saved else 0}, is from before; try a lower config.optim.lr "
            f"(it is {self.config.optim.lr:g}) with another --workdir"
        )

    def _evaluate(self, state, step):
        scores = evaluate(self.mapped_eval_step, state.variables, self.source, self.config.batch_size, **self.loading)
        self.log.write(step, "eval", scores)
        self.bar.line(step, "eval", scores)
        return scores


class Profile:
    """A trace of so many steps for TensorBoard, from the 10th after the start on, when warm-up is over.

    Written once for a workdir, on the first host alone.
    """

    def __init__(self, place: Path, steps: int):
        self.place, self.steps, self.running = (
            place,
            steps if jax.process_index() == 0 and not place.exists() else 0,
            False,
        )

    def __enter__(self):
        return self

    def before(self, done: int) -> None:
        """Step number `done` since the start is about to begin."""
        if self.steps and done == 10:
            jax.profiler.start_trace(str(self.place))
            self.running = True
        if self.running and done == 10 + self.steps:
            self.__exit__()

    def __exit__(self, *_):
        if self.running:
            jax.profiler.stop_trace()
            self.running = False

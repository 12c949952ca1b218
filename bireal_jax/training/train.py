"""The training loop: one loop over stages, and within a stage one over steps."""

import contextlib
import itertools
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bireal_jax import build, places, registered, used
from bireal_jax import config as config_lib
from bireal_jax.binary import losses
from bireal_jax.data import batching
from bireal_jax.data.normalize import normalize
from bireal_jax.errors import BadInput
from bireal_jax.importers import zoo
from bireal_jax.running import (
    adoption,
    bits,
    checkpoint,
    health,
    hosts,
    known,
    parallel,
    preempt,
    profile,
    progress,
    workdir,
)  # fmt: skip
from bireal_jax.running.metrics import task_of
from bireal_jax.training import calls, division, pictures
from bireal_jax.training.evaluate import chance, make_eval_step
from bireal_jax.training.step import Plan, State, close_window, teacher_arguments


def run(
    config: ConfigDict, directory: str | Path, signals: preempt.Signals | None = None, recipe: str = ""
) -> dict[str, Any]:
    """Trains all stages, from wherever an earlier start of the same run was cut off.

    Args:
      config: a recipe, as `config.default()` fills it.
      directory: the workdir.
      signals: says when to save and leave early; None for never.
      recipe: the file that `config` is from, of which those who use the run are told where it registers something.

    Returns:
      What is in result.json: the final metrics, the best top-1 (or RMSE) and its step.

    Raises:
      BadInput: the config or what it points to cannot work; before anything is compiled, where possible.
      preempt.Stopped: `signals` asked for it, and the state is saved.
    """
    directory = places.workdir(directory)
    configs = build.stages(config, directory)
    finished = workdir.finished(directory, config)
    if finished:
        on = f"Another --workdir trains again, or on: --config.init_from={directory}"
        progress.say(f"{directory} is finished: {_judged(finished)}. {on}")
        return finished
    stages, offset = [], 0
    for i, stage in enumerate(configs):
        division.part_size(stage, jax.device_count())
        stages.append(Stage(i, config_lib.stage_name(config, i), stage, directory, offset, signals))
        stages[-1].check(jax.device_count())
        offset += stages[-1].total
    variables, results, teacher = None, [], parallel.replicate(teacher_arguments(stages))
    if config.init_from and not workdir.begun(directory):
        # a mistake here must not claim the workdir
        variables = build.variables(configs[0], stages[0].shapes, stages[0].drawn, stages[0].source)
    for before, after in itertools.pairwise(stages):
        known.check_order(before.source, after.source, f"of stage {before.name!r}")
    with workdir.claim(directory, config, [stage.source for stage in stages], registered.fields(configs, recipe)):
        for stage in stages:
            variables, result = stage.run(variables, teacher)
            results.append(result)
        final = results[-1] | ({"stages": results} if len(results) > 1 else {})
        if jax.process_index() == 0:
            workdir.write(directory / "result.json", workdir.to_json(final, 1) + "\n")
    task = task_of(final)
    best = f"best {task.form.format(final['best_' + task.metric])} at step {final['best_step']}"
    progress.say(f"{stages[-1].source.split} {_judged(final)}  ({best})  {directory}")
    if note := chance(final.get("best_top1", 100.0), stages[-1].source):
        progress.say(note)
    return final


def _judged(scores):
    """What networks are compared by, in words: "top-1 99.44 %"."""
    task = task_of(scores)
    return f"{task.title} {task.form.format(scores[task.metric])}"


def run_eval(config: ConfigDict, directory: str | Path, given: Collection[str] | None = None) -> dict[str, float]:
    """Evaluates config.init_from, or else the best checkpoint of the workdir, as `used.weights` says.

    Returns:
      The metrics, which eval.json in the workdir holds as well, unless a network of the package was evaluated.

    Raises:
      BadInput: the config, the data set or the weights cannot be used.
    """
    directory = places.workdir(directory)
    use = used.weights(config, directory, given)
    last, source, model, variables, origin = use.config, use.source, use.model, use.variables, use.origin
    replica = division.part_size(last, jax.device_count()) if last.deterministic else 0
    step = make_eval_step(model, losses.evaluation(last.loss), source, replica)
    held, loading = calls.hold(source).get("eval"), {"threads": last.data.threads, "workers": last.data.workers}
    evaluation = calls.Evaluation(step, source, last.batch_size, calls.longest(last), held, **loading)
    scores = evaluation(parallel.replicate(variables))
    progress.say(f"{source.split} {task_of(scores).report.format(**scores)}  ({len(source.eval)} images)  {origin}")
    if note := chance(scores.get("top1", 100.0), source):
        progress.say(note)
    if jax.process_index() == 0 and not zoo.is_name(last.init_from):
        text = workdir.to_json(scores, 1) + "\n"
        try:
            workdir.write(directory / "eval.json", text)
            if source.depth_range:
                count = pictures.write(directory / "depth", _predictions(model, variables, source))
                progress.say(f"{directory / 'depth'}: {count} pictures: image, truth, prediction")
        except workdir.Unwritable as error:  # a run in an archive can be evaluated, too
            progress.say(f"note: {str(error).splitlines()[0]}; the result stands above alone")
    return scores


PICTURES = 8


def _predictions(model, variables, source):
    """(image, truth, prediction) of some images, evenly from the evaluation set."""
    apply = jax.jit(
        parallel.full_precision(lambda images: model.apply(variables, normalize(images, source, model.dtype)))
    )
    for i in np.linspace(0, len(source.eval) - 1, min(len(source.eval), PICTURES)).astype(int):
        example = source.prepare(source.eval[int(i)])
        yield example["image"], example["label"], np.asarray(apply(example["image"][None]), np.float32)[0, ..., 0]


class Stage(Plan):
    """One stage of a run: what its config fixes, and the loop.

    Args:
      index, name: which stage, and what it is called.
      config: of this stage, overrides applied.
      directory: the workdir.
      offset: steps of all earlier stages.
      signals: as of `run`.

    Raises:
      BadInput: the config, or what it points to, cannot work.
    """

    def __init__(
        self, index: int, name: str, config: ConfigDict, directory: Path, offset: int,
        signals: preempt.Signals | None = None,
    ):  # fmt: skip
        super().__init__(config)
        # who calls this as a library is not ended by a thread, either
        seconds, count = (config.watchdog_seconds, jax.process_count()) if signals else (0, 1)
        self.watch = hosts.Watch(directory and directory / "hosts", seconds, jax.process_index(), count)
        self.signals, self.several = signals or preempt.Signals(), jax.process_count() > 1
        self.index, self.name, self.directory, self.offset = index, name, directory, offset
        self.reports = health.Reports(self.train_step, config.skip_nonfinite)
        self.most = calls.longest(config)
        self.close_window = parallel.on_all(close_window, donate=True)

    def run(self, variables: Any, teacher: tuple[Any, ...] = ()) -> tuple[Any, dict[str, Any]]:
        """Trains from the newest sound checkpoint of this stage, or else from `variables`, or else from the config.

        Args:
          variables: of the stage before, or None.
          teacher: `teacher_arguments`, replicated.

        Returns:
          (variables at the end, result).
        """
        frozen = teacher if self.teacher is not None else ()
        place = self.directory / f"stage_{self.index}" / "checkpoints"
        self.signals.disposable = not self.several  # the stages before are on the disk
        with checkpoint.Checkpoints(place, self.config.keep_last) as self.checkpoints:
            found = self.checkpoints.restore_latest(jax.eval_shape(self._fresh, self.shapes).trees())
            state = State.from_trees(found[1]) if found else jax.jit(self._fresh)(self._initial(variables))
            start = int(state.step)
            self.signals.where = f"before step {start + 1:,} of {self.name}"
            if start < self.total or self._owes_evaluation(start):
                progress.say(self._headline(start))
                self._place(frozen)
                state = self._log_and_loop(state, start)
            self.checkpoints.wait()
            final, best = self.checkpoints.metrics(self.total), self.checkpoints.best_step()
            assert final and best, "the last step is evaluated and saved"
            scores = self.checkpoints.metrics(best)
            assert scores
            result = {"steps": self.total, **final, "best_step": best}
            result[f"best_{self.task.metric}"] = scores[self.task.metric]
        return parallel.fetch(state.variables), result

    def _place(self, frozen):
        """Puts the data set on the devices, if it can lie there; of it depends what a call is."""
        held = calls.hold(self.source)
        self.training = calls.Training(self, self.config.skip_nonfinite, self.most, held.get("train"), frozen)
        self.evaluation = calls.Evaluation(
            self.eval_step, self.source, self.config.batch_size, self.most, held.get("eval"), **self.loading
        )

    def _headline(self, start):
        train, judged = f"{len(self.source.train):,}", f"{len(self.source.eval):,} {self.source.split}"
        what = "depth maps" if self.source.depth_range else f"{self.source.num_classes} classes"
        begin = f"resuming from step {start} of {self.total:,}" if start else f"{self.total:,} steps"
        return "".join(f"{note}\n" for note in self.notes()) + (
            f"{self.name}: {self.config.model.name} on {train} training and {judged} images, {what}\n{self.source.note}"
            f"{begin}, {self.config.batch_size} images a step, {jax.device_count()} x {jax.devices()[0].device_kind}; "
            "compiling ..."
        )

    def _fresh(self, variables):
        return self.fresh(variables, self.config.seed)

    def _initial(self, variables):
        if variables is not None:
            what = f"stage {self.name!r}: the network of the stage before"
            found = adoption.adopt(variables, self.shapes, what, self.drawn, self.model, self.source)
            again = self.index == 1 and self.config.reinit_step2
            return self.redrawn(found, self.config.seed) if again else found
        if self.config.init_from:
            return build.variables(self.config, self.shapes, self.drawn, self.source)
        return self.drawn()

    def drawn(self) -> Any:
        """Variables drawn anew."""
        return self.initial(self.config.seed)

    def _log_and_loop(self, state, start):
        with (
            self.watch,
            workdir.Log(self.directory, self.index, start, self.offset) as self.log,
            progress.Bar(self.name, start, self.total) as self.bar,
            profile.Profile(self.directory / "profile", self.config.profile_steps) as self.profile,
        ):
            state = parallel.replicate(state)
            if self._owes_evaluation(start):
                self.checkpoints.add_metrics(start, self._evaluate(state, start))
            return self._loop(state, start)

    def _owes_evaluation(self, start):
        """Whether a signal cut off the evaluation of the step that is resumed from."""
        due = start == self.total or (self.eval_every and start % self.eval_every == 0)
        return start > 0 and due and self.checkpoints.metrics(start) is None

    def _loop(self, state, start):
        size, seed = self.config.batch_size, batching.stage_seed(self.config.seed, self.index)
        most, asked = self.training.most, lambda: self.signals.asked
        stops = partial(calls.ends, start, self.total, most, self.log_every, self.eval_every, self.save_every)
        inputs = self.training.inputs(self.source, size, seed, start, stops(), asked, **self.loading)
        with contextlib.closing(inputs):
            clock, done = progress.Clock(size), start
            for step in stops():
                if self.reports.asked if self.several else self.signals.asked:
                    self._leave(state, done)
                state = self._call(state, range(done + 1, step + 1), inputs, clock, first=done == start)
                done, last = step, step == self.total
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

    def _call(self, state, steps, inputs, clock, first):
        """Begins the steps of one call. The first one compiles, and the figures begin behind it."""
        if not first:
            self.watch.beat(steps[0] - 1)
        self.profile.before(len(steps))
        with clock.waiting():
            given = next(inputs)
        if self.several:
            given |= {"asked": np.full(jax.local_device_count(), self.signals.asked, np.int32)}
        state, report = self.training(state, given)
        self.reports.add(steps, partial(self.training.again, given), report)
        if first:
            jax.block_until_ready(report)
            self.signals.disposable = False
            clock.restart()
            self.bar.restart(steps[-1])
        else:
            clock.steps += len(steps)
        self._settle(state, ahead=2 if len(steps) == 1 else 1)  # no further ahead of the device, or batches pile up
        self.bar.advance(steps[-1])
        return state

    def _write_log(self, state, step, clock):
        """Logs the window and empties it."""
        self._settle(state)
        timing = clock.read()
        state, totals, flips = self.close_window(state)
        if not float(totals["seen"]):  # every step was skipped
            return state
        values = self.task.means(totals) | {"learning_rate": float(self.rate(step - 1))}
        values |= {name: float(value) for name, value in self.flip_rates(totals, flips).items()}
        self.log.write(step, "train", values, timing)
        self.bar.line(step, "train", values, timing)
        return state

    def _save(self, state, step, scores):
        self._settle(state)
        trees = parallel.fetch(state.trees())
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)):
            raise RuntimeError(f"step {step}: a number is not finite that the step let pass; nothing is saved")
        bits.keep(self.directory)
        self.checkpoints.save(step, trees, scores)

    def _settle(self, state, ahead=0):
        """Waits for steps under way. Raises BadInput if one was not finite: its update was withheld."""
        try:
            self.reports.settle(state, ahead)
        except health.NotFinite as error:
            saved = self.checkpoints.steps()
            wider = " or config.model.dtype=float32" if self.config.model.dtype == "bfloat16" else ""
            raise BadInput(
                f"{self.name}, {error}\nit was stopped before that update; the last checkpoint is of step "
                f"{saved[-1] if saved else 0}\ntry a lower config.optim.lr (it is {self.config.optim.lr:g}){wider} "
                "with another --workdir, or the same command with --config.skip_nonfinite=10"
            ) from None

    def _leave(self, state, step):
        """Saves `step`, if it is not saved yet, and raises Stopped."""
        self.checkpoints.wait()
        if step > 0 and step not in self.checkpoints.steps():
            self._save(state, step, None)
            self.checkpoints.wait()
        raise preempt.Stopped(f"stopped at step {step:,} of {self.total:,} of {self.name}, which is saved")

    def _evaluate(self, state, step):
        def before():
            self.watch.beat(step)
            if self.signals.asked and not self.several:
                self._leave(state, step)

        scores = self.evaluation(state.variables, before, lambda: self.signals.asked)
        self.log.write(step, "eval", scores)
        self.bar.line(step, "eval", scores)
        return scores

"""Checks without training: has a run all that it needs, and are its checkpoints what was written?"""

import contextlib
import dataclasses
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import PIL
from ml_collections import ConfigDict
from packaging.requirements import Requirement
from PIL import features

from bireal_jax import build, data, models, places, runtime
from bireal_jax.checks import seen, sizes, stand_in, versions
from bireal_jax.data import batching, held_out
from bireal_jax.data.source import Arrays, Examples, check_labels
from bireal_jax.errors import BadInput, first_line
from bireal_jax.running import checkpoint, health, parallel, preempt, progress, workdir
from bireal_jax.shipping import export
from bireal_jax.training import division
from bireal_jax.training.step import Plan, State, teacher_arguments

SAMPLE = 8  # images of each split that are decoded
MARGIN = 1.5  # XLA takes 1.4 times the outputs of all modules for bireal_tiny, on the CPU, 256 images of 32 pixels
PICTURE = "doctor.png"
SMALL = 32  # pixels, and this many or the least that the network takes are trained on


def run(config: ConfigDict, directory: str | Path) -> int:
    """Tries all that a training run will do, on a small scale, and says OK or FIX, with what mends it, for each.

    Args:
      config: the recipe.
      directory: the workdir. What is written there is removed again, but for a picture of what the run will see.

    Returns:
      How many things are to be mended.

    Raises:
      BadInput: a value of the config is out of its limits, so that nothing can be tried.
    """
    began, to_mend = time.monotonic(), 0
    visit = Visit(config, directory)
    for name, check in CHECKS.items():
        try:
            ok, said = True, check(visit)
        except Exception as error:  # the other checks go on, whatever it was
            known = isinstance(error, BadInput)
            ok, said = False, str(error) if known else f"{type(error).__name__}: {first_line(error)}"
            to_mend += 1
        progress.verdict(ok, name, "; ".join(said.splitlines()))
    progress.say(f"{len(CHECKS) - to_mend} OK, {to_mend} to mend, in {time.monotonic() - began:.0f} s")
    return to_mend


class Visit:
    """What the checks of one visit share. Each of them says what it found, or raises BadInput with what mends it."""

    def __init__(self, config: ConfigDict, directory: str | Path):
        self.config, self.directory = config, Path(directory)
        self.stages = build.stages(config, directory)
        self.last = self.stages[-1]
        # until the data set is found; steps and rates follow from the number of images
        self.source = dataclasses.replace(
            data.stand_in(self.last.data.name, self.last.data.image_size), train=range(512)
        )
        self.found = False
        self.plan: Plan | None = None
        self.state: Any = None
        self.seen: dict[str, Any] = {}  # the first batch of either split

    def versions(self) -> str:
        """Of the requirements of the package."""
        try:
            wanted = [Requirement(text) for text in metadata.requires("bireal-jax") or ()]
        except metadata.PackageNotFoundError:
            raise BadInput("bireal_jax is not installed\npip install -e . in its folder") from None
        bad = [str(r) for r in wanted if not r.marker and not _fits(r)]
        if bad:
            raise BadInput(f"missing or of another version: {', '.join(bad)}\npip install {' '.join(map(repr, bad))}")
        return versions.shown()

    def devices(self) -> str:
        """What JAX sees, and whether the batch divides."""
        devices = jax.devices()
        for hint, extra in (("/dev/nvidia0", "cuda"), ("/dev/accel0", "tpu")):
            if jax.default_backend() == "cpu" and Path(hint).exists() and not os.environ.get("JAX_PLATFORMS"):
                raise BadInput(f"JAX sees the CPU alone, and there is {hint}\npip install -e '.[{extra}]'")
        for stage in self.stages:
            division.part_size(stage, len(devices))
        each = self.last.batch_size // len(devices)
        return f"{len(devices)} x {devices[0].device_kind}, {each} images a step on each"

    def data_set(self) -> str:
        """Is it there, and what is it?"""
        source = build.source(self.last)
        build.check_training(self.last, source)
        self.source, self.found = source, True
        if workdir.begun(self.directory):
            sources = [source if stage is self.last else build.source(stage) for stage in self.stages]
            workdir.check(self.directory, self.config, sources)
        what = "depth maps" if source.depth_range else f"{source.num_classes} classes"
        judged = f"{len(source.eval):,} {source.split} images"
        return f"{self.last.data.name}: {len(source.train):,} training and {judged}, {what}\n{source.note}"

    def decoder(self) -> str:
        """A few images of both splits, as training and evaluation take them."""
        source = self.source
        if not self.found:
            raise BadInput("there is no data set to decode\nmend the line above first")
        self._draw()
        if isinstance(source.train, Arrays):
            return "not needed: the images lie in memory"
        rng, began, count = np.random.default_rng(0), time.monotonic(), 0
        assert source.augment
        augment = source.augment
        for examples, decode in ((source.train, lambda e: augment(e, rng)), (source.eval, source.prepare)):
            for i in np.linspace(0, len(examples) - 1, min(len(examples), SAMPLE)).astype(int):
                example = decode(examples[int(i)])
                count += 1
                if not source.depth_range:
                    check_labels(np.asarray(example["label"]), source.num_classes, f"image {i}")
        each = (time.monotonic() - began) / count * 1000
        turbo = " with libjpeg-turbo" if features.check("libjpeg_turbo") else ""
        return f"Pillow {PIL.__version__}{turbo}: {count} images, {each:.1f} ms each; all of them: --mode=data"

    @cached_property
    def plans(self) -> list[Plan]:
        """Of the stages; asked for once the data set was looked for."""
        return [Plan(stage, self.source) for stage in self.stages]

    def schedule(self) -> str:
        """Does every stage train something?"""
        if not self.found:
            raise BadInput("there is no data set to count steps on\nmend the line above first")
        for plan in self.plans:
            plan.check(jax.device_count())
        notes = [note for plan in self.plans for note in plan.notes()]
        return "; ".join([" + ".join(f"{plan.total:,}" for plan in self.plans) + " steps", *notes])

    def _draw(self):
        """The first batch of training, as the run will draw it, and one of evaluation, of all of its images.

        An evaluation goes through them in order, class by class in a folder: its first batch shows one class.
        """
        c, judged = self.last, cast(Examples, self.source.eval)
        mixed = np.random.default_rng(0).permutation(len(judged))[: c.batch_size]
        source = dataclasses.replace(self.source, eval=held_out.Part(judged, mixed))
        loading = {"devices": jax.local_device_count(), "threads": c.data.threads, "workers": c.data.workers}
        streams = {
            "training": lambda step, **more: batching.train_batches(
                source, c.batch_size, c.seed, step, **(loading | more)
            ),
            "evaluation": lambda step, **more: batching.eval_batches(source, c.batch_size, step, **(loading | more)),
        }
        for name, make in streams.items():
            with contextlib.closing(preempt.unbroken(make, 0, lambda: False)) as batches:
                self.seen[name] = next(batches)

    def pictures(self) -> str:
        """Those of these batches, in a file that stays, for a person to see whether crops and labels are right."""
        if not self.seen:
            raise BadInput("there are no images to show\nmend the line above first")
        path, made = self.directory / PICTURE, io.BytesIO()
        seen.sheet(self.source, self.seen).save(made, "PNG")
        try:
            places.write(path, made.getvalue())
        except OSError as error:
            raise workdir.unwritable(self.directory, error) from None
        return f"{path}: what training and evaluation see; look at it"

    def weights(self) -> str:
        """Those that the run starts from, and the teacher's."""
        first = self.plans[0]
        if self.config.init_from:
            fresh = partial(first.initial, 0)
            build.variables(self.stages[0], first.shapes, fresh, self.source if self.found else None)
        teacher_arguments(self.plans)
        named = [name for name in (self.config.init_from, self.config.teacher.weights) if name]
        said = f"{' and '.join(named)}: every array has its place" if named else "none to start from"
        seen = self.plans[-1].teacher_source
        own = seen is not None and (seen.mean, seen.std) != (self.source.mean, self.source.std)
        return f"{said}; the teacher sees images normalized by its own {seen.mean}, {seen.std}" if own else said

    def write_access(self) -> str:
        """Can the workdir be written, and does it belong to this config?"""
        workdir.finished(self.directory, self.config)  # or it belongs to another config
        with self._scratch() as place:
            workdir.write(place / "probe", "")
            with open(place / "lock", "w") as file:
                unlocked = workdir.hold(file, self.directory)
        said = [f"{self.directory} can be written", unlocked]
        if not jax.config.jax_compilation_cache_dir:  # pyrefly: ignore[missing-attribute]
            said += [
                "compiled steps are not kept, for want of a home directory; JAX_COMPILATION_CACHE_DIR names another"
            ]
        return "; ".join(filter(None, said))

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A directory on the file system of the workdir, which is there for a while."""
        there = self.directory.absolute()
        while not there.exists():
            there = there.parent
        try:
            place = Path(tempfile.mkdtemp(prefix=".doctor_", dir=there))
        except OSError as error:
            raise workdir.unwritable(there, error) from None
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def disk_space(self) -> str:
        """For the checkpoints that are there at a time, of all stages."""
        each = [sizes.bytes_of(sizes.template(plan).trees()) for plan in self.plans]
        needed = sum(each) * (self.config.keep_last + 2)  # the best one, and one that is being written
        with self._scratch() as place:
            free = shutil.disk_usage(place).free
        said = f"{sizes.size(free)} free at {self.directory}; checkpoints take up to {sizes.size(needed)}"
        if free < needed:
            raise BadInput(f"{said}\nfree some space, or --workdir=DIR on a larger disk (df -h lists them)")
        return said

    def memory(self) -> str:
        """For the state, its copy in a save, and what the backward pass keeps."""
        plan = self.plans[-1]
        each = self.last.batch_size // jax.device_count()
        state, maps = sizes.bytes_of(sizes.template(plan)), MARGIN * each * sizes.bytes_of(sizes.maps(plan))
        stats = jax.local_devices()[0].memory_stats() or {}
        limit = stats.get("bytes_limit")
        needed = 2 * state + maps if limit else 2 * state + maps * jax.local_device_count()
        free = limit or sizes.available()
        where = "on each device" if limit else "of the machine"
        said = (
            f"about {sizes.size(needed)} for the state and {each} images a device; {sizes.size(free)} {where} are free"
        )
        if needed > free:
            better = max(1, int(each * max(0, free - 2 * state) / maps)) * jax.device_count()
            raise BadInput(f"{said}\n--config.batch_size={better}, with a learning rate lower in proportion")
        return said

    def training_step(self) -> str:
        """One, on noise: a few images, no larger than they must be."""
        c, instead = stand_in.config_of(self.last, self.plans[-1])
        if c.teacher.weights:
            c.teacher.weights = "zeros"  # of no run: the images are not those that its run knew
        stride = Plan(c, self.source).model.total_stride
        size = min(c.data.image_size, -(-max(stride, SMALL) // stride) * stride)
        each = min(2, c.batch_size)
        shape = (size, size) if self.source.depth_range else ()
        source = dataclasses.replace(
            self.source, image_shape=(size, size, self.source.image_shape[-1]), label_shape=shape
        )
        plan = Plan(c, source)
        batch = stand_in.noise(source, jax.local_device_count(), each)
        teacher = (
            () if plan.teacher is None else (jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), plan.teacher_shapes),)
        )
        with stand_in.quick_compilation():
            state = jax.jit(partial(plan.fresh, seed=0))(plan.initial(0))
            step = parallel.pmap(health.guard(plan.train_step, 0), more=len(teacher))
            inputs = parallel.replicate(state), batch, *(parallel.replicate(t) for t in teacher)
            began = time.monotonic()
            state, (ok, _) = jax.block_until_ready(step(*inputs))
        if not ok:
            raise BadInput("a step on noise gives numbers that are not finite\ntry a lower --config.optim.lr")
        self.plan, self.state = plan, state
        whole = f"{self.last.batch_size} of {self.last.data.image_size}"
        took = time.monotonic() - began
        what = f"{batch['mask'].size} images of noise of {size} pixels (a run: {whole}){instead}"
        return f"{took:.1f} s with compilation, on {what}"

    def save_and_restore(self) -> str:
        """Of the state after that step, where the workdir lies."""
        trees = parallel.fetch(self._trained().trees())
        began = time.monotonic()
        with self._scratch() as place, checkpoint.Checkpoints(place / "checkpoints") as checkpoints:
            checkpoints.save(1, trees, None)
            checkpoints.wait()
            try:
                checkpoints.restore(1, trees)
            except checkpoint.Damaged as error:
                raise BadInput(
                    f"{error}\nuse --workdir=DIR on another disk: this one does not keep its bytes"
                ) from None
        size, took = sizes.size(sizes.bytes_of(trees)), time.monotonic() - began
        return f"{size} written and read back in {took:.1f} s, every checksum right"

    def export(self) -> str:
        """To a packed file, which the engine runs."""
        if self.last.model.name in models.SUPERNETS:
            return "not needed: a supernet is searched, not packed"
        variables, plan = parallel.fetch(self._trained().variables), self.plan
        assert plan
        made = export.program(self.last.model.name, plan.model, variables, plan.source)
        images = stand_in.noise(plan.source, 1, 2)["image"][0]
        with self._scratch() as place, stand_in.quick_compilation():
            size = export.write(made, place / "net.safetensors")
            found = export.compare(plan.model, variables, plan.source, place / "net.safetensors", images)
        if not runtime.available():
            raise BadInput(
                f"{size:,} bytes, but the engine that runs them is not compiled, and the reference is slow\n"
                "install a C++ compiler (g++ or clang++), then pip install -e . in the folder of bireal_jax"
            )
        return f"{size:,} bytes, run with {found['kernels']} kernels on {len(images)} images"

    def _trained(self) -> State:
        if self.state is None:
            raise BadInput("there is no state to try it with\nmend the training step first")
        return self.state


CHECKS = {
    "versions": Visit.versions,
    "devices": Visit.devices,
    "write access": Visit.write_access,
    "data set": Visit.data_set,
    "decoder": Visit.decoder,
    "pictures": Visit.pictures,
    "schedule": Visit.schedule,
    "weights": Visit.weights,
    "disk space": Visit.disk_space,
    "memory": Visit.memory,
    "training step": Visit.training_step,
    "save and restore": Visit.save_and_restore,
    "export": Visit.export,
}


def _fits(requirement):
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False

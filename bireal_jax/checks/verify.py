"""Are the checkpoints of a run what was written?"""

from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bireal_jax import build
from bireal_jax.errors import BadInput
from bireal_jax.running import checkpoint, known, progress
from bireal_jax.training.step import Plan


def run(config: ConfigDict, directory: str | Path) -> int:
    """Reads every checkpoint of a workdir, compares each leaf with its digest, and says OK or DAMAGED for each.

    Args:
      config: a recipe; it counts, and its data set must be there, where the workdir has no config and data.json.
      directory: the workdir. Nothing in it is changed.

    Returns:
      How many checkpoints there are.

    Raises:
      BadInput: one or more are damaged, there are none, or they are of another model.
    """
    count, damaged, directory = 0, 0, Path(directory)
    run = known.read(directory)
    sources = run.sources if run else ()
    for index, stage in enumerate(build.stages(run.config if run else config)):
        place = directory / f"stage_{index}" / "checkpoints"
        if not place.is_dir():
            continue
        plan = Plan(stage, sources[index] if sources else None)
        templates = jax.eval_shape(partial(plan.fresh, seed=stage.seed), plan.shapes).trees()
        with checkpoint.Checkpoints(place, read_only=True) as checkpoints:
            for step in checkpoints.steps():
                count += 1
                try:
                    checkpoints.restore(step, templates)
                    progress.say(f"OK       {place / str(step)}  ({len(jax.tree.leaves(templates))} arrays)")
                except checkpoint.Damaged as error:
                    damaged += 1
                    progress.say(f"DAMAGED  {error}")
    if not count:
        raise BadInput(f"no checkpoint in {directory}; train first (--mode=train)")
    if damaged:
        if damaged == count:
            way = "train again with another --workdir"
        elif (directory / "result.json").exists():
            way = "the run is finished: delete them, and --mode=eval and --mode=export take the best of the others"
        else:
            way = "the same training command sets them aside and goes on from the newest sound one"
        raise BadInput(f"{damaged} of {count} checkpoints in {directory} are damaged\n{way}")
    return count

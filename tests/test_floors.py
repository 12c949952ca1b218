"""Imports go to a lower floor only, and the heavy or forbidden ones nowhere else."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bireal_jax"

# module (or package) -> floor. On one floor only the modules named in BESIDE import each other.
FLOORS = {
    "_version": -2, "__init__": -1, "errors": -1, "preempt": -0.5, "hosts": -0.4,
    "binarize": 0, "conv": 0, "norm": 0, "pool": 0, "packed": 0.1, "losses": 0.1, "metrics": 0.1,
    "layers": 1, "bop": 1,
    "models": 2, "optim": 2, "data": 2,
    "readers": 2.5, "pytorch": 2.5, "larq": 2.5,
    "runtime": 2.1,  # imports neither jax nor flax, nor what does
    "arch": 3, "config": 3, "parallel": 3, "checkpoint": 3, "importers": 3, "evaluate": 3.1,
    "health": 3.1, "workdir": 3.2, "progress": 3.2,
    "graph": 3, "cost": 3.1, "export": 3.3, "pictures": 3.3,
    "build": 3.25, "step": 3.4, "train": 3.6, "doctor": 3.65, "verify": 3.6, "scan": 3.3, "seeds": 3.6,
    "search": 4, "main": 5,
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """(module, line) of every import of a file, `from bireal_jax import x` as bireal_jax.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            parts = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "bireal_jax"
                else [node.module]
            )
            yield from ((name, node.lineno) for name in parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = room(path)
    assert here in FLOORS, f"{here} has no floor; give it one in tests/test_floors.py"
    for name, line in imports(path):
        top = name.split(".")
        assert top[0] not in ("experiments", "tests", "configs"), f"{path}:{line} imports {name}"
        if top[0] == "bireal_jax" and len(top) > 1 and top[1] != here:
            assert FLOORS[top[1]] < FLOORS[here], (
                f"{path}:{line}: {here} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[top[1]]})"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_stands_in_one_place_stays_there(path):
    names = [name for name, _ in imports(path)]
    if room(path) != "checkpoint":
        assert not any(n.startswith("orbax") for n in names)
    if FLOORS[room(path)] < 3:
        assert not any(n.startswith("ml_collections") for n in names), "floors 0 to 2 take plain arguments"
    if room(path) == "runtime":
        assert not any(n.startswith(("jax", "flax", "grain", "orbax")) for n in names)
    text = path.read_text()
    assert room(path) == "parallel" or "jax.pmap(" not in text
    assert "jax._src" not in text and "allow_pickle=True" not in text


def test_files_are_short():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 350, path

"""Imports go to a lower floor only, between wings and within one, and the heavy or forbidden ones nowhere else."""

import ast
import runpy
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bireal_jax"

# The house, bottom up. A row is a floor: wings on one floor never import each other. A wing is a file, or a folder with
# the floors of its own files, bottom up: a file imports what lies below, never what stands beside it.
HOUSE = [
    {"_version": [], "errors": [], "kinds": []},
    {"limits": [], "output": [], "places": [], "pixels": ["listing window", "__init__"]},
    {
        "binary": ["rule", "binarize conv pool", "losses packed", "norm stem tables", "layers"],
        "data": [
            "augment pickled stored", "jpeg source", "batching cutout held_out images normalize numbered official",
            "arrays depth digits folder imagenet", "cifar", "__init__", "prepare",
        ],
        "config": [],
    },
    {
        "models": ["arch layouts network", "alexnet bireal depth metaprune resnet vgg", "reactnet", "ebn", "__init__"],
        "runtime": [
            "fields named photos", "reference", "verify", "container", "__init__", "answers measure", "catalogue",
            "__main__",
        ],
        "recipe": [],
        "running": [
            "bits metrics parallel preempt profile progress settings", "checkpoint described health hosts",
            "adoption known", "workdir",
        ],
    },
    {"registered": [], "importers": ["choices unfold values", "readers", "larq pytorch zoo", "__init__", "__main__"]},
    {"build": []},
    {"used": []},
    {"training": ["bop division evaluate flat ovsw pictures teacher", "calls optim", "step", "seeds train"]},
    {
        "shipping": [
            "constants ops buffers walk", "operations to_c to_onnx to_openvino", "graph to_qonnx",
            "accuracy cost formats", "export", "__main__",
        ],
        "search": ["evolve spaces", "latency pareto record", "run"],
    },
    {"checks": ["figures intervals layers page seen sizes stand_in versions", "doctor report scan verify", "compare"]},
    {"main": []},
]  # fmt: skip
WING_FLOOR = {wing: floor for floor, row in enumerate(HOUSE) for wing in row}
ROOM_FLOOR = {
    (wing, room): floor
    for row in HOUSE
    for wing, floors in row.items()
    for floor, rooms in enumerate(floors)
    for room in rooms.split()
}
FILES = sorted(PACKAGE.rglob("*.py"))


def place(path):
    """(wing, room) of a file: ("training", "step"), ("main", "__init__")."""
    wing, *rest = path.relative_to(PACKAGE).with_suffix("").parts
    return wing, rest[0] if rest else "__init__"


def imports(path):
    """(wing, room, line) of every import of a file from this package, and (name, "", line) of every other one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module.split(".")
            found = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for parts in found:
            if parts[0] != "bireal_jax":
                yield ".".join(parts), "", node.lineno
            elif len(parts) > 1:
                wing, room = parts[1], parts[2] if len(parts) > 2 else "__init__"
                yield wing, room if (PACKAGE / wing / f"{room}.py").exists() else "__init__", node.lineno


def check(wing, room, imported, path):
    """Fails where one of `imported` (of `imports`) is not below a room."""
    assert wing in WING_FLOOR, f"{path}: {wing} is no wing; give it a floor in HOUSE, or the file its place in a wing"
    rooms = next(row[wing] for row in HOUSE if wing in row)
    if rooms and room != "__init__":
        assert (wing, room) in ROOM_FLOOR, f"{path}: {wing}/{room}.py has no floor; give it one in HOUSE"
    for name, part, line in imported:
        assert name.split(".")[0] not in ("experiments", "tests", "configs"), f"{path}:{line} imports {name}"
        if not part or name.startswith("_version"):
            continue
        if name == wing:
            here, there = (ROOM_FLOOR.get((wing, r), -1) for r in (room, part))
            assert there < here, f"{path}:{line}: {wing}/{room} (floor {here}) imports {wing}/{part} (floor {there})"
        else:
            assert WING_FLOOR[name] < WING_FLOOR[wing], (
                f"{path}:{line}: {wing} (floor {WING_FLOOR[wing]}) imports {name} (floor {WING_FLOOR[name]})"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    if path != PACKAGE / "__init__.py":  # imports the version alone
        check(*place(path), imports(path), path)


@pytest.mark.parametrize(
    "room, line, said",
    [
        ("binary/binarize", "from bireal_jax.training import step", "binary .floor 2. imports training"),  # up
        ("search/run", "from bireal_jax.shipping import cost", "search .floor 8. imports shipping"),  # sideways
        ("training/optim", "from bireal_jax.training.step import Plan", "training/optim .* imports training/step"),
        ("training/seeds", "from bireal_jax.training import train", "training/seeds .* imports training/train"),
        ("data/cifar", "from bireal_jax.data import Source", "data/cifar .* imports data/__init__"),
        ("models/vgg", "import experiments.speed", "imports experiments"),
        ("utils", "import os", "utils is no wing"),
        ("models/utils", "import os", "models/utils.py has no floor"),
    ],
)
def test_an_arrow_that_does_not_go_down_is_seen(room, line, said, tmp_path):
    path = tmp_path / "file.py"
    path.write_text(line)
    with pytest.raises(AssertionError, match=said):
        check(*place(PACKAGE / f"{room}.py"), imports(path), path)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_stands_in_one_place_stays_there(path):
    names = [name for name, part, _ in imports(path) if not part]
    wing, room = place(path)
    if (wing, room) != ("running", "checkpoint"):
        assert not any(n.startswith("orbax") for n in names)
    if wing in ("binary", "models", "data"):
        assert not any(n.startswith("ml_collections") for n in names), "these take plain arguments"
    if wing == "runtime":
        assert not any(n.startswith(("jax", "flax", "grain", "orbax")) for n in names)
    text = path.read_text()
    assert (wing, room) == ("running", "parallel") or "jax.pmap(" not in text
    assert "jax._src" not in text and "allow_pickle=True" not in text


def test_files_are_short():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 350, path


def test_the_picture_of_the_house_is_drawn_from_these_imports():
    house = runpy.run_path(str(PACKAGE.parent / "docs" / "house.py"))
    drawn = (PACKAGE.parent / "docs" / "house.svg").read_text()
    assert drawn == house["svg"](), "python docs/house.py draws it anew"
    assert set(house["floors"](house["wings"]())) | {"_version"} == set(WING_FLOOR)

"""Draws house.svg, the wings of the package and who imports whom, from the imports: `python docs/house.py`."""

import ast
import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

PACKAGE = Path(__file__).parents[1] / "bireal_jax"
BOX, GAP, HIGH, STEP, FONT = 216, 24, 74, 122, "font-family='system-ui, sans-serif'"


def wings() -> dict[str, tuple[str, set[str]]]:
    """name -> (what it is for, the wings that it imports)."""
    found = {}
    for path in sorted(PACKAGE.iterdir()):
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.suffix == ".py" else []
        if not files or path.name.startswith("_"):
            continue
        trees = [ast.parse(file.read_text()) for file in files]
        head = next(tree for file, tree in zip(files, trees, strict=True) if file in (path, path / "__init__.py"))
        purpose = (ast.get_docstring(head) or "").split("\n")[0].rstrip(".").replace("`", "")
        names = {
            name
            for tree in trees
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bireal_jax"
            for name in (node.module.split(".")[1:2] or [alias.name for alias in node.names])
        }
        found[path.stem] = purpose, names - {path.stem, "_version", "__version__"}
    return found


def floors(graph: dict[str, tuple[str, set[str]]]) -> dict[str, int]:
    """Each wing stands one above the highest that it imports."""

    def floor(name):
        return 1 + max((floor(other) for other in graph[name][1]), default=-1)

    return {name: floor(name) for name in graph}


def svg() -> str:
    """The picture. An arrow that others imply is left out: a wing also imports what is below its arrows."""
    graph = wings()
    rows = floors(graph)
    below = {name: graph[name][1] for name in graph}
    reach: dict[str, set[str]] = {}
    for name in sorted(graph, key=rows.__getitem__):
        reach[name] = below[name].union(*(reach[other] for other in below[name]))
    levels = [[n for n in graph if rows[n] == floor] for floor in range(max(rows.values()) + 1)]
    width, height = max(map(len, levels)) * (BOX + GAP) + GAP, len(levels) * STEP - STEP + HIGH + 2 * GAP
    at = {
        name: ((width - len(level) * (BOX + GAP) + GAP) / 2 + i * (BOX + GAP), height - GAP - HIGH - floor * STEP)
        for floor, level in enumerate(levels)
        for i, name in enumerate(level)
    }
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{width:g}' {FONT}>",
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        "<path d='M0 0L8 4L0 8z' fill='#7a8290'/></marker></defs>",
        f"<rect width='{width:g}' height='{height:g}' rx='12' fill='#fbfaf7'/>",
    ]
    for name, others in below.items():
        for other in sorted(others):
            if not any(other in reach[between] for between in others - {other}):
                (x, y), (u, v) = at[name], at[other]
                x, y, u = x + BOX / 2, y + HIGH, u + BOX / 2
                near = y + STEP - HIGH - 10  # sideways between two floors, and straight down from there
                path = f"M{x:g} {y:g}C{x:g} {y + 34:g} {u:g} {near - 34:g} {u:g} {near:g}V{v - 2:g}"
                parts.append(
                    f"<path d='{path}' fill='none' stroke='#7a8290' stroke-width='1.3' marker-end='url(#tip)'/>"
                )
    for name, (x, y) in at.items():
        folder = (PACKAGE / name).is_dir()
        colour = "#dfe9f5" if folder else "#efe8da"
        parts.append(
            f"<rect x='{x:g}' y='{y:g}' width='{BOX}' height='{HIGH}' rx='8' fill='{colour}' stroke='#4b5563'/>"
        )
        title = f"{name}/" if folder else f"{name}.py"
        middle = x + BOX / 2
        parts.append(
            f"<text x='{middle:g}' y='{y + 21:g}' font-size='14' font-weight='600' text-anchor='middle' "
            f"fill='#1f2937'>{title}</text>"
        )
        for i, line in enumerate(textwrap.wrap(graph[name][0], 36)):
            parts.append(
                f"<text x='{middle:g}' y='{y + 37 + 13 * i:g}' font-size='10.5' text-anchor='middle' "
                f"fill='#374151'>{escape(line)}</text>"
            )
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(svg())

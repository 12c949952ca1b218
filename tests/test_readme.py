"""What the README shows works as it is shown."""

import re

import jax
import jax.numpy as jnp

from bireal_jax import main, models
from bireal_jax.binary import binarize
from bireal_jax.training import train


def blocks(root, language):
    return re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)


def test_own_estimator(request, tmp_path, monkeypatch):
    root = request.config.rootpath
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    recipe = tmp_path / "narrowing.py"
    recipe.write_text(next(b for b in blocks(root, "python") if "def narrowing" in b))
    try:
        config, workdir, _ = main.parse(
            ["main", f"--config={recipe}", f"--workdir={tmp_path / 'w'}", "--config.total_steps=4"]
        )
        assert train.run(config, workdir)["steps"] == 4
        slope = jax.grad(models.build("bireal_tiny", act=config.model.act).activation)
        assert (slope(jnp.float32(1.2), 0.0), slope(jnp.float32(1.2), 1.0)) == (0.5, 0.0)
    finally:
        binarize.DERIVATIVES.pop("narrowing", None)


def test_links_and_recipes_exist(request):
    root = request.config.rootpath
    text = (root / "README.md").read_text()
    for path in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"--config=(configs/\w+\.py)", text):
        assert (root / path).exists(), path
    assert "pip install -e . && python -m bireal_jax.main --config=configs/digits.py" in text
    assert "pip install -e '.[test]' && python -m pytest" in text


def test_the_map_is_the_directory(request):
    root = request.config.rootpath
    text = (root / "README.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    package = root / "bireal_jax"
    rooms = [f"bireal_jax/{p.name}{'/' if p.is_dir() else ''}" for p in package.iterdir() if p.name[0] != "_"]
    rooms = [name for name in rooms if name.endswith(("/", ".py"))]
    folders = ["configs/", "docs/", "experiments/", "tests/"]
    assert sorted(re.findall(r"^\| `(\S+)`", text, re.MULTILINE)) == sorted([*rooms, *folders])

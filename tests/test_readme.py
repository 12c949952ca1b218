"""What the README and the pages show works as it is shown: commands, fields, links, and the list of pages."""

import importlib.util
import os
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from bireal_jax import config as config_lib
from bireal_jax import main, models
from bireal_jax.binary import binarize
from bireal_jax.training import train

ROOT = Path(__file__).parents[1]
WRITTEN = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "tables"]  # tables: made with the site
PAGES = sorted([*ROOT.glob("*.md"), *WRITTEN, *ROOT.glob("experiments/**/README.md")])
USERS = [path for path in PAGES if "experiments" not in path.parts]
NAMES = [str(path.relative_to(ROOT)) for path in USERS]


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text):
    """The words of every `python -m ...` of the shell blocks, comments and what stands before or behind it apart."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\s\|\s", line):
                words = shlex.split(part, comments=True)
                if words[:2] == ["python", "-m"]:
                    yield words[2:]


def outside_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(path):
    """What `#...` behind a link to a page can name: its headings as GitHub writes them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_own_estimator(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    recipe = tmp_path / "narrowing.py"
    text = (ROOT / "docs" / "estimators.md").read_text()
    recipe.write_text(next(b for b in blocks(text, "python") if "def narrowing" in b))
    try:
        config, workdir, _ = main.parse(
            ["main", f"--config={recipe}", f"--workdir={tmp_path / 'w'}", "--config.total_steps=4"]
        )
        assert train.run(config, workdir)["steps"] == 4
        slope = jax.grad(models.build("bireal_tiny", act=config.model.act).activation)
        assert (slope(jnp.float32(1.2), 0.0), slope(jnp.float32(1.2), 1.0)) == (0.5, 0.0)
    finally:
        binarize.DERIVATIVES.pop("narrowing", None)


def test_the_readme_is_short_and_has_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) < 1000, "five minutes; what a user needs later goes into a page of docs"
    assert "pip install -e . && python -m bireal_jax.main --config=configs/digits.py" in text
    assert "pip install -e '.[test]' && python -m pytest" in text


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = outside_code(path.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{path}: {link}"
        assert target.is_relative_to(ROOT), f"{path}: {link} leaves the checkout"
        assert not anchor or anchor in anchors(target), f"{path}: {link}; headings there: {sorted(anchors(target))}"
    for recipe in re.findall(r"--config=(configs/\w+\.py)", path.read_text()):
        assert (ROOT / recipe).exists(), f"{path}: {recipe}"


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_their_flags_exist(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    for module, *words in commands((ROOT / name).read_text()):
        given = [word for word in words if word.startswith("--")]
        if module == "bireal_jax.main":
            values = flags.FlagValues()
            for flag in set(re.findall(r"--(\w+)[= ]", main.HELP)) - {"config", "workdir", "mode"}:
                flags.DEFINE_string(flag, "", "", flag_values=values)
            if (ROOT / given[0].removeprefix("--config=").split(":")[0]).is_file():  # or it is the reader's own
                main.parse(["main", *words, "--config.arch="], values)  # a file that a search would have written
            continue
        assert importlib.util.find_spec(module), f"{name}: no module {module}"
        if module.startswith(("bireal_jax", "experiments")):
            source = "".join(p.read_text() for p in _sources(module))
            for flag in given:
                assert f'"{flag.split("=")[0]}"' in source, f"{name}: {module} has no {flag}"


def _sources(module):
    """The files that can define a module's flags: its own, and those beside it if it is a package's __main__."""
    path = ROOT / module.replace(".", "/")
    return path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("name", NAMES)
def test_fields_and_modes_in_the_text_exist(name):
    text = (ROOT / name).read_text()
    for field in re.findall(r"--config\.([a-z_0-9.]*[a-z0-9])", text) + re.findall(r"`config\.([a-z_0-9.]+)`", text):
        if field not in ("json", "py"):
            config_lib.check_field(field, config_lib.default(), f"{name}: ")
    for mode in re.findall(r"--mode=(\w+)", text):
        main.parse(["main", f"--config={ROOT / 'configs/digits.py'}", f"--mode={mode}"])


def test_every_page_is_in_the_list_of_pages():
    """A page is found by the lists of docs/index.md."""
    docs = ROOT / "docs"
    lists = blocks((docs / "index.md").read_text(), "{toctree}")
    entries = [line for block in lists for line in block.splitlines() if line and not line.startswith(":")]
    listed = [(docs / f"{entry.split('<')[-1].rstrip('>')}.md").resolve() for entry in entries]
    assert len(set(listed)) == len(listed)
    for path in [*WRITTEN, *ROOT.glob("experiments/**/README.md")]:
        if path != docs / "index.md":
            entry = os.path.relpath(path.with_suffix(""), docs)
            assert path in listed, f"{entry}.md is in no list of pages: add the line `{entry}` to docs/index.md"


def test_the_map_is_the_directory():
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    package = ROOT / "bireal_jax"
    rooms = [f"bireal_jax/{p.name}{'/' if p.is_dir() else ''}" for p in package.iterdir() if p.name[0] != "_"]
    rooms = [name for name in rooms if name.endswith(("/", ".py"))]
    folders = ["configs/", "docs/", "experiments/", "tests/"]
    assert sorted(re.findall(r"^\| `(\S+)`", text, re.MULTILINE)) == sorted([*rooms, *folders])

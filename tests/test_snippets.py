"""The Python of every page runs as it stands there, one block after the other, beside a run, its file and a photo."""

import re
import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small import small

from bireal_jax import build, importers, recipe
from bireal_jax.binary import binarize
from bireal_jax.running import checkpoint, workdir
from bireal_jax.runtime import named

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "format.md": "test_format_page.py",
    "your-network.md": "test_own_network.py",
    "processes.md": "test_processes.py",
}
FOUND = {
    path.relative_to(ROOT).as_posix(): re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("experiments/**/README.md")]
}
PAGES = sorted(name for name, found in FOUND.items() if found and Path(name).name not in ELSEWHERE)
SLOW = ("docs/estimators.md", "docs/pytorch.md")


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """What the pages speak of: runs/digits with its packed file, a photo, and a shorter recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    from configs import digits

    whole, run, packed = digits.get_config, tmp_path / "runs" / "digits", named.PLACE / "digits.safetensors"
    with workdir.claim(run, small(), [build.source(small())]):
        pass
    scores = {"loss": 1.0, "top1": 90.0, "top5": 99.0}
    with checkpoint.Checkpoints(run / "stage_0" / "checkpoints") as checkpoints:
        checkpoints.save(1, {"variables": build.pretrained("digits")[1]}, scores)
    shutil.copy(packed, run / "net.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.jpg")

    def short(load, *args):
        c = load(*args)
        c.total_steps = c.log_steps = c.eval_steps = 1
        return c

    monkeypatch.setattr(digits, "get_config", partial(short, whole))
    monkeypatch.setattr(recipe, "load_recipe", partial(short, recipe.load_recipe))
    return tmp_path


def _authors_file(place):
    """model_best.pth.tar, as the authors' training writes it, and the network in PyTorch."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    from experiments.speed.torch_bireal import BiReal

    module, rng = importers.models.build("bireal18"), np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    drawn = jax.tree.map(lambda s: rng.uniform(0.1, 1, s.shape).astype(np.float32), shapes)
    state = {name: torch.from_numpy(np.array(a)) for name, a in importers.to_torch("bireal18", drawn).items()}
    model = BiReal("bireal18", 1000)
    state = {
        name: state[name].reshape(there.shape) if name in state else there for name, there in model.state_dict().items()
    }
    torch.save({"epoch": 1, "state_dict": state}, place / "model_best.pth.tar")
    return model


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in PAGES])
def test_snippets_run(page, beside, capsys):
    names, before = {"__name__": page}, [dict(table) for table in (binarize.DERIVATIVES, binarize.WEIGHTS)]
    if page == "docs/pytorch.md":
        names["model"] = _authors_file(beside)
    try:
        for number, block in enumerate(FOUND[page]):
            exec(compile(block, f"{page}, block {number + 1}", "exec"), names)
            if "get_config" in names:
                build.stages(names.pop("get_config")())
    finally:
        for table, old in zip((binarize.DERIVATIVES, binarize.WEIGHTS), before, strict=True):
            table.clear()
            table.update(old)
    assert "logits" not in names or np.isfinite(np.asarray(names["logits"])).all()
    if "theirs" in names:
        np.testing.assert_allclose(names["logits"], names["theirs"], rtol=1e-3)


def test_what_is_run_elsewhere_is():
    for page, test in ELSEWHERE.items():
        assert FOUND[f"docs/{page}"] and page in (ROOT / "tests" / test).read_text()

"""The site of docs/*.md: its tables come from the rows, its notebooks run, and nothing in it leads nowhere."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bireal_jax import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tables():
    return runpy.run_path(str(ROOT / "docs" / "tables.py"))


def test_every_table_is_made_from_rows_that_are_there(tables):
    for heading, name, make in tables["TABLES"]:
        table = make(tables["read"](ROOT / "experiments" / name))
        assert len(table) > 1 and len({len(line) for line in table}) == 1, heading
        assert all(isinstance(cell, str) for line in table for cell in line), heading
    text = tables["pages"]()
    for path in [*(ROOT / "experiments").rglob("*.jsonl"), *(ROOT / "experiments").rglob("*.csv")]:
        assert f"({os.path.relpath(path, ROOT / 'docs')})" in text, "every file of rows is named"


def test_the_numbers_of_a_table_are_those_of_the_rows(tables):
    row = {"torch": "2", "batch": 1, "threads": 1, "ours": [3.0, 1.0, 2.0]}
    rows = [
        row | {"torch": "1", "ours": [9.0], "torch_float32": [9.0]},  # with an older version: not counted
        row | {"onnxruntime_int8": [8.0, 6.0]},
        row | {"ours": [5.0]},  # fewer engines
    ]
    shown = {line[0]: line[1] for line in tables["inference"](rows)}
    assert (
        shown["ours, float32"] == "2" and shown["onnxruntime, int8"] == "7" and shown["PyTorch, float32"] == "not run"
    )
    step = {"size": 32, "batch": 8, "threads": 2, "cpu": "X", "ours": [1.0, 2.0, 4.0], "a": [9.0], "b": [3.0, 5.0, 5.0]}
    assert tables["training"]([step])[1] == ["bireal18", "32", "8", "2", "X", "2.00", "5.00 (b)", "2.50"]
    cell = {"arch": "net", "init": "he", "weight": "sign", "act": "ste", "optimizer": "sgd"}
    runs = [{"cell": cell, "seed": seed, "top1": top1} for seed, top1 in enumerate((90.0, 92.0, 94.0))]
    assert tables["estimators"](runs)[1] == ["sgd", "he", "sign", "ste", "92.0 ± 2.0 (3)"]


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == __version__
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("myst_nb"), reason="needs pip install -e '.[docs]'")
def test_the_site_is_made_without_a_warning_and_its_notebooks_run(tmp_path):
    made = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make.py"), "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-3000:]
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    for name, shown in {
        "docs/notebooks/digits.html": "% of 359 test images",
        "docs/notebooks/estimators.html": "narrowing  ",
        "docs/notebooks/ship.html": "same class: 1.0",
        "docs/api.html": 'id="bireal_jax.build.trained"',
        "docs/results.html": "Trials of each kind, and how many failed.",
        "experiments/speed/README.html": "OpenVINO",
    }.items():
        assert shown in pages[name], name
    for name, text in pages.items():  # it is read without the network, too
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//[^"]*"|<link[^>]*href="https?:[^"]*"', text)
        assert not loaded, f"{name}: {loaded}"
    search = (tmp_path / "searchindex.js").read_text()
    assert "docs/faq" in json.loads(search[len("Search.setIndex(") : -1])["docnames"]

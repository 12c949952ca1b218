"""Makes the site of these pages: `pip install -e '.[docs]' && python docs/make.py`, then open build/site/index.html.

A warning fails it: a link to nowhere, a page that is in no list of pages, a notebook that raises. It needs no network.
"""

import argparse
import os
import sys
from pathlib import Path

from sphinx.cmd.build import main

ROOT = Path(__file__).parents[1]


def make(out: Path) -> int:
    """Makes the site in a folder; returns the exit status."""
    status = main(["-W", "--keep-going", "-q", "-c", str(ROOT / "docs"), str(ROOT), str(out)])
    if not status:
        (out / "index.html").write_text('<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">')
        print(out / "index.html")
    return status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python docs/make.py", description="Makes the site of these pages.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="default: build/site")
    parser.add_argument("--quick", action="store_true", help="without what the notebooks print")
    arguments = parser.parse_args()
    if arguments.quick:
        os.environ["NOTEBOOKS"] = "off"  # read by conf.py
    sys.exit(make(arguments.out))

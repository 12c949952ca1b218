"""Makes the site of these pages, build/site/index.html: `pip install -e '.[docs]' && python docs/make.py`.

A warning fails it: a link to nowhere, a page that is in no list of pages, a notebook that raises. `--quick` leaves out
what the notebooks print. It needs no network.
"""

import os
import sys
from pathlib import Path

from sphinx.cmd.build import main

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "site"

if __name__ == "__main__":
    if "--quick" in sys.argv:
        os.environ["NOTEBOOKS"] = "off"
    status = main(["-W", "--keep-going", "-q", "-c", str(ROOT / "docs"), str(ROOT), str(SITE)])
    if not status:
        (SITE / "index.html").write_text('<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">')
        print(SITE / "index.html")
    sys.exit(status)

"""An HTML page that needs nothing beside it, and what stands on it."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1f2933; --soft: #66707e; --paper: #fff; --card: #f5f7f9; --line: #dfe4ea }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e3e7ec; --soft: #98a2b0; --paper: #14181d; --card: #1c2229; --line: #323a44 }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px;
       margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem; margin: 0 }} h2 {{ font-size: 1.1rem; margin: 2.2rem 0 .5rem }}
p {{ max-width: 75ch; margin: .4rem 0 }} .soft {{ color: var(--soft) }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .8rem;
          overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px }} .wide {{ overflow-x: auto }}
td, th {{ padding: .15rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }}
.one {{ white-space: nowrap }}
.text {{ text-align: left }} .long {{ text-align: left; white-space: normal; min-width: 36ch }}
td:first-child, th:first-child {{ padding-left: 0 }} th {{ font-weight: 600 }}
pre {{ background: var(--card); padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 6px;
      font-size: 13px }}
.numbers {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1rem 0 }}
.numbers div {{ background: var(--card); border-radius: 6px; padding: .6rem 1rem }}
.numbers b {{ font-size: 1.3rem; display: block }}
.mistakes {{ display: flex; flex-wrap: wrap; gap: 1rem }} figure {{ margin: 0; width: 128px; font-size: 12px;
         overflow-wrap: anywhere }}
figure img {{ width: 128px; height: 128px; object-fit: contain; image-rendering: pixelated; background: var(--card) }}
@media (max-width: 600px) {{ th, .text {{ white-space: normal }} .long {{ min-width: 18ch }} }}
</style>
{body}
</html>
"""


LONG = 60  # characters of a cell that is broken into lines
NUMBER = re.compile(r"[-+±\d]|$")  # how a cell of a column of numbers begins
SMALL = re.compile(r"\d[\d.]*e-\d+")


def section(title: str, *parts: str) -> str:
    """A heading, and what stands under it."""
    return f"<h2>{title}</h2>\n" + "\n".join(filter(None, parts))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table of texts; columns of numbers end at the right, others begin at the left."""
    rows = [[*map(str, row)] for row in rows]
    words = [not all(map(NUMBER.match, column)) for column in zip(*rows, strict=True)] or [False] * len(head)

    def line(cells, tag):
        kinds = ["long" if len(c) > LONG else "text" if left else "" for c, left in zip(cells, words, strict=True)]
        parts = [
            f'<{tag} class="{kind}">{_whole(cell)}</{tag}>' if kind else f"<{tag}>{_whole(cell)}</{tag}>"
            for cell, kind in zip(cells, kinds, strict=True)
        ]
        return "<tr>" + "".join(parts) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table>{line(head, "th")}\n{body}</table></div>'


def _whole(text):
    """Escaped; 9.2e-07 stays on one line, which browsers break behind the hyphen."""
    return SMALL.sub(r'<span class="one">\g<0></span>', html.escape(text))


def details(title: str, body: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{title}</summary>\n{body}\n</details>"

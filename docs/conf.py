"""The site, for Sphinx. The source is the whole checkout, so that a link works here as it does in the files themselves.

Sphinx, since MkDocs is no longer maintained and its successor has neither strict links nor docstrings of its own yet.
"""

import os
import re
import sys
from pathlib import Path

from sphinx import addnodes
from sphinx.transforms import SphinxTransform

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]
os.environ["PYTHONPATH"] = str(ROOT)  # of the notebooks

import tables

from bireal_jax import __version__

project = "bireal_jax"
author = "The bireal_jax authors"
copyright = "The bireal_jax authors, Apache-2.0"
release = version = __version__

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton",
]  # fmt: skip
root_doc = "docs/index"
include_patterns = ["docs/**.md", "experiments/README.md", "experiments/*/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = ["docs/tables/*", "build", "runs", ".*", "**/.*", "tests", "bireal_jax", "configs"]

myst_heading_anchors = 3
nb_execution_mode = os.environ.get("NOTEBOOKS", "force")  # "off" leaves them without their outputs
nb_execution_raise_on_error = True
nb_execution_timeout = -1  # a busy machine takes its time
nb_merge_streams = True
suppress_warnings = []
if nb_execution_mode == "off":
    suppress_warnings.append("misc.highlighting_failure")  # of `!` in a cell, whose language the kernel would name

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_rtype = False

html_theme = "furo"
html_title = "bireal_jax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


class Files(SphinxTransform):
    """Links to files of the checkout: a folder is its README, what is no page is the file itself."""

    default_priority = 1

    def apply(self):
        for link in list(self.document.findall(addnodes.pending_xref)):
            if link.get("reftype") == "myst":
                self.lead(link)

    def lead(self, link):
        """Makes a link to a page or to a file of it, if there is one of that name."""
        name, _, anchor = link["reftarget"].partition("#")
        page = link.get("refdomain") == "doc"  # then the target is a page, from the top, without its suffix
        target = (ROOT / f"{name}.md") if page else Path(self.env.doc2path(self.env.docname)).parent / name
        target = target.resolve()
        if target == ROOT / "README.md":
            target = DOCS / "index.md"
        if target.is_dir() and (target / "README.md").exists():
            target /= "README.md"
        if not name or not target.exists() or (page and name in self.env.found_docs):
            return
        found = self.env.path2doc(str(target)) if target.suffix == ".md" else None
        if found in self.env.found_docs:
            link.attributes |= {"refdomain": "doc", "reftarget": found, "reftargetid": anchor or None}
        elif target.is_dir():
            link.replace_self(link.children)
        else:
            path = "/" + str(target.relative_to(ROOT))
            link.replace_self(
                addnodes.download_reference("", "", *link.children, reftarget=path, refdoc=self.env.docname)
            )


def as_restructured(app, what, name, obj, options, lines):
    """Docstrings are plain text: bars and stars are themselves, a name in backticks may have a letter behind.

    What is set off by a blank line and four spaces is code.
    """
    text = "\n".join(re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", re.sub(r"(?<!\\)([|*])", r"\\\1", line)) for line in lines)
    text = re.sub(r"(?<=\n)\n((?: {4}.*\n*)+)", r"\n.. code-block:: python\n\n\1", "\n" + text + "\n")
    lines[:] = text[1:].split("\n")


def setup(app):
    app.connect("builder-inited", lambda app: tables.write(DOCS / "tables"))
    app.connect("autodoc-process-docstring", as_restructured, priority=100)  # before napoleon
    app.add_transform(Files)

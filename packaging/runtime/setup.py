"""The runtime as a distribution of its own: takes what it consists of from the checkout around it, and builds that.

A distribution of its own, and no extra of the whole, since extras only add: for a runtime without JAX the README's
`pip install -e .` would have to name an extra that trains. Both have `bireal_jax.runtime`: an environment takes one.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
PARTS = (
    "__init__.py", "_version.py", "errors.py", "kinds.py", "output.py", "places.py", "py.typed", "pixels", "runtime",
)  # fmt: skip


def take() -> None:
    """Copies the parts here; in an sdist they are here already."""
    if not (CHECKOUT / "bireal_jax").is_dir():
        return
    shutil.rmtree(HERE / "bireal_jax", ignore_errors=True)
    (HERE / "bireal_jax").mkdir()
    for name in PARTS:
        source, here = CHECKOUT / "bireal_jax" / name, HERE / "bireal_jax" / name
        if source.is_dir():
            shutil.copytree(source, here, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(source, here)
    shutil.copy(CHECKOUT / "setup.py", HERE / "whole.py")
    shutil.copy(CHECKOUT / "LICENSE", HERE / "LICENSE")


take()
whole = runpy.run_path(str(HERE / "whole.py"))
setup(cmdclass={"build_ext": whole["Libraries"], "bdist_wheel": whole["Wheel"]}, ext_modules=[whole["engine"]()])

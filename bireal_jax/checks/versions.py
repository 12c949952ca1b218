"""Versions of what a run depends on."""

import platform
from importlib import metadata

SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def shown() -> str:
    """Those of Python and of SHOWN, in words."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in SHOWN)])

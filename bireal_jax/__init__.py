"""1-bit convolutional networks in JAX and Flax: training, search and deployment."""

from bireal_jax._version import __version__

__all__ = ["__version__"]

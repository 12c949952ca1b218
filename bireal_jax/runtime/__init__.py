"""Packed 1-bit networks on CPUs, without JAX."""

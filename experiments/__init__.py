"""Measurements; nothing in the package imports them."""

"""Faults, and what becomes of a run."""

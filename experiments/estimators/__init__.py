"""Ablations of gradient estimators."""

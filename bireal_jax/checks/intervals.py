"""Means over seeds and their 95 % intervals, by Student's t."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean of some values, and half of its 95 % interval, which is NaN for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan")
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def bounds(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of accuracies in percent: the 95 % interval, cut to [0, 100]; for one value that value."""
    mean, half = interval(values)
    half = 0.0 if np.isnan(half) else half
    return mean, max(0.0, mean - half), min(100.0, mean + half)

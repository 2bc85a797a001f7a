"""Rank correlation with an interval."""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import rankdata

from adaptmedseg.evaluation.bootstrap import MINIMUM_PATIENTS


def rank_correlation(
    scores: Sequence[float],
    dice_values: Sequence[float],
    patients: Sequence[Hashable],
    rng: np.random.Generator,
    resamples: int = 2000,
) -> tuple[float, tuple[float, float] | None]:
    """Spearman's correlation and its 95 % percentile interval, whole patients resampled; no interval for fewer than
    three patients. NaN where one of both is constant."""
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(dice_values, dtype=np.float64)
    value = _spearman(x, y)
    members = [np.flatnonzero([p == patient for p in patients]) for patient in dict.fromkeys(patients)]
    if len(members) < MINIMUM_PATIENTS:
        return value, None
    drawn = []
    for _ in range(resamples):
        chosen = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        drawn.append(_spearman(x[chosen], y[chosen]))
    kept = np.array(drawn)[np.isfinite(drawn)]
    if not len(kept):
        return value, None
    low, high = np.quantile(kept, [0.025, 0.975])
    return value, (float(low), float(high))


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])

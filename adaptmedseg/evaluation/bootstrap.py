"""Bootstrap intervals of a mean, with patients as the unit that is resampled."""

from collections.abc import Hashable, Sequence

import numpy as np

MINIMUM_PATIENTS = 3


def bootstrap_interval(
    values: Sequence[float],
    patients: Sequence[Hashable],
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval (Efron & Tibshirani, 1993) of the mean of `values`.

    Whole patients are drawn with replacement, since several scans of one patient aren't independent.
    None when there are fewer than three patients: an interval would promise what the data can't hold.
    """
    if len(values) != len(patients):
        raise ValueError(f"values and patients differ in length: {len(values)} and {len(patients)}")
    order = {patient: index for index, patient in enumerate(dict.fromkeys(patients))}
    if len(order) < MINIMUM_PATIENTS:
        return None
    index = np.array([order[patient] for patient in patients])
    sums = np.bincount(index, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(index)
    drawn = rng.integers(0, len(order), size=(resamples, len(order)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""Paired tests, and what is left of them when several are made."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import wilcoxon


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test (1945) that differences, one a patient, lie about zero.

    Differences of zero are left out, as Wilcoxon does; where all are zero p is 1. None without any difference.
    """
    values = np.array(differences, dtype=np.float64)
    if not len(values):
        return None
    return float(wilcoxon(values[values != 0]).pvalue) if values.any() else 1.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979) of p-values made together, in their order; None stays and does not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted

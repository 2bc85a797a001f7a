"""Paired tests, and what is left of them when several are made."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import rankdata, wilcoxon


def patient_means(values: Sequence[float], patients: Sequence[Hashable]) -> list[float]:
    """Means by patient: several scans of one patient are no independent evidence."""
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for value, patient in zip(values, patients, strict=True):
        groups[patient].append(value)
    return [float(np.mean(found)) for found in groups.values()]


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test (1945) that differences, one a patient, lie about zero.

    Differences of zero are left out, as Wilcoxon does; where all are zero p is 1. None without any difference.
    """
    values = np.array(differences, dtype=np.float64)
    if not len(values):
        return None
    return float(wilcoxon(values[values != 0]).pvalue) if values.any() else 1.0


def rank_biserial(differences: Sequence[float]) -> float | None:
    """Matched-pairs rank-biserial correlation (Kerby 2014), the effect size of Wilcoxon's signed-rank test: the share
    of ranks that speaks for a rise minus the share that speaks for a fall, from -1 to 1.

    Differences of zero are left out, as in the test; where all are zero it is 0. None without any difference.
    """
    values = np.array(differences, dtype=np.float64)
    if not len(values):
        return None
    values = values[values != 0]
    if not len(values):
        return 0.0
    ranks = rankdata(np.abs(values))
    return float((ranks * np.sign(values)).sum() / ranks.sum())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979) of p-values made together, in their order; None stays and does not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted

"""Numbers that compare models under shifts: how much of its clean Dice each of them keeps."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from adaptmedseg.evaluation.bootstrap import MINIMUM_PATIENTS
from adaptmedseg.evaluation.correlation import rank_correlation
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.shifts.complexity import COVARIATES
from adaptmedseg.evaluation.shifts.run import CLEAN
from adaptmedseg.evaluation.shifts.scene import Kind, Shift

Interval = tuple[float, float]


@dataclass(frozen=True)
class Kept:
    """Relative Dice of one method and modality under one shift, or over all of a kind (`shift` names the kind).

    `by_severity` and `mean` are ratios of mean Dice under the shift to mean clean Dice of the same scores, which a few
    cases near 0 cannot blow up; the mean is over severities first, then over shifts. `interval` is the 95 % bootstrap
    interval of the mean over patients. NaN where the clean Dice is 0.
    """

    method: str
    modality: str
    prompt_origin: str
    shift: str
    by_severity: tuple[float, ...]
    mean: float
    interval: Interval | None
    clean: float
    patients: int


@dataclass(frozen=True)
class Covariate:
    """Spearman's correlation of clean Dice with a covariate over the structures and cases of one modality."""

    method: str
    modality: str
    prompt_origin: str
    name: str
    correlation: float
    interval: Interval | None
    scores: int


def kept_dice(records: Sequence[Record], shifts: Sequence[Shift], seed: int = 0, resamples: int = 2000) -> list[Kept]:
    """A row a shift, and one over all shifts of each kind, for each method, modality and origin of the prompt."""
    rows: list[Kept] = []
    kinds: list[Kind] = ["corruption", "geometry"]
    for key, group in _groups(records).items():
        sums = _Sums(group, shifts, np.random.default_rng(seed), resamples)
        chosen = [(shift.name, [shift]) for shift in shifts]
        chosen += [(kind, [shift for shift in shifts if shift.kind == kind]) for kind in kinds]
        rows += [Kept(*key, name, *sums.kept(some), sums.clean, sums.patients) for name, some in chosen if some]
    return rows


class _Sums:
    """Ratios of one group of records for each shift and severity, and those of its resampled patients."""

    def __init__(self, group: Sequence[Record], shifts: Sequence[Shift], rng: np.random.Generator, resamples: int):
        clean = {_place(r): r.dice for r in group if r.extra["shift"] == CLEAN}
        known = [value for value in clean.values() if value is not None]
        rows = {patient: i for i, patient in enumerate(dict.fromkeys(r.patient_key for r in group))}
        names = [(shift.name, severity) for shift in shifts for severity in range(1, len(shift.levels) + 1)]
        columns = {name: i for i, name in enumerate(names)}
        shifted, reference = np.zeros((2, len(rows), len(columns)))
        for record in group:
            column, before = columns.get((record.extra["shift"], record.extra["severity"])), clean[_place(record)]
            if column is not None and record.dice is not None and before is not None:
                shifted[rows[record.patient_key], column] += record.dice
                reference[rows[record.patient_key], column] += before
        self.patients = len(rows)
        self.clean = float(np.mean(known)) if known else float("nan")
        self._places = {shift.name: [i for name, i in columns.items() if name[0] == shift.name] for shift in shifts}
        drawn = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
        self._ratios = _ratio(shifted.sum(axis=0), reference.sum(axis=0))
        self._resampled = _ratio(drawn @ shifted, drawn @ reference)

    def kept(self, shifts: Sequence[Shift]) -> tuple[tuple[float, ...], float, Interval | None]:
        """By severity (of one shift alone), the mean over severities and then shifts, and its interval."""
        places = [self._places[shift.name] for shift in shifts]
        mean = float(np.mean([self._ratios[place].mean() for place in places]))
        means = np.mean([self._resampled[:, place].mean(axis=1) for place in places], axis=0)
        by_severity = tuple(self._ratios[places[0]].tolist()) if len(shifts) == 1 else ()
        return by_severity, mean, _interval(means, self.patients)


def covariates(records: Sequence[Record], seed: int = 0) -> list[Covariate]:
    """Clean Dice against each covariate, by method, modality and origin of the prompt."""
    found = []
    for key, group in _groups([r for r in records if r.extra["shift"] == CLEAN]).items():
        for name in COVARIATES:
            scored = [(r, r.dice) for r in group if r.extra[name] is not None and r.dice is not None]
            x, y = [float(r.extra[name]) for r, _ in scored], [score for _, score in scored]
            patients = [r.patient_key for r, _ in scored]
            value, interval = rank_correlation(x, y, patients, np.random.default_rng(seed), resamples=500)
            found.append(Covariate(*key, name, value, interval, len(scored)))
    return found


def _groups(records: Sequence[Record]) -> dict[tuple[str, str, str], list[Record]]:
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.method, record.modality, record.prompt_origin), []).append(record)
    return groups


def _place(record: Record) -> Hashable:
    return (*record.case_key, record.structure, record.fold)


def _ratio(shifted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.divide(shifted, reference, out=np.full(shifted.shape, np.nan), where=reference > 0)


def _interval(means: np.ndarray, patients: int) -> Interval | None:
    kept = means[np.isfinite(means)]
    if patients < MINIMUM_PATIENTS or not len(kept):
        return None
    low, high = np.quantile(kept, [0.025, 0.975])
    return float(low), float(high)

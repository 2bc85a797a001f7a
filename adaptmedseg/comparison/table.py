"""One row a strategy: scores on new and old data, change on the old, cost, and paired tests against a reference."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adaptmedseg.comparison.outcome import Outcome
from adaptmedseg.evaluation.bootstrap import bootstrap_interval
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.significance import holm, paired_p, patient_means

CaseKey = tuple[str, str, str]
PatientKey = tuple[str, str]


@dataclass(frozen=True)
class Summary:
    """A mean over `n` cases, each the mean over its structures, and its 95 % bootstrap interval, None where there are
    too few patients for one."""

    mean: float
    n: int
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class StrategyRow:
    """A strategy in the table.

    `change` is that of the old data against the base without training, over the same cases. Cost, where something is
    trained: numbers trained, megabytes of the file, seconds a step and minutes of training (means over seeds), peak of
    memory in MiB (the largest). `p_new` and `p_old` compare with the reference by Wilcoxon's test over patients,
    corrected after Holm over all strategies; None for the reference itself.
    """

    name: str
    seeds_done: int
    seeds: int
    new: Summary | None
    old: Summary | None
    change: Summary | None
    trained: int | None
    file_mb: float | None
    steps: float | None
    seconds_a_step: float | None
    minutes: float | None
    peak_mib: float | None
    p_new: float | None = None
    p_old: float | None = None


@dataclass(frozen=True)
class CaseScores:
    """Mean Dice over structures by case, and whose case it is."""

    dice: dict[CaseKey, float]
    patients: dict[CaseKey, PatientKey]


def case_scores(records: Sequence[Record]) -> CaseScores:
    """What each case has over its structures, and over seeds where the records are of several; cases without a score
    are left out."""
    scores: dict[CaseKey, list[float]] = defaultdict(list)
    for record in records:
        if record.dice is not None:
            scores[record.case_key].append(record.dice)
    patients = {record.case_key: record.patient_key for record in records}
    return CaseScores({key: float(np.mean(values)) for key, values in scores.items()}, patients)


@dataclass(frozen=True)
class _Sides:
    new: CaseScores
    old: CaseScores


def summarise(values: Mapping[CaseKey, float], patients: Mapping[CaseKey, PatientKey], seed: int = 0) -> Summary | None:
    """Mean and interval of one value a case, patients being what is resampled; None without a case."""
    if not values:
        return None
    numbers = list(values.values())
    interval = bootstrap_interval(numbers, [patients[key] for key in values], np.random.default_rng(seed))
    return Summary(float(np.mean(numbers)), len(numbers), interval)


def differences(first: Mapping[CaseKey, float], second: Mapping[CaseKey, float]) -> dict[CaseKey, float]:
    """`second` minus `first` over the cases of both."""
    return {key: second[key] - value for key, value in first.items() if key in second}


def build_table(outcomes: Sequence[Outcome], new: Collection[str], base: str, reference: str) -> list[StrategyRow]:
    """Rows in the order of the outcomes. `new` are the names of the data sets that were trained on, `base` is the
    strategy that trains nothing, `reference` the one that all others are tested against."""
    sides = {
        outcome.name: _Sides(
            case_scores([record for record in outcome.records if record.dataset in new]),
            case_scores([record for record in outcome.records if record.dataset not in new]),
        )
        for outcome in outcomes
    }
    rows = [_row(outcome, sides[outcome.name], sides.get(base)) for outcome in outcomes]
    if reference not in sides:
        return rows
    against = sides[reference]
    others = [None if row.name == reference else sides[row.name] for row in rows]
    p_new = holm([None if other is None else patients_p(against.new, other.new) for other in others])
    p_old = holm([None if other is None else patients_p(against.old, other.old) for other in others])
    return [replace(row, p_new=p, p_old=q) for row, p, q in zip(rows, p_new, p_old, strict=True)]


def patients_p(reference: CaseScores, other: CaseScores) -> float | None:
    """Wilcoxon's p over patients, by the cases that both have; None where there is nothing to test."""
    changes = differences(reference.dice, other.dice)
    return paired_p(patient_means(list(changes.values()), [other.patients[key] for key in changes]))


def _row(outcome: Outcome, sides: _Sides, base: _Sides | None) -> StrategyRow:
    costs, new, old = outcome.costs, sides.new, sides.old
    change = {} if base is None else differences(base.old.dice, old.dice)
    peaks = [cost.peak_mib for cost in costs if cost.peak_mib is not None]
    return StrategyRow(
        name=outcome.name,
        seeds_done=len(costs),
        seeds=outcome.seeds,
        new=summarise(new.dice, new.patients),
        old=summarise(old.dice, old.patients),
        change=summarise(change, old.patients),
        trained=costs[0].trained if costs else None,
        file_mb=_mean([cost.file_bytes / 1e6 for cost in costs]),
        steps=_mean([cost.steps for cost in costs]),
        seconds_a_step=_mean([60 * cost.minutes / cost.steps for cost in costs]),
        minutes=_mean([cost.minutes for cost in costs]),
        peak_mib=max(peaks) if peaks else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def by_structure(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], dict[str, float]]:
    """Mean Dice over cases, by data set and structure, of every strategy that was scored there."""
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        for record in outcome.records:
            if record.dice is not None:
                scores[record.dataset, record.structure][outcome.name].append(record.dice)
    return {key: {name: float(np.mean(v)) for name, v in found.items()} for key, found in scores.items()}

"""Strategies judged against the base and a reference, in groups such as new and old data, data sets or sites."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adaptmedseg.comparison.finished import FinishedRun
from adaptmedseg.comparison.outcome import mean_over_seeds
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.significance import holm
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, PairedRow, Row, aggregate, paired_differences

Group = Callable[[Record], str]
_Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Judged:
    """A strategy in one group and structure: its mean, its change against the base without training, and its
    difference from the reference; these are None where they share no case. `p` is corrected after Holm over all rows
    that were judged together. `seeds` counts trainings, and `seed_sd` is the deviation of their means."""

    row: Row
    seeds: int
    seed_sd: float | None
    change: PairedRow | None
    against: PairedRow | None
    p: float | None


@dataclass(frozen=True)
class Scores:
    """The scores to judge: `records` averaged over seeds, one a strategy, case and structure; `runs` one by one."""

    runs: Sequence[FinishedRun]
    records: list[Record]

    @classmethod
    def of(cls, runs: Sequence[FinishedRun]) -> "Scores":
        """Scores of runs with the same number of patients; the runs' strategies name the methods."""
        by_strategy: dict[str, list[FinishedRun]] = defaultdict(list)
        for run in runs:
            by_strategy[run.strategy].append(run)
        return cls(runs, [r for of_one in by_strategy.values() for r in mean_over_seeds([x.records for x in of_one])])


def judge(scores: Scores, base: str, reference: str, group: Group, *, structures: bool, seed: int = 0) -> list[Judged]:
    """Rows by group and strategy, in the order of the runs; with `structures` for each structure, else over all."""
    order = ranked(scores, base)
    rows = [r for r in aggregate(scores.records, order, seed, group=group) if structures != _over_all(r)]
    changes = _pairs(scores.records, base, order, group, seed)
    against = changes if reference == base else _pairs(scores.records, reference, order, group, seed)
    found = [against.get(_key(row)) for row in rows]
    corrected = holm([None if pair is None else pair.p for pair in found])
    spread = _seed_means(scores.runs, group, structures)
    judged = []
    for row, pair, p in zip(rows, found, corrected, strict=True):
        means = spread[row.modality, row.structure, row.method]
        trained = {run.seed for run in scores.runs if run.strategy == row.method and run.seed is not None}
        deviation = float(np.std(list(means.values()), ddof=1)) if len(means) > 1 else None
        judged.append(Judged(row, len(trained), deviation, changes.get(_key(row)), pair, p))
    return judged


def ranked(scores: "Scores", base: str) -> list[str]:
    """The base, then the strategies by their mean over all cases, the highest first."""
    cases: dict[str, dict[object, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in scores.records:
        if record.dice is not None:
            cases[record.method][record.case_key].append(record.dice)
    names = list(dict.fromkeys(run.strategy for run in scores.runs))
    means = {name: float(np.mean([np.mean(v) for v in cases[name].values()])) if cases[name] else 0.0 for name in names}
    return sorted(names, key=lambda name: (name != base, -means[name]))


def _over_all(row: Row | PairedRow) -> bool:
    return row.structure == ALL_STRUCTURES


def _key(row: Row) -> _Key:
    return row.modality, row.structure, row.method, row.prompt_origin


def _pairs(
    records: Sequence[Record], other: str, order: Sequence[str], group: Group, seed: int
) -> dict[_Key, PairedRow]:
    """Paired differences of every strategy from `other`; where a strategy may be compared with it in several ways, the
    first, which asked the most alike."""
    found: dict[_Key, PairedRow] = {}
    for name in order:
        for pair in paired_differences(records, other, name, group=group, seed=seed) if name != other else ():
            found.setdefault((pair.modality, pair.structure, name, pair.adapted_origin), pair)
    return found


def _seed_means(
    runs: Sequence[FinishedRun], group: Group, structures: bool
) -> dict[tuple[str, str, str], dict[int, float]]:
    """Mean Dice of each seed by group, structure and strategy: a case's mean over structures first, as in the table."""
    values: dict[tuple[str, str, str, int], dict[object, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for record in run.records if run.seed is not None else ():
            if record.dice is not None and run.seed is not None:
                structure = record.structure if structures else ALL_STRUCTURES
                values[group(record), structure, run.strategy, run.seed][record.case_key].append(record.dice)
    found: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for (place, structure, strategy, seed), cases in values.items():
        mean = float(np.mean([np.mean(scores) for scores in cases.values()]))
        found[place, structure, strategy][seed] = mean
    return found

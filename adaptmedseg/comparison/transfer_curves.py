"""Learning curves: mean Dice on new data by the number of patients that a strategy was trained on."""

from collections import defaultdict
from collections.abc import Sequence

from adaptmedseg.comparison.finished import Finished, FinishedRun
from adaptmedseg.comparison.judge import Scores
from adaptmedseg.comparison.sides import on_new
from adaptmedseg.comparison.transfer_tables import ALL_PATIENTS, BASE_TICK, Curves
from adaptmedseg.evaluation.group_figures import CurvePoint
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, aggregate

EVERY_NEW = "all new data"


def learning_curves(found: Finished, base: str, seed: int) -> tuple[list[str], Curves]:
    """Ticks that hold a point, and curves by group and strategy, of the strategies that were trained on at least two
    numbers of patients. They start at the base, as no patients, unless they are from scratch or it was trained too."""
    by_count: dict[str, set[int | None]] = defaultdict(set)
    for run in found.runs:
        if run.cost is not None:
            by_count[run.strategy].add(run.patients)
    by_count = {name: counts for name, counts in by_count.items() if len(counts) > 1}
    counts = sorted({c for of_one in by_count.values() for c in of_one if c is not None})
    stages: list[tuple[str, int | None]] = [*((str(count), count) for count in counts), (ALL_PATIENTS, None)]
    curves: dict[str, dict[str, list[CurvePoint]]] = defaultdict(lambda: defaultdict(list))
    start = _points(_untrained(found, base), found, BASE_TICK, seed) if by_count else {}
    for name in by_count:
        for group, point in start.items() if name not in found.scratch else ():
            curves[group][name].append(point)
        for tick, patients in stages:
            runs = [run for run in found.runs if run.strategy == name and run.patients == patients]
            for group, point in _points(runs, found, tick, seed).items():
                curves[group][name].append(point)
    held = {point.tick for of_group in curves.values() for points in of_group.values() for point in points}
    return [tick for tick in (BASE_TICK, *(tick for tick, _ in stages)) if tick in held], curves


def _untrained(found: Finished, base: str) -> list[FinishedRun]:
    """The base's scores, once for each fold, as they are the same at any number of patients; none of a trained one."""
    runs = [run for run in found.runs if run.strategy == base]
    if any(run.cost is not None for run in runs):
        return []
    return list({run.fold: run for run in runs}.values())


def _points(runs: Sequence[FinishedRun], found: Finished, tick: str, seed: int) -> dict[str, CurvePoint]:
    """Means on all new data, and on each new data set; prompts from the truth left out."""
    records = [record for record in on_new(Scores.of(runs).records, found) if not record.is_oracle]
    points: dict[str, CurvePoint] = {}
    for group in (_every_new, dataset_of):
        for row in aggregate(records, seed=seed, group=group):
            if row.structure == ALL_STRUCTURES and row.mean is not None:
                points.setdefault(row.modality, CurvePoint(tick, row.mean, row.interval))
    return points


def _every_new(_record: Record) -> str:
    return EVERY_NEW


def dataset_of(record: Record) -> str:
    """A data set with its modality, as tables name it."""
    return f"{record.dataset} ({record.modality})"

"""What the jobs of a comparison left behind, by strategy: scores averaged over seeds, and what training cost."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import ValidationError

from adaptmedseg.comparison.job import COST, SCORES, Cost
from adaptmedseg.comparison.plan import Task, is_done
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record, read_results


@dataclass(frozen=True)
class Outcome:
    """A strategy's scores, one a case and structure, and the cost of each training that ended well; `seeds` were asked
    for, none where nothing is trained."""

    name: str
    records: list[Record]
    costs: list[Cost]
    seeds: int


def read_outcomes(tasks: Sequence[Task]) -> list[Outcome]:
    """Outcomes of the strategies of which at least one job is done, in their order."""
    by_name: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_name[task.job.name].append(task)
    found = []
    for name, siblings in by_name.items():
        done = [task for task in siblings if is_done(task)]
        if done:
            records = mean_over_seeds([read_results(task.folder / SCORES) for task in done])
            costs = [_cost(task) for task in done if task.job.config is not None]
            found.append(Outcome(name, records, costs, sum(task.seed is not None for task in siblings)))
    return found


def _cost(task: Task) -> Cost:
    path = task.folder / COST
    try:
        return Cost.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError):
        raise UserError(f"{path}: is damaged; remove {task.folder} and run again") from None


def mean_over_seeds(runs: Sequence[Sequence[Record]]) -> list[Record]:
    """One record a case and structure: means of Dice and volume over the runs that scored it."""
    groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for records in runs:
        for record in records:
            groups[(*record.case_key, record.structure, record.prompt_origin)].append(record)
    return [_mean(group) for group in groups.values()]


def _mean(group: Sequence[Record]) -> Record:
    scores = [record.dice for record in group if record.dice is not None]
    dice = float(np.mean(scores)) if scores else None
    return replace(group[0], dice=dice, volume_ml=float(np.mean([record.volume_ml for record in group])))

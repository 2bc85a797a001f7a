"""What the jobs of a comparison left behind, by strategy: scores averaged over seeds, and what training cost."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from adaptmedseg.comparison.job import COST, SCORES, Cost
from adaptmedseg.comparison.plan import Task, is_done
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import NOT_NUMBERS, Record, read_scores


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
            records = mean_over_seeds([read_scores(task.folder / SCORES) for task in done])
            costs = [_cost(task) for task in done if task.job.config is not None]
            found.append(Outcome(name, records, costs, sum(task.seed is not None for task in siblings)))
    return found


def _cost(task: Task) -> Cost:
    path = task.folder / COST
    try:
        return Cost.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        raise UserError(f"{path}: is damaged; remove {task.folder} and run again") from None


def mean_over_seeds(runs: Sequence[Sequence[Record]]) -> list[Record]:
    """One record a case and structure: means of all numbers over the runs that scored it and have a value there."""
    groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for records in runs:
        for record in records:
            groups[(*record.case_key, record.structure, record.prompt_origin)].append(record)
    return [_mean(group) for group in groups.values()]


def _mean(group: Sequence[Record]) -> Record:
    first = group[0]
    extra = {key: _mean_of([record.extra.get(key) for record in group], value) for key, value in first.extra.items()}
    if any("prediction_empty" in record.extra for record in group):
        extra["prediction_empty"] = all(record.extra.get("prediction_empty") for record in group)
    wrong = dict.fromkeys(key for record in group for key in record.not_numbers)
    return replace(
        first,
        dice=_mean_of([record.dice for record in group]),
        volume_ml=_mean_of([record.volume_ml for record in group]),
        extra=extra | ({NOT_NUMBERS: list(wrong)} if wrong else {}),
    )


def _mean_of(values: Sequence[Any], otherwise: Any = None) -> Any:
    """The mean of those that are numbers; what is none of numbers, as a name, stays as it was."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return float(np.mean(numbers)) if numbers else otherwise

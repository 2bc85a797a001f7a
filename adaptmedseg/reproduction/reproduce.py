"""From a recipe, data and weights to a receipt: what can be scored is, and of the rest it is said what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from adaptmedseg.data.files import write_atomic
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record, write_results
from adaptmedseg.evaluation.slices.scores import BACKGROUND
from adaptmedseg.evaluation.study import RESULTS
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, aggregate
from adaptmedseg.inference.case_note import versions
from adaptmedseg.reproduction.evaluators import Evaluator, GivenModel, GivenSet, Progress
from adaptmedseg.reproduction.receipt import PAGE, RECEIPT, Line, Receipt
from adaptmedseg.reproduction.recipes import ALL, Published, Recipe
from adaptmedseg.reproduction.slices import SliceEvaluator, SupportEvaluator
from adaptmedseg.reproduction.volumes import VolumeEvaluator

EVALUATORS: dict[str, Evaluator] = {
    "volumes": VolumeEvaluator(),
    "slices": SliceEvaluator(),
    "supports": SupportEvaluator(),
}
TOGETHER = " + "  # joins the groups of a row over several


@dataclass(frozen=True)
class Request:
    """What the user gave: folders with the group each is of, where stated, and model files with their row, where
    stated. `base` overrides what adapters name; `seed` is that of the bootstrap."""

    data: Sequence[tuple[str | None, Path]] = ()
    weights: Sequence[tuple[str | None, str]] = ()
    base: str | None = None
    seed: int = 0


@dataclass
class _Found:
    """What was given, opened, and what came of it."""

    recipe: Recipe
    evaluator: Evaluator
    models: dict[str, GivenModel] = field(default_factory=dict)
    sets: list[GivenSet] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


def reproduce(
    recipe: Recipe, request: Request, device: torch.device, progress: Progress | None = None
) -> tuple[Receipt, list[Record]]:
    """Check, score and compare.

    Raises:
        UserError: something given cannot be read, is damaged, fits no row, or was trained on the cases to be scored.
    """
    found = _Found(recipe, EVALUATORS[recipe.evaluator])
    _open(found, request)
    wanted = _wanted(found)
    if found.models and found.sets and wanted:
        found.records = found.evaluator.score(recipe, found.models, found.sets, wanted, device, progress)
    lines = [
        _line(found, row, method, published, request.seed)
        for row in recipe.rows
        for method, published in row.values.items()
    ]
    receipt = Receipt(
        recipe,
        lines,
        [given.facts for given in found.sets],
        [given.facts for given in found.models.values()],
        request.seed,
        versions(),
    )
    return receipt, found.records


def write_receipt(out: Path, receipt: Receipt, records: Sequence[Record]) -> None:
    """Write the scores, the page and, last, receipt.json. UserError where `out` holds another receipt."""
    check_free(out)
    write_results(out / RESULTS, records)
    write_atomic(out / PAGE, receipt.as_markdown())
    write_atomic(out / RECEIPT, receipt.as_json())


def check_free(out: Path) -> None:
    """UserError where `out` cannot take a receipt."""
    if (out / RECEIPT).exists() or (out / RESULTS).exists():
        raise UserError(f"{out}: holds another receipt or evaluation; choose a new --out")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder for --out")


def _open(found: _Found, request: Request) -> None:
    recipe, evaluator = found.recipe, found.evaluator
    for group, folder in request.data:
        if group is not None and group not in recipe.data:
            raise UserError(f"--data {group}={folder}: {recipe.name} has data of {', '.join(recipe.data)}; name one")
        given = evaluator.sets(folder, group, recipe)
        if not given:
            raise UserError(f"--data {folder}: has no test case of {' or '.join(recipe.data)}; see `reproduce list`")
        twice = [old for old in found.sets if any(old.shares_cases(new) for new in given)]
        if twice:
            raise UserError(
                f"--data {folder}: has test cases of '{twice[0].facts.folder}', which was given as "
                f"{twice[0].facts.group} already and would count twice; give each set once"
            )
        found.sets += given
    for method, file in request.weights:
        model = evaluator.model(file, request.base)
        name = method or _row_of(recipe, model, file)
        if name not in recipe.ours:
            raise UserError(f"--weights {name}={file}: is no row of {recipe.name}; there are {', '.join(recipe.ours)}")
        if name in found.models:
            raise UserError(f"--weights {file}: row '{name}' has its weights already; say which row with ROW=FILE")
        found.models[name] = replace(model, facts=replace(model.facts, method=name))


def _row_of(recipe: Recipe, model: GivenModel, file: str) -> str:
    """The only row that a model fits."""
    fitting = [name for name in recipe.ours if recipe.models[name].kind == model.kind]
    if len(fitting) != 1:
        raise UserError(
            f"--weights {file}: fits {'several rows' if fitting else 'no row'} of {recipe.name}; say which is meant "
            f"with ROW=FILE, one of {', '.join(recipe.ours)}"
        )
    return fitting[0]


def _wanted(found: _Found) -> list[str]:
    """The published structures that any of the sets annotates; all of them where the table has their mean alone."""
    held = {name for given in found.sets for name in given.structures}
    if all(row.structure == ALL for row in found.recipe.rows):
        return sorted(held)
    return [name for name in _structures(found.recipe, found.evaluator) if name in held]


def _structures(recipe: Recipe, evaluator: Evaluator, groups: Sequence[str] | None = None) -> list[str]:
    rows = [row for row in recipe.rows if groups is None or row.group in groups]
    return list(dict.fromkeys(evaluator.structure(row.structure) for row in rows if row.structure != ALL))


def _line(found: _Found, row: Published, method: str, published: float, seed: int) -> Line:
    recipe, measure = found.recipe, row.measure or found.recipe.measure
    place = (method, row.group, row.structure, measure)
    if recipe.models[method].kind == "other":
        return Line.without(place, published, "not ours")
    incomparable = recipe.not_comparable.get(measure) or recipe.not_comparable.get(row.structure)
    if incomparable:
        return Line.without(place, published, "not comparable", incomparable)
    lack = _lack(found, row, method)
    if lack:
        return Line.without(place, published, "missing", lack)
    silent = found.evaluator.not_given(recipe, found.models[method], _name(found, row.structure))
    if silent:
        return Line.without(place, published, "not given", silent)
    groups = row.group.split(TOGETHER)
    structure = ALL_STRUCTURES if row.structure == ALL else _name(found, row.structure)
    chosen = [
        replace(record, modality=row.group)
        for record in found.records
        if record.method == method
        and record.modality in groups
        and (record.structure != BACKGROUND if structure == ALL_STRUCTURES else record.structure == structure)
    ]
    rows = [r for r in aggregate(chosen, seed=seed, value=_value(measure)) if r.structure == structure]
    if len(rows) != 1 or rows[0].mean is None:
        return Line.without(
            place, published, "missing", f"{row.group}, {row.structure}: no case has a value of {measure}"
        )
    return Line.beside(place, published, rows[0], row.scale)


def _lack(found: _Found, row: Published, method: str) -> str:
    """What is missing for a figure of ours, in words; empty where nothing is."""
    recipe, evaluator = found.recipe, found.evaluator
    groups = row.group.split(TOGETHER)
    held: Mapping[str, set[str]] = {
        group: {name for given in found.sets if given.facts.group == group for name in given.structures}
        for group in groups
    }
    for group in groups:
        if not held[group]:
            return f"data of {group}: {recipe.data[group]}"
    if method not in found.models:
        return f"weights of {method}: {recipe.models[method].needs}"
    for group in groups:
        wanted = _structures(recipe, evaluator, [group]) if row.structure == ALL else [_name(found, row.structure)]
        lacking = [name for name in wanted if name not in held[group]]
        if lacking:
            return f"data of {group} in which {', '.join(lacking)} is annotated"
    return ""


def _name(found: _Found, structure: str) -> str:
    return found.evaluator.structure(structure)


def _value(measure: str) -> Callable[[Record], float | None]:
    """What of a record a measure is."""
    if measure == "dice":
        return lambda record: record.dice
    return lambda record: record.extra.get(measure)

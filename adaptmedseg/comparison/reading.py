"""Reading what comparisons and evaluations left on disk, to be judged together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from adaptmedseg.comparison.finished import Finished, FinishedRun
from adaptmedseg.comparison.job import COST, JOB, SCORES, Cost
from adaptmedseg.comparison.locate import locate
from adaptmedseg.comparison.plan import PLAN, Terms
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import read_scores
from adaptmedseg.evaluation.study import RESULTS, StudyData, asked_cases, data_notes, read_notes, study_data
from adaptmedseg.inference.loading import UNET_HASH

DEPTH = 3  # folders of comparisons below the one given: patients, folds
FROM_SCRATCH = "unet"  # `model` of a configuration that takes no base


def read_finished(folders: Sequence[Path]) -> Finished:
    """Everything in comparisons (folders that hold one, or several below them) and evaluations.

    A folder that is given twice, or with one above it, is read once. UserError for a folder that holds neither, for
    comparisons on other terms than the first, and for two sources of scores under one name.
    """
    found = Finished()
    read: set[Path] = set()
    for folder in folders:
        comparisons = sorted({path.parent for depth in range(DEPTH) for path in folder.glob("*/" * depth + PLAN)})
        if not comparisons and not (folder / RESULTS).is_file():
            raise UserError(
                f"{folder}: holds neither a comparison nor an evaluation; give what `adaptmedseg compare` or "
                "`adaptmedseg evaluate` wrote"
            )
        for path in comparisons or [folder]:
            if path.resolve() in read:
                continue
            read.add(path.resolve())
            (_add_comparison if comparisons else add_evaluation)(found, path)
    if not found.runs:
        raise UserError(f"{folders[0]}: no strategy has scores there; finish `adaptmedseg compare` first")
    found.check_once()
    return found


def add_evaluation(found: Finished, folder: Path) -> None:
    """Add what `evaluate` wrote; its first method is its base. UserError for a method that is there already."""
    notes, records = read_notes(folder), read_scores(folder / RESULTS)
    methods = list(dict.fromkeys(record.method for record in records))
    for method in methods:
        found.add(FinishedRun(method, [r for r in records if r.method == method], folder=folder, evaluated=True))
        found.notes.methods[method] = notes.methods.get(method, "")
        if f"{method}, {UNET_HASH}" in notes.hashes:
            found.scratch.add(method)
    found.first_evaluated |= set([name for name in methods if name not in found.scratch][:1])
    found.notes.data = notes.data | found.notes.data
    found.notes.hashes |= notes.hashes
    found.notes.licences |= notes.licences
    found.notes.versions |= notes.versions


def _add_comparison(found: Finished, folder: Path) -> None:
    terms = _read_terms(folder / PLAN)
    _check_same(folder, terms, found.terms)
    found.terms = found.terms or terms
    for paths, names in ((terms.new, found.new), (terms.old, found.old)):
        for path, digest in paths.items():
            name = _note_data(found, Path(path), digest, folder, terms.fold)
            names.add(name)
            found.notes.hashes[f"{name}, manifest"] = digest
    if not found.notes.hashes.get("base weights"):
        found.notes.hashes["base weights"] = terms.base_hash
    for job in sorted({*folder.glob(f"*/{JOB}"), *folder.glob(f"*/*/{JOB}")}):
        _add_run(found, job.parent, terms)


def _read_terms(path: Path) -> Terms:
    try:
        return Terms.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        raise UserError(f"{path}: is damaged; remove the folder or leave it out") from None


def _check_same(folder: Path, terms: Terms, first: Terms | None) -> None:
    """Scores are compared where the same was learnt in the same budget: patients and fold alone may differ."""
    for key in ("new", "old", "base_hash", "budget"):
        values = [getattr(one, key) for one in (first or terms, terms)]
        if key in ("new", "old"):  # the same data may lie in another folder
            values = [sorted(value.values()) for value in values]
        if values[0] != values[1]:
            raise UserError(f"{folder}: was compared on other terms than the first (its {key} differs); judge it apart")


def _note_data(found: Finished, stated: Path, digest: str, comparison: Path, fold: int | None) -> str:
    """Note cases, origin and licence of a data set; gives its name, of one that cannot be read its folder's."""
    try:
        path = locate(stated, digest, comparison)
        dataset = PreparedDataset.open(path)
        source = study_data(path, "test", fold if dataset.folds else None)
    except UserError as error:
        found.unread[stated.name] = str(error).rstrip(".")
        return stated.name
    found.notes.data |= data_notes([source])
    before = found.notes.asked.get(dataset.name, [])
    found.notes.asked[dataset.name] = list(dict.fromkeys([*before, *asked_cases([source])[dataset.name]]))
    new = [case for case in source.cases if case.id not in before]
    earlier = found.sources.get(dataset.name)
    found.sources[dataset.name] = StudyData(dataset, [*(earlier.cases if earlier else ()), *new])
    return dataset.name


def _add_run(found: Finished, folder: Path, terms: Terms) -> None:
    """Add one job of a comparison, or say what of it is missing."""
    job = _read_job(folder / JOB)
    if job is None:
        found.missing.append(f"{folder} is left out: its {JOB} is damaged.")
        return
    strategy, config = str(job["name"]), job["config"] or {}
    seed = config.get("seed")
    try:
        records = read_scores(folder / SCORES)
        cost = _read_cost(folder / COST) if config else None
    except UserError as error:
        shown = FinishedRun(strategy, [], seed).label
        found.missing.append(f"{shown} is left out: {str(error).rstrip('.').split(';')[0]}.")
        return
    if {record.method for record in records} - {strategy}:
        found.missing.append(f"{folder} is left out: its scores are not those of '{strategy}', which its {JOB} names.")
        return
    if config.get("model") == FROM_SCRATCH:
        found.scratch.add(strategy)
    if config:
        found.configs.setdefault(strategy, yaml.safe_dump(config, sort_keys=False))
    else:
        found.untrained.add(strategy)
    found.add(FinishedRun(strategy, records, seed, terms.patients, terms.fold, cost, folder))


def _read_cost(path: Path) -> Cost:
    try:
        return Cost.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        raise UserError(f"{path} is missing or damaged") from None


def _read_job(path: Path) -> dict[str, Any] | None:
    """A job's text as far as it can be read: one that an earlier version wrote counts as well."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    if not isinstance(values, dict) or not {"name", "config"} <= values.keys():
        return None
    config = values["config"]
    if config is not None and not (isinstance(config, dict) and isinstance(config.get("seed"), int)):
        return None
    return values

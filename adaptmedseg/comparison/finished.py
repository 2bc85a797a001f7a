"""What comparisons and evaluations left on disk, read again to be judged together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from adaptmedseg.comparison.job import COST, JOB, SCORES, Cost
from adaptmedseg.comparison.plan import PLAN, Terms
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record, read_results
from adaptmedseg.evaluation.study import RESULTS, StudyData, StudyNotes, asked_cases, data_notes, read_notes, study_data

DEPTH = 3  # folders of comparisons below the one given: patients, folds
FROM_SCRATCH = "unet"  # `model` of a configuration that takes no base


@dataclass(frozen=True)
class FinishedRun:
    """The scores of one training, or of a model that was asked: `seed`, `patients` (of each data set; None for all) and
    `fold` as it was trained, where a comparison says so."""

    strategy: str
    records: list[Record]
    seed: int | None = None
    patients: int | None = None
    fold: int | None = None
    cost: Cost | None = None
    folder: Path | None = None


@dataclass
class Finished:
    """All that was found: `new` and `old` are names of data sets, `scratch` the strategies that start from no base,
    `missing` sentences on what should be there and is not, `notes` what a report says beside the scores, `configs` one
    configuration a strategy, `sources` the data sets that can be read from here with their cases to score, `unread` why
    others cannot."""

    runs: list[FinishedRun] = field(default_factory=list)
    new: set[str] = field(default_factory=set)
    old: set[str] = field(default_factory=set)
    scratch: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    notes: StudyNotes = field(default_factory=StudyNotes)
    configs: dict[str, str] = field(default_factory=dict)
    terms: Terms | None = None
    sources: dict[str, StudyData] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Sentences on all that is missing."""
        if not self.unread:
            return self.missing
        why = next(iter(self.unread.values()))
        names = ", ".join(self.unread)
        return [*self.missing, f"Licence and number of cases are not known of {names}: {why}."]

    @property
    def strategies(self) -> list[str]:
        return list(dict.fromkeys(run.strategy for run in self.runs))


def read_finished(folders: Sequence[Path]) -> Finished:
    """Everything in comparisons (folders that hold one, or several below them) and evaluations.

    UserError for a folder that holds neither, for comparisons on other terms than the first, and for two sources of
    scores under one name.
    """
    found = Finished()
    for folder in folders:
        comparisons = sorted({path.parent for depth in range(DEPTH) for path in folder.glob("*/" * depth + PLAN)})
        if not comparisons and not (folder / RESULTS).is_file():
            raise UserError(
                f"{folder}: holds neither a comparison nor an evaluation; give what `adaptmedseg compare` or "
                "`adaptmedseg evaluate` wrote"
            )
        for path in comparisons:
            _add_comparison(found, path)
        if not comparisons:
            add_evaluation(found, folder)
    if not found.runs:
        raise UserError(f"{folders[0]}: no strategy has scores there; finish `adaptmedseg compare` first")
    return found


def add_evaluation(found: Finished, folder: Path) -> None:
    """Add what `evaluate` wrote. UserError for a method that is there already."""
    notes, records = read_notes(folder), read_results(folder / RESULTS)
    for method in dict.fromkeys(record.method for record in records):
        if method in found.strategies:
            raise UserError(f"{folder}: '{method}' has scores elsewhere too; evaluate it under another name")
        found.runs.append(FinishedRun(method, [r for r in records if r.method == method], folder=folder))
        found.notes.methods[method] = notes.methods.get(method, "")
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
            name = _note_data(found, Path(path), terms.fold)
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


def _note_data(found: Finished, path: Path, fold: int | None) -> str:
    """Note cases, origin and licence of a data set; gives its name."""
    try:
        dataset = PreparedDataset.open(path)
        source = study_data(path, "test", fold if dataset.folds else None)
    except UserError as error:
        found.unread[path.name] = str(error).rstrip(".")
        return path.name
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
    config = job.get("config") or {}
    strategy, seed = str(job.get("name", folder.name)), config.get("seed")
    shown = strategy if seed is None else f"{strategy}, seed {seed}"
    try:
        records = read_results(folder / SCORES)
        cost = Cost.model_validate_json((folder / COST).read_text(encoding="utf-8")) if config else None
    except (UserError, OSError, ValidationError, UnicodeDecodeError) as error:
        why = str(error) if isinstance(error, UserError) else f"{folder / COST} is missing or damaged"
        found.missing.append(f"{shown} is left out: {why.rstrip('.').split(';')[0]}.")
        return
    if config.get("model") == FROM_SCRATCH:
        found.scratch.add(strategy)
    if config and strategy not in found.configs:
        found.configs[strategy] = yaml.safe_dump(config, sort_keys=False)
    found.runs.append(FinishedRun(strategy, records, seed, terms.patients, terms.fold, cost, folder))


def _read_job(path: Path) -> dict[str, Any]:
    """A job's text as far as it can be read: one that an earlier version wrote counts as well."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return values if isinstance(values, dict) else {}

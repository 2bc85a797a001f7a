"""The folder that scores of slices are written to: scores, tables, curves, and which model each score is of."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from adaptmedseg.data.files import write_atomic
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record, read_results, results_csv, write_results
from adaptmedseg.evaluation.slices.asking import Queries
from adaptmedseg.evaluation.slices.curves import support_curve_svg
from adaptmedseg.evaluation.slices.diversity import diversity_points, diversity_svg, diversity_table
from adaptmedseg.evaluation.slices.points import support_points
from adaptmedseg.evaluation.slices.tables import slice_report
from adaptmedseg.evaluation.study import RESULTS
from adaptmedseg.inference.prompt_origin import supports

TABLES, MODELS, SETS, DIVERSITY = "tables.md", "models.json", "sets.json", "task_diversity.svg"
T = TypeVar("T")


@dataclass(frozen=True)
class ScoredModel:
    """What stands behind a method of a table: the model as the user named it, the hashes of its weights, the `seed`
    that supports were drawn with, None where there were none, and the structures it is known to have `learned`."""

    file: str
    hashes: dict[str, str]
    seed: int | None = None
    learned: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scores:
    """Scores, the models behind their methods, and the `content_sha256` of their sets by name."""

    records: Sequence[Record] = ()
    models: Mapping[str, ScoredModel] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)

    def joined(self, new: Scores) -> Scores:
        """Both; a score that is given again is replaced."""
        keys = {record.score_key for record in new.records}
        kept = [record for record in self.records if record.score_key not in keys]
        return Scores([*kept, *new.records], {**self.models, **new.models}, {**self.sets, **new.sets})


def earlier_scores(out: Path, split: str, *, append: bool) -> Scores:
    """What is to be added to: nothing in a new folder. UserError for one that cannot take scores of this split."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder for --out")
    if not (out / RESULTS).exists():
        return Scores()
    if not append:
        raise UserError(f"{out}: holds another evaluation; choose a new --out, or add to it with --append")
    records = read_results(out / RESULTS)
    others = sorted({record.split for record in records} - {split})
    if others:
        raise UserError(f"{out}: holds scores of the split '{others[0]}', not '{split}'; choose a new --out")
    models = _read_table(out / MODELS, "models", lambda entry: ScoredModel(**entry))
    # Folders of earlier releases have no table of sets.
    sets = _read_table(out / SETS, "sets", str) if (out / SETS).exists() else {}
    return Scores(records, models, sets)


def _read_table(path: Path, what: str, read: Callable[[Any], T]) -> dict[str, T]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {name: read(entry) for name, entry in table.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"{path}: is missing or damaged, so that nobody can tell which {what} the scores beside it are of; choose "
            "a new --out"
        ) from None


def check_same(out: Path, before: Mapping[str, ScoredModel], now: Mapping[str, ScoredModel]) -> None:
    """UserError where a method is another model than at the scores before, or was shown supports of another draw."""
    for name, new in now.items():
        old = before.get(name, new)
        if old.hashes != new.hashes:
            raise UserError(
                f"{out}: its scores of '{name}' are those of {old.file}, whose weights are not those of {new.file}; "
                "choose a new --out"
            )
        if old.seed != new.seed:
            raise UserError(
                f"{out}: its scores of '{name}' are of supports drawn with --seed {old.seed}, not {new.seed}; choose "
                "a new --out"
            )


def check_same_sets(out: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """UserError where a set is not the one that scores before are of, though it has the name."""
    for name, content in now.items():
        if before.get(name, content) != content:
            raise UserError(
                f"{out}: its scores of the set '{name}' are of other images, masks or splits than this set of the name "
                "has; choose a new --out"
            )


def check_draws(out: Path, before: Sequence[Record], queries: Queries, shots: Sequence[int]) -> None:
    """UserError where some of a structure's scores before would stay beside new ones with as many supports: supports
    are drawn apart from the patients that are scored, so that those of fewer images are others."""
    origins = {supports(count) for count in shots}
    old: dict[str, set[str]] = defaultdict(set)
    for record in before:
        if record.dataset == queries.dataset.name and record.prompt_origin in origins:
            old[record.structure].add(record.case)
    for structure in queries.structures:
        new = {item.id for item in queries.items if structure in item.present()}
        if new and old[structure] - new:
            raise UserError(
                f"{out}: has scores of '{structure}' in {len(old[structure])} images of {queries.dataset.name}, not "
                f"all of them among the {len(new)} asked for, whose supports are others; raise --limit or choose a new "
                "--out"
            )


def write_scores(out: Path, scores: Scores, reference: str) -> str:
    """Write scores, tables and curves; gives the tables, in which methods are compared with `reference`. The scores
    come last: a folder with scores is complete."""
    learned = {name: frozenset(model.learned) for name, model in scores.models.items() if model.learned}
    diversity = diversity_points(scores.records, learned)
    report = "\n".join([slice_report(scores.records, reference), *([diversity_table(diversity)] if diversity else [])])
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / TABLES, report)
    points = support_points(scores.records)
    for dataset in dict.fromkeys(point.dataset for point in points):
        write_atomic(out / f"supports_{dataset}.svg", support_curve_svg(points, dataset))
    if diversity:
        write_atomic(out / DIVERSITY, diversity_svg(diversity))
    table = {name: asdict(model) for name, model in scores.models.items()}
    write_atomic(out / MODELS, json.dumps(table, indent=1) + "\n")
    write_atomic(out / SETS, json.dumps(dict(scores.sets), indent=1) + "\n")
    write_atomic(out / "results.csv", results_csv(scores.records))
    write_results(out / RESULTS, scores.records)
    return report

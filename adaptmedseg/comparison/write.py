"""A comparison's table as text, CSV and a report."""

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from adaptmedseg.comparison.outcome import Outcome
from adaptmedseg.comparison.plan import Plan
from adaptmedseg.comparison.table import StrategyRow, Summary, by_structure
from adaptmedseg.data.files import write_atomic
from adaptmedseg.evaluation.page import ReportTable
from adaptmedseg.evaluation.report import ReportPaths
from adaptmedseg.evaluation.study import RESULTS, StudyNotes, asked_cases, data_notes, save_study
from adaptmedseg.evaluation.study_report import ReportText, package_versions, report_study
from adaptmedseg.evaluation.wording import MISSING, change, change_interval, count, interval, listing, score

HEADER = [
    "strategy", "seeds", "Dice new", "95 % interval", "n", "Dice old", "95 % interval", "n", "change on old",
    "95 % interval", "trained", "file MB", "steps", "s/step", "minutes", "peak MiB", "p new", "p old",
]  # fmt: skip
REPORT = "report"


def cells(row: StrategyRow) -> list[str]:
    """A row in words, in the order of HEADER."""
    seeds = f"{row.seeds_done} of {row.seeds}" if row.seeds_done < row.seeds else str(row.seeds)
    return [
        row.name,
        seeds if row.seeds else MISSING,
        *_summary(row.new),
        *_summary(row.old),
        MISSING if row.change is None else change(row.change.mean),
        MISSING if row.change is None else change_interval(row.change.interval),
        _number(row.trained, ",.0f"),
        _number(row.file_mb, ".2f"),
        _number(row.steps, ".0f"),
        _number(row.seconds_a_step, ".2f"),
        _number(row.minutes, ".2f"),
        _number(row.peak_mib, ",.0f"),
        _number(row.p_new, ".3g"),
        _number(row.p_old, ".3g"),
    ]


def _summary(found: Summary | None) -> list[str]:
    return [MISSING] * 3 if found is None else [score(found.mean), interval(found.interval), str(found.n)]


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, first column to the left, the others to the right."""
    lines = [list(header), ["---", *["--:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table_csv(rows: Sequence[StrategyRow]) -> str:
    """The rows as CSV in full precision; empty cells where there is nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_flat(rows[0])) if rows else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_flat, rows))
    return text.getvalue()


def _flat(row: StrategyRow) -> dict[str, object]:
    flat: dict[str, object] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if field.name in ("new", "old", "change"):
            low, high = (value.interval if value is not None else None) or (None, None)
            found = [None, None] if value is None else [value.mean, value.n]
            flat |= dict(
                zip((f"{field.name}{end}" for end in ("", "_n", "_low", "_high")), [*found, low, high], strict=True)
            )
        else:
            flat[field.name] = value
    return flat


def structure_table(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of mean Dice by data set and structure, one row a strategy."""
    scores = by_structure(outcomes)
    header = ["strategy", *[f"{structure} ({dataset})" for dataset, structure in scores]]
    return header, [[o.name, *[score(scores[key].get(o.name)) for key in scores]] for o in outcomes]


def notes_of(plan: Plan, reference: str) -> list[str]:
    """What the table's columns mean, and under which terms it was made."""
    budget = plan.terms.budget
    spent = f"{budget.steps} steps" if budget.steps else f"{budget.minutes:g} minutes"
    shown = "" if plan.terms.patients is None else f" ({count(plan.terms.patients, 'patient')} of each, drawn by seed)"
    return [
        f"New data: {listing(sorted(plan.new_names))}{shown}; "
        f"old data: {listing([source.dataset.name for source in plan.old]) or 'none'}. "
        f"Base: {plan.terms.base}. Budget of each training: {spent}.",
        "A case's Dice is the mean over its structures and over seeds, by name alone; intervals are bootstrapped over "
        "patients. The change on old data is against the base without training.",
        f"p: Wilcoxon's signed-rank test over patients against {reference}, corrected after Holm over all strategies.",
    ]


def write_comparison(
    out: Path, plan: Plan, outcomes: Sequence[Outcome], rows: Sequence[StrategyRow], base: str, reference: str
) -> ReportPaths:
    """Write OUT/{table.md, table.csv} and OUT/report/, whose page shows the table before every score."""
    table, notes = [cells(row) for row in rows], notes_of(plan, reference)
    header, by_task = structure_table(outcomes)
    text = [markdown_table(HEADER, table), *(f"{note}\n" for note in notes), markdown_table(header, by_task)]
    write_atomic(out / "table.md", "\n".join(text))
    write_atomic(out / "table.csv", table_csv(rows))
    folder = out / REPORT
    (folder / RESULTS).unlink(missing_ok=True)  # scores of an earlier call, these among them
    sources = [*plan.new, *plan.old]
    study = StudyNotes(
        methods={o.name: _described(o) for o in outcomes},
        hashes={"base weights": plan.terms.base_hash},
        data=data_notes(sources),
        asked=asked_cases(sources, [name for question in plan.questions for name in question.structures]),
        versions=package_versions(),
    )
    save_study(folder, [record for outcome in outcomes for record in outcome.records], study)
    tables = [
        ReportTable("Strategies", HEADER, table, " ".join(notes)),
        ReportTable("By structure", header, by_task, "Mean Dice over cases and seeds."),
    ]
    names = [outcome.name for outcome in outcomes]
    first = base if base in names else names[0]
    judged = reference if reference in names and reference != first else names[-1]
    words = ReportText("Strategies compared", base=first, adapted=judged, tables=tables)
    return report_study(folder, folder, words)


def _described(outcome: Outcome) -> str:
    seeds = len(outcome.costs)
    return f"mean of {count(seeds, 'training')}" if seeds else "the base, nothing trained"

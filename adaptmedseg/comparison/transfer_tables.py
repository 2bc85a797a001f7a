"""The tables of a transfer study: new and old data, data sets, structures, sites, learning curves, price."""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from adaptmedseg.comparison.finished import FinishedRun
from adaptmedseg.comparison.judge import Judged
from adaptmedseg.evaluation import wording
from adaptmedseg.evaluation.group_figures import CurvePoint
from adaptmedseg.evaluation.page import ReportTable
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, PairedRow

ALL_PATIENTS = "all"
BASE_TICK = "0"
LONG = 40  # rows; longer tables are folded
NOTE = (
    "SD: over cases, and over the means of seeds. Intervals are bootstrapped over patients. Changes and differences "
    "are paired by case. Effect: matched-pairs rank-biserial correlation over patients, from −1 to +1. p: Wilcoxon's "
    "signed-rank test over patients, corrected after Holm over all tests of the kind, new and old data together. "
    "Fewer than six patients cannot give a p below 0.05. In brackets: cases without a score."
)
Curves = Mapping[str, Mapping[str, Sequence[CurvePoint]]]


def judged_table(title: str, rows: Sequence[Judged], base: str, reference: str, second: str = "") -> ReportTable:
    """A row a strategy; `second` is the heading of data sets or sites, where they vary."""
    structures = any(item.row.structure != ALL_STRUCTURES for item in rows)
    texts = ["Strategy", *([second] if second else []), *(["Structure"] if structures else [])]
    header = [
        *texts, "Mean Dice (95 %)", "SD", f"Change on {base} (95 %)", f"Against {reference}", "Effect", "p", "Cases",
        "Seeds", "SD of seeds", "Prompt",
    ]  # fmt: skip
    cells = []
    for item in rows:
        row, change, against = item.row, item.change, item.against
        cells.append(
            [
                row.method,
                *([row.modality] if second else []),
                *([row.structure] if structures else []),
                _with(wording.score(row.mean), None if row.interval is None else wording.interval(row.interval)),
                wording.score(row.sd),
                wording.MISSING if change is None else _changed(change),
                wording.MISSING if against is None else wording.change(against.difference),
                wording.effect(None if against is None else against.effect),
                wording.p_value(item.p),
                f"{row.n}" + (f" (+ {row.unscored})" if row.unscored else ""),
                str(item.seeds) if item.seeds else wording.MISSING,
                wording.score(item.seed_sd),
                wording.origin(row.prompt_origin),
            ]
        )
    return ReportTable(title, header, cells, NOTE, texts=len(texts), folded=len(rows) > LONG)


def _with(value: str, interval: str | None) -> str:
    return value if interval is None else f"{value} ({interval})"


def _changed(change: PairedRow) -> str:
    interval = None if change.interval is None else wording.change_interval(change.interval)
    return _with(wording.change(change.difference), interval)


def price_table(runs: Sequence[FinishedRun]) -> ReportTable:
    """What each strategy's trainings cost: means over trainings, the largest peak of memory."""
    rows = []
    for strategy in dict.fromkeys(run.strategy for run in runs):
        costs = [run.cost for run in runs if run.strategy == strategy and run.cost is not None]
        if not costs:
            continue
        peaks = [cost.peak_mib for cost in costs if cost.peak_mib is not None]
        rows.append(
            [
                strategy,
                f"{costs[0].trained:,}",
                f"{np.mean([cost.file_bytes for cost in costs]) / 1e6:.2f}",
                f"{np.mean([cost.steps for cost in costs]):.0f}",
                f"{np.mean([cost.minutes for cost in costs]):.1f}",
                f"{max(peaks):,.0f}" if peaks else wording.MISSING,
            ]
        )
    header = ("Strategy", "Trained numbers", "File, MB", "Steps", "Minutes", "Peak memory, MiB")
    return ReportTable("Price of a training", header, rows, "Means over trainings; the largest peak of memory.")


def curve_tables(ticks: Sequence[str], curves: Curves) -> list[ReportTable]:
    """A table of all learning curves: a row a group and strategy, a column a number of patients."""
    rows = []
    for group, of_group in curves.items():
        for strategy, points in of_group.items():
            by_tick = {point.tick: point for point in points}
            rows.append([group, strategy, *(_point(by_tick.get(tick)) for tick in ticks)])
    header = ("Data", "Strategy", *ticks)
    start = f"; {BASE_TICK} is the base without training" if BASE_TICK in ticks else ""
    note = (
        "Mean Dice (95 % interval, bootstrapped over patients) on the same unseen cases, by the number of patients of "
        f"each data set that were trained on{start}. The budget is the same everywhere."
    )
    return [ReportTable("Learning curves", header, rows, note, texts=2)] if rows else []


def _point(point: CurvePoint | None) -> str:
    if point is None:
        return wording.MISSING
    return _with(wording.score(point.mean), None if point.interval is None else wording.interval(point.interval))


def judged_csv(parts: Mapping[str, Sequence[Judged]]) -> str:
    """All rows in full precision, `part` naming the table; empty cells where there is nothing."""
    text = io.StringIO()
    names = [
        "part", "group", "structure", "strategy", "prompt_origin", "seeds", "n", "patients", "unscored", "mean", "sd",
        "seed_sd", "low", "high", "change", "change_low", "change_high", "difference", "difference_low",
        "difference_high", "better", "worse", "effect", "p", "p_holm",
    ]  # fmt: skip
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for part, rows in parts.items():
        for item in rows:
            row, change, against = item.row, item.change, item.against
            pair: tuple[float | None, ...] = (None,) * 7
            if against is not None:
                low, high = against.interval or (None, None)
                pair = (against.difference, low, high, against.better, against.worse, against.effect, against.p)
            changed = (None,) * 3 if change is None else (change.difference, *(change.interval or (None, None)))
            writer.writerow(
                [part, row.modality, row.structure, row.method, row.prompt_origin, item.seeds, row.n, row.patients,
                 row.unscored, row.mean, row.sd, item.seed_sd, *(row.interval or (None, None)), *changed, *pair, item.p]
            )  # fmt: skip
    return text.getvalue()

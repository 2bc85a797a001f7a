"""The page of shifts: what each model keeps, where it breaks, and what makes a case hard."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from adaptmedseg.evaluation import style, wording
from adaptmedseg.evaluation.page import Page, PageFigure, ReportTable
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.shifts.complexity import COVARIATES
from adaptmedseg.evaluation.shifts.run import CLEAN
from adaptmedseg.evaluation.shifts.scene import Shift
from adaptmedseg.evaluation.shifts.summary import Covariate, Kept, covariates, kept_dice

KINDS = {"corruption": "corruptions", "geometry": "changes of place"}
NOTE = (
    "Relative Dice is mean Dice under the shift over mean clean Dice of the same cases and structures; 1 keeps all. "
    "The mean is over severities, then over shifts; intervals are bootstrapped over patients. Shifts are applied to "
    "the normalised image, with the same draws for all models."
)


def shifts_page(records: Sequence[Record], shifts: Sequence[Shift], seed: int = 0) -> Page:
    """The page of `run.run_shifts`'s records."""
    kept, hard = kept_dice(records, shifts, seed), covariates(records, seed)
    over_all = [row for row in kept if row.shift in KINDS]
    graded = [shift for shift in shifts if len(shift.levels) > 1]
    figures = []
    for number, modality in enumerate(dict.fromkeys(row.modality for row in kept)):
        here = [row for row in kept if row.modality == modality]
        if graded:
            alt = f"Relative Dice by severity of each shift, {modality}"
            figures.append(PageFigure(f"{modality}: shifts", f"shifts-{number}", _severities(here, graded), alt))
        alt = f"Clean Dice against size, contrast and texture, {modality}"
        chosen = [r for r in records if r.modality == modality and r.extra["shift"] == CLEAN]
        figures.append(PageFigure(f"{modality}: what is hard", f"complexity-{number}", _scatter(chosen), alt))
    return Page(
        "Controlled shifts",
        [_sentence(row) for row in over_all],
        [NOTE],
        figures,
        [_over_all(over_all), _by_shift(kept, shifts), _covariates(hard)],
    )


def kept_csv(rows: Sequence[Kept]) -> str:
    """The rows as CSV, severities joined by blanks; empty cells where there is no interval."""
    text = io.StringIO()
    names = [name for name in asdict(rows[0]) if name != "interval"] + ["low", "high"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = asdict(row)
        low, high = flat.pop("interval") or (None, None)
        writer.writerow(flat | {"by_severity": " ".join(map(str, row.by_severity)), "low": low, "high": high})
    return text.getvalue()


def _number(value: float) -> str:
    return wording.MISSING if math.isnan(value) else f"{value:.3f}"


def _sentence(row: Kept) -> str:
    if math.isnan(row.mean):
        return (
            f"Under {KINDS[row.shift]} there is nothing that {row.method} could keep: its clean Dice on {row.modality} "
            f"is {_number(row.clean)} ({wording.count(row.patients, 'patient')}; prompt: "
            f"{wording.origin(row.prompt_origin)})."
        )
    interval = wording.TOO_FEW if row.interval is None else wording.interval(row.interval)
    return (
        f"Under {KINDS[row.shift]} {row.method} keeps {_number(row.mean)} of its clean Dice of {_number(row.clean)} on "
        f"{row.modality} ({interval}; {wording.count(row.patients, 'patient')}; prompt: "
        f"{wording.origin(row.prompt_origin)})."
    )


def _over_all(rows: Sequence[Kept]) -> ReportTable:
    cells = [
        [
            row.modality, row.method, wording.origin(row.prompt_origin), KINDS[row.shift], _number(row.mean),
            wording.interval(row.interval), _number(row.clean), str(row.patients),
        ]
        for row in rows
    ]  # fmt: skip
    header = ("Modality", "Method", "Prompt", "Shifts", "Mean relative Dice", "95 % interval", "Clean Dice", "Patients")
    return ReportTable("Mean relative Dice", header, cells, texts=4)


def _by_shift(rows: Sequence[Kept], shifts: Sequence[Shift]) -> ReportTable:
    levels = {shift.name: f"{', '.join(f'{x:g}' for x in shift.levels)} {shift.unit}".strip() for shift in shifts}
    cells = [
        [row.modality, row.method, wording.origin(row.prompt_origin), row.shift,
         "" if len(row.by_severity) == 1 else levels[row.shift], *map(_number, row.by_severity),
         *[""] * (5 - len(row.by_severity)), _number(row.mean)]
        for row in rows
        if row.shift in levels
    ]  # fmt: skip
    header = ("Modality", "Method", "Prompt", "Shift", "Severities", "1", "2", "3", "4", "5", "Mean")
    return ReportTable("Relative Dice by severity", header, cells, texts=5)


def _covariates(rows: Sequence[Covariate]) -> ReportTable:
    cells = [
        [
            row.modality, row.method, wording.origin(row.prompt_origin), COVARIATES[row.name],
            wording.MISSING if math.isnan(row.correlation) else wording.change(row.correlation),
            wording.change_interval(row.interval), str(row.scores),
        ]
        for row in rows
    ]  # fmt: skip
    header = ("Modality", "Method", "Prompt", "Covariate", "Spearman with Dice", "95 % interval", "Scores")
    return ReportTable("What makes a case hard", header, cells, "Clean images; patients resampled.", texts=4)


def _severities(rows: Sequence[Kept], graded: Sequence[Shift]) -> str:
    """One small plot a shift, of those with several severities; a line a method."""
    methods = list(dict.fromkeys((row.method, row.prompt_origin) for row in rows))
    columns = 3
    lines = -(-len(graded) // columns)
    # A model that is weak on clean images may well gain under a shift: the axis holds whatever there is.
    top = max((value for row in rows for value in row.by_severity if math.isfinite(value)), default=1.0)
    with style.settings():
        figure = Figure(figsize=(7.2, 1.75 * lines + 0.3 + 0.2 * len(methods)), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for place in grid.flat[len(graded) :]:
            place.set_axis_off()
        for axes, shift in zip(grid.flat, graded, strict=False):
            for number, method in enumerate(methods):
                found = [r for r in rows if (r.method, r.prompt_origin) == method and r.shift == shift.name]
                for row in found:
                    axes.plot(
                        range(len(row.by_severity) + 1), (1.0, *row.by_severity), color=_colour(number), linewidth=1.4,
                        marker=style.marker(number), markersize=3,
                    )  # fmt: skip
            axes.set_title(shift.name, fontsize=9)
            axes.set_ylim(0, 1.05 * max(top, 1.1))
            style.quiet_grid(axes, "y")
        figure.supxlabel("severity", fontsize=9)
        figure.supylabel("relative Dice", fontsize=9)
        figure.legend(handles=_handles(methods), loc="outside upper left", frameon=False, fontsize=9)
        return style.to_svg(figure)


def _scatter(records: Sequence[Record]) -> str:
    """Clean Dice against each covariate, a dot a structure and case."""
    methods = list(dict.fromkeys((r.method, r.prompt_origin) for r in records))
    with style.settings():
        figure = Figure(figsize=(7.2, 2.6 + 0.2 * len(methods)), layout="constrained")
        row = figure.subplots(1, len(COVARIATES), sharey=True)
        for axes, (name, label) in zip(row, COVARIATES.items(), strict=True):
            for number, method in enumerate(methods):
                own = [r for r in records if (r.method, r.prompt_origin) == method and r.dice is not None]
                pairs = [(r.extra[name], r.dice) for r in own if r.extra[name] is not None]
                if pairs:
                    axes.scatter(*zip(*pairs, strict=True), s=12, color=_colour(number), alpha=0.6,
                                 marker=style.marker(number))  # fmt: skip
            axes.set_xlabel(label.replace(", ", ",\n"), fontsize=8)
            axes.set_ylim(0, 1)
            style.quiet_grid(axes, "y")
        row[0].set_xscale("log")
        row[0].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        row[0].xaxis.set_major_formatter("{x:.2g}")  # matplotlib's own writes powers as mathtext, which is off here
        row[0].xaxis.set_minor_formatter(NullFormatter())
        row[0].set_ylabel("Dice")
        figure.legend(handles=_handles(methods), loc="outside upper left", frameon=False, fontsize=9)
        return style.to_svg(figure)


def _colour(number: int) -> str:
    return style.colour(number + 1)


def _handles(methods: Sequence[tuple[str, str]]) -> list[Line2D]:
    return [
        Line2D([], [], color=_colour(n), marker=style.marker(n), markersize=4,
               label=f"{name} (prompt: {wording.origin(origin)})")
        for n, (name, origin) in enumerate(methods)
    ]  # fmt: skip

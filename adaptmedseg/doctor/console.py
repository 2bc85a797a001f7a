"""A check's findings on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from adaptmedseg.data.check_result import CaseCheck, CheckReport


def print_report(report: CheckReport, console: Console) -> None:
    """Print a table of the cases, then every error and warning."""
    table = Table(
        Column("case", overflow="fold"),
        "shape (d, h, w)",
        "spacing (mm)",
        "axes",
        "intensities",
        "volumes (ml)",
        "state",
    )
    for case in report.cases:
        table.add_row(*(escape(cell) for cell in _row(case)))
    console.print(table)
    for kind, style, sentences in (("error", "red", report.errors), ("warning", "yellow", report.warnings)):
        for sentence in sentences:
            console.print(f"[{style}]{kind}[/{style}]: {escape(sentence)}", soft_wrap=True)
    bad = sum(bool(case.errors) for case in report.cases)
    console.print(
        f"{len(report.cases)} cases, {bad} of them bad; {len(report.errors)} errors, {len(report.warnings)} warnings."
    )


def _row(case: CaseCheck) -> list[str]:
    state = "error" if case.errors else "warning" if case.warnings else "good"
    if case.shape is None or case.spacing is None or case.intensities is None:
        return [case.id, "", "", "", "", "", state]
    return [
        case.id,
        " × ".join(map(str, case.shape)),
        " × ".join(f"{size:.3g}" for size in case.spacing),
        case.orientation,
        f"{case.intensities[0]:.4g} to {case.intensities[1]:.4g}",
        ", ".join(f"{name} {volume:.1f}" for name, volume in case.volumes_ml.items()),
        state,
    ]

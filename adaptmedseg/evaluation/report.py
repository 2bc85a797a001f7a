"""The report: one self-contained HTML page, the same as Markdown, and the scores as CSV."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptmedseg.data.files import write_atomic
from adaptmedseg.evaluation import curves, overlays, style, wording
from adaptmedseg.evaluation.bland_altman import agreement_figures, agreement_table, volume_agreement
from adaptmedseg.evaluation.figures import dice_strip_svg, series_styles
from adaptmedseg.evaluation.gaps import find_gaps, gap_sentences, gap_tables
from adaptmedseg.evaluation.measure_tables import measure_tables, measures_csv
from adaptmedseg.evaluation.page import PageFigure, ReportTable, environment
from adaptmedseg.evaluation.records import Record, results_csv
from adaptmedseg.evaluation.significance import holm
from adaptmedseg.evaluation.tables import (
    ALL_STRUCTURES,
    PairedRow,
    Row,
    aggregate,
    paired_differences,
    table_csv,
    unequal_cases,
)

FILES_FOLDER = "report_files"
LOWEST_SHOWN = 10
LONG = 60  # rows; longer tables are folded


@dataclass(frozen=True)
class Method:
    """A method as the records name it, as the reader should call it, and what it is in a sentence."""

    name: str
    label: str
    description: str = ""


@dataclass(frozen=True)
class Overlay:
    """A picture (from `overlays.overlay_png`) of the score `record`; `rank` is worst, median, best or another word."""

    png: bytes
    record: Record
    rank: str


@dataclass(frozen=True)
class DataSource:
    """Where a data set comes from and under which licence it stands."""

    name: str
    origin: str
    licence: str
    cases: str = ""


@dataclass(frozen=True)
class Command:
    """A shell command to run next and what it is for."""

    command: str
    explanation: str


@dataclass(frozen=True)
class Settings:
    """What is needed to repeat the run. `timings` are seconds per stage, `licences` those of the weights."""

    config_yaml: str = ""
    seeds: Mapping[str, object] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    data: Sequence[DataSource] = ()
    licences: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportInput:
    """All that the report shows.

    `verdict` holds the sentences of its head (see `verdict.verdict`). `methods` give the order of rows and the
    labels. `comparisons` are pairs (base, adapted) of method names for the table of paired differences. `histories`
    maps a run's label to its training history (see `curves.curve_svg`). `asked` are ids of cases by data set: one of
    them without a score is told of.
    """

    title: str
    verdict: Sequence[str]
    records: Sequence[Record]
    methods: Sequence[Method]
    comparisons: Sequence[tuple[str, str]] = ()
    histories: Mapping[str, curves.History] = field(default_factory=dict)
    overlays: Sequence[Overlay] = ()
    settings: Settings = field(default_factory=Settings)
    next_commands: Sequence[Command] = ()
    caveats: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    figures: Sequence[PageFigure] = ()
    asked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    created: str = ""
    seed: int = 0


@dataclass(frozen=True)
class ReportPaths:
    """The files that were written; `files` is the folder of the pictures that the Markdown shows."""

    html: Path
    markdown: Path
    csv: Path
    files: Path


@dataclass(frozen=True)
class _Figure:
    file: str
    svg: str
    alt: str

    @property
    def uri(self) -> str:
        return style.data_uri(self.svg, "image/svg+xml")


@dataclass(frozen=True)
class _Picture:
    file: str
    uri: str
    caption: str
    alt: str


@dataclass(frozen=True)
class _Group:
    """Rows of one modality and structure, or pictures of them, under one heading."""

    modality: str
    structure: str
    rows: Sequence[Any]


def write_report(out_dir: Path, report: ReportInput) -> ReportPaths:
    """Write `report.html`, `report.md`, `results.csv` and `report_files/` into `out_dir`; earlier ones are replaced.

    The HTML page is one file without scripts and reads nothing from elsewhere. Raises ValueError when there are no
    records or when they can't stand in one table (see `tables.check_records`).
    """
    if not report.records:
        raise ValueError("records: there is nothing to report")
    context = _context(report)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(out_dir / "report.html", out_dir / "report.md", out_dir / "results.csv", out_dir / FILES_FOLDER)
    _write_files(paths.files, report, context)
    write_atomic(paths.csv, results_csv(report.records))
    write_atomic(paths.markdown, environment(html=False).get_template("report.md.j2").render(context))
    write_atomic(paths.html, environment(html=True).get_template("report.html.j2").render(context))
    return paths


def _context(report: ReportInput) -> dict[str, Any]:
    labels = {record.method: record.method for record in report.records}
    labels |= {method.name: method.label for method in report.methods}
    order = [method.name for method in report.methods]
    rows = aggregate(report.records, order, seed=report.seed)
    paired = [
        row
        for base, adapted in report.comparisons
        for row in paired_differences(report.records, base, adapted, seed=report.seed)
    ]
    used = {record.method for record in report.records}
    gaps = find_gaps(report.records, report.asked)
    volumes = volume_agreement(report.records, _judged(report))
    return {
        "report": report,
        "settings": report.settings,
        "labels": labels,
        "methods": [method for method in report.methods if method.name in used],
        "groups": _groups(rows),
        "measures": measure_tables(report.records, labels, order, report.seed),
        "paired": _paired_groups(paired),
        "volumes": agreement_figures(volumes, labels),
        "agreement": [agreement_table(volumes, labels)] if volumes else [],
        "gaps": gap_tables(gaps),
        "figures": _dice_figures(report, rows, labels),
        "curves": _curve_figures(report.histories),
        "pictures": _pictures(report.overlays, labels),
        "convention": overlays.CONVENTION,
        "lowest": _lowest(report),
        "caveats": [*report.caveats, *gap_sentences(gaps), *unequal_cases(report.records)],
        "any_oracle": any(record.is_oracle for record in report.records),
        "any_unscored": any(record.dice is None for record in report.records),
        "folded": len(rows) > LONG,
        "cases": len({record.case_key for record in report.records}),
        "patients": len({record.patient_key for record in report.records}),
        "all_structures": ALL_STRUCTURES,
        "files": FILES_FOLDER,
        "table_csv": table_csv(rows),
        "measures_csv": measures_csv(report.records, order, report.seed),
    }


def _judged(report: ReportInput) -> list[str]:
    """The methods that figures of volumes show: base and judged one of the last comparison, else the last listed."""
    return list(report.comparisons[-1]) if report.comparisons else [method.name for method in report.methods[-1:]]


def _paired_groups(rows: Sequence[PairedRow]) -> list[list[tuple[PairedRow, str]]]:
    """Rows of one modality and comparison together, "all structures" last, and not at all where there's just one; each
    with its p, corrected after Holm over all rows that are shown."""
    found: dict[tuple[str, ...], list[PairedRow]] = {}
    for row in rows:
        key = (row.modality, row.base, row.adapted, row.base_origin, row.adapted_origin)
        found.setdefault(key, []).append(row)
    shown = [group if len(group) > 2 else group[:1] for group in found.values()]
    corrected = iter(holm([row.p for group in shown for row in group]))
    return [[(row, wording.p_value(next(corrected))) for row in group] for group in shown]


def _groups(rows: Sequence[Row]) -> list[_Group]:
    """Rows by modality and structure, "all structures" last, and not at all where there's just one structure."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row.modality, {}).setdefault(row.structure, []).append(row)
    groups: list[_Group] = []
    for modality, structures in found.items():
        if len(structures) == 2:
            del structures[ALL_STRUCTURES]
        groups += [_Group(modality, structure, of_structure) for structure, of_structure in structures.items()]
    return groups


def _file_name(*words: str) -> str:
    return "-".join("".join(c if c.isalnum() and c.isascii() else "-" for c in word).strip("-") for word in words)


def _dice_figures(report: ReportInput, rows: Sequence[Row], labels: Mapping[str, str]) -> list[tuple[str, _Figure]]:
    styles = series_styles(report.records, [method.name for method in report.methods])
    figures: list[tuple[str, _Figure]] = []
    for number, modality in enumerate(dict.fromkeys(row.modality for row in rows), start=1):
        svg = dice_strip_svg(report.records, rows, modality, styles, labels)
        alt = f"Dice of every case per structure and method, {modality}; the means and intervals are in the table."
        figures.append((modality, _Figure(_file_name("dice", str(number), modality) + ".svg", svg, alt)))
    return figures


def _curve_figures(histories: Mapping[str, curves.History]) -> list[_Figure]:
    if not histories:
        return []
    x_key = curves.best_x_key(histories)
    drawn = [(curve, curves.curve_svg(histories, curve, x_key)) for curve in curves.CURVES]
    runs = wording.listing(list(histories))
    return [
        _Figure(_file_name("curve", curve.key) + ".svg", svg, f"{curve.label} of {runs}".capitalize())
        for curve, svg in drawn
        if svg is not None
    ]


def _pictures(shown: Sequence[Overlay], labels: Mapping[str, str]) -> list[_Group]:
    groups: dict[tuple[str, str], list[_Picture]] = {}
    for number, overlay in enumerate(shown, start=1):
        record = overlay.record
        value = "not scored" if record.dice is None else f"Dice {wording.score(record.dice)}"
        caption = (
            f"{overlay.rank.capitalize()}: case {record.case}, {value}. {labels.get(record.method, record.method)}, "
            f"prompt: {wording.origin(record.prompt_origin)}; {wording.volume(record.volume_ml)} marked, "
            f"{wording.volume(record.truth_volume_ml)} true."
        )
        alt = f"{record.structure} of case {record.case}, truth and prediction outlined in three planes"
        file = _file_name(f"{number:03d}", record.case, record.structure, overlay.rank) + ".png"
        picture = _Picture(file, style.data_uri(overlay.png, "image/png"), caption, alt)
        groups.setdefault((record.modality, record.structure), []).append(picture)
    return [_Group(modality, structure, pictures) for (modality, structure), pictures in groups.items()]


def _lowest(report: ReportInput) -> list[Record]:
    """The lowest scores of the last compared method (else of the last one listed), oracle prompts left out."""
    names = [adapted for _, adapted in report.comparisons] or [method.name for method in report.methods]
    chosen = [r for r in report.records if names and r.method == names[-1] and r.dice is not None and not r.is_oracle]
    return sorted(chosen, key=lambda record: (record.dice or 0.0, record.case))[:LOWEST_SHOWN]


def _write_files(folder: Path, report: ReportInput, context: Mapping[str, Any]) -> None:
    """Write the pictures into a new folder, then put it in the place of the old one."""
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    for figure in [figure for _, figure in context["figures"]] + context["curves"]:
        write_atomic(partial / figure.file, figure.svg)
    for drawn in (*report.figures, *context["volumes"]):
        write_atomic(partial / f"{drawn.file}.svg", drawn.svg)
    by_number = [picture for group in context["pictures"] for picture in group.rows]
    content = {f"{number:03d}": overlay.png for number, overlay in enumerate(report.overlays, start=1)}
    for picture in by_number:
        write_atomic(partial / picture.file, content[picture.file.split("-")[0]])
    write_atomic(partial / "table.csv", context["table_csv"])
    if context["measures"]:
        write_atomic(partial / "measures.csv", context["measures_csv"])
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)

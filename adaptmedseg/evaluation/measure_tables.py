"""Tables of the measures beside Dice, each with the counts of empty masks that say what its mean leaves out."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adaptmedseg.evaluation import wording
from adaptmedseg.evaluation.page import ReportTable
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, Row, aggregate


@dataclass(frozen=True)
class Measure:
    """A measure's key in results, its heading in tables, and how its values are written."""

    key: str
    label: str
    form: str

    def of(self, record: Record) -> float | None:
        value = record.extra.get(self.key)
        return None if value is None else float(value)


MAIN = (
    Measure("hd95_mm", "HD95, mm", "{:.1f}"),
    Measure("assd_mm", "ASSD, mm", "{:.2f}"),
    Measure("nsd", "NSD", "{:.3f}"),
    Measure("jaccard", "Jaccard", "{:.3f}"),
    Measure("relative_volume_error", "Volume error", "{:+.1%}"),
    Measure("lesion_f1", "Lesion F1", "{:.3f}"),
)
OTHERS = (
    Measure("asd_mm", "ASD, mm", "{:.2f}"),
    Measure("volume_error_ml", "Volume error, ml", "{:+.2f}"),
    Measure("absolute_volume_error_ml", "Absolute volume error, ml", "{:.2f}"),
    Measure("lesion_precision", "Lesion precision", "{:.3f}"),
    Measure("lesion_recall", "Lesion recall", "{:.3f}"),
)
NOTE = (
    "Means over cases. Distances exist only where truth and mask both hold something, so that a structure that was "
    "missed altogether raises no mean: it is counted under “missed” (and has Dice, NSD and F1 0), as “false” is a mark "
    "where the truth holds nothing; “both” are empty in both and scored by nothing."
)
HEADER = ("Structure", "Method", "Prompt", *(measure.label for measure in MAIN), "Cases", "Missed", "False", "Both")
LONG = 40  # rows; longer tables are folded
Group = tuple[str, str, str, str]


@dataclass(frozen=True)
class EmptyCounts:
    """Of all scores of one group: how many had a truth and no mask, a mask and no truth, neither."""

    cases: int
    missed: int
    false: int
    both: int


def count_empty(records: Sequence[Record]) -> EmptyCounts:
    """Counts over scores that say which mask was empty."""
    flags = [(bool(r.extra.get("truth_empty")), bool(r.extra.get("prediction_empty"))) for r in records]
    return EmptyCounts(len(flags), flags.count((False, True)), flags.count((True, False)), flags.count((True, True)))


def measure_tables(
    records: Sequence[Record], labels: Mapping[str, str], method_order: Sequence[str] = (), seed: int = 0
) -> list[ReportTable]:
    """A table a modality and way of measuring surfaces: scores with another tolerance or definition are never mixed.

    Results that hold Dice alone, as those written by earlier versions, give none.
    """
    groups: dict[tuple[str, str, float], list[Record]] = {}
    for record in records:
        if "surface_elements" in record.extra:
            way = record.modality, str(record.extra["surface_elements"]), float(record.extra["nsd_tolerance_mm"])
            groups.setdefault(way, []).append(record)
    return [_table(way, group, labels, method_order, seed) for way, group in groups.items()]


def _table(
    way: tuple[str, str, float],
    records: Sequence[Record],
    labels: Mapping[str, str],
    method_order: Sequence[str],
    seed: int,
) -> ReportTable:
    modality, elements, tolerance = way
    columns = [{_group(row): row for row in aggregate(records, method_order, seed, m.of)} for m in MAIN]
    single = len({record.structure for record in records}) == 1
    rows = []
    for key, row in columns[0].items():
        if single and row.structure == ALL_STRUCTURES:
            continue
        counts = count_empty([record for record in records if _belongs(record, row)])
        cells = [_cell(column[key], measure) for column, measure in zip(columns, MAIN, strict=True)]
        numbers = (counts.cases, counts.missed, counts.false, counts.both)
        name = labels.get(row.method, row.method)
        rows.append([row.structure, name, wording.origin(row.prompt_origin), *cells, *map(str, numbers)])
    note = f"NSD at {tolerance:g} mm; surfaces are made of {elements}. {NOTE}"
    return ReportTable(
        f"Surfaces, volumes and lesions: {modality}", HEADER, rows, note, texts=3, folded=len(rows) > LONG
    )


def _group(row: Row) -> Group:
    return row.modality, row.structure, row.method, row.prompt_origin


def _belongs(record: Record, row: Row) -> bool:
    same = (record.method, record.prompt_origin) == (row.method, row.prompt_origin)
    return same and row.structure in (record.structure, ALL_STRUCTURES)


def _cell(row: Row, measure: Measure) -> str:
    return wording.MISSING if row.mean is None else measure.form.format(row.mean).replace("-", wording.MINUS)


def measures_csv(records: Sequence[Record], method_order: Sequence[str] = (), seed: int = 0) -> str:
    """Mean, deviation, interval and counts of every measure, one line a group and measure; for scripts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["measure", "modality", "structure", "method", "prompt_origin", "mean", "sd", "low", "high"]
    writer.writerow([*names, "cases", "without_value", "patients"])
    values: list[tuple[str, Callable[[Record], float | None]]]
    values = [("dice", lambda record: record.dice), *((m.key, m.of) for m in (*MAIN, *OTHERS))]
    for key, value in values:
        for row in aggregate(records, method_order, seed, value):
            low, high = row.interval or (None, None)
            writer.writerow([key, *_group(row), row.mean, row.sd, low, high, row.n, row.unscored, row.patients])
    return text.getvalue()

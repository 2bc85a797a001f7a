"""Tables of slices: a row a structure, background and average among them; support-size curves; paired tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from adaptmedseg.evaluation import wording
from adaptmedseg.evaluation.bootstrap import bootstrap_interval
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.significance import holm, paired_p
from adaptmedseg.evaluation.slices.points import Point, common_items, support_points
from adaptmedseg.evaluation.slices.scores import BACKGROUND

AVERAGE = "average"
TINY = 1e-3  # of an image's pixels: a target below is a small one, as infrared targets are
Value = Callable[[Record], float | None]


def _of(key: str) -> Value:
    def value(record: Record) -> float | None:
        found = record.extra.get(key)
        return None if found is None else float(found)

    return value


def _found(record: Record) -> float | None:
    """The share of a small target's components that are found."""
    small = 0 < record.extra["truth_share"] < TINY
    return _of("component_recall")(record) if small else None


COLUMNS: tuple[tuple[str, Value], ...] = (
    ("Dice", lambda record: record.dice),
    ("IoU", _of("jaccard")),
    ("ASD, mm", _of("asd_mm")),
    ("NSD, 1 px", _of("nsd_1px")),
    ("small found", _found),
)


@dataclass(frozen=True)
class StructureRow:
    """Means of one method, asked in one way, over the images of one set that show (or, of classes, annotate) a
    structure; `interval`: 95 % of Dice, patients being what is resampled. Of the average, the mean over structures
    without background; images are counted once."""

    dataset: str
    structure: str
    method: str
    origin: str
    images: int
    means: tuple[float | None, ...]
    interval: tuple[float, float] | None = None


def structure_rows(records: Sequence[Record]) -> list[StructureRow]:
    """Rows in the order of the records, after each method's structures its background and its average."""
    groups: dict[tuple[str, str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        groups[record.dataset, record.method, record.prompt_origin][record.structure].append(record)
    rows: list[StructureRow] = []
    for (dataset, method, origin), by_structure in groups.items():
        names = sorted(by_structure, key=lambda name: name == BACKGROUND)
        found = [_row(dataset, method, origin, name, by_structure[name]) for name in names]
        rows += found
        inside = [row for row in found if row.structure != BACKGROUND]
        if len(inside) > 1:
            means = tuple(_mean([row.means[i] for row in inside]) for i in range(len(COLUMNS)))
            images = len({r.case for name in by_structure if name != BACKGROUND for r in by_structure[name]})
            rows.append(StructureRow(dataset, AVERAGE, method, origin, images, means))
    return rows


def _row(dataset: str, method: str, origin: str, structure: str, records: Sequence[Record]) -> StructureRow:
    scored = [record for record in records if record.dice is not None]
    interval = bootstrap_interval(
        [float(r.dice or 0) for r in scored], [r.patient for r in scored], np.random.default_rng(0)
    )
    means = tuple(_mean([value(record) for record in records]) for _, value in COLUMNS)
    return StructureRow(dataset, structure, method, origin, len({r.case for r in records}), means, interval)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class PairedTest:
    """Mean difference of Dice, `method` minus `reference`, over what both scored, and Wilcoxon's p over patients,
    corrected after Holm over all tests made together."""

    dataset: str
    origin: str
    reference: str
    method: str
    patients: int
    difference: float
    p: float | None


def paired_tests(records: Sequence[Record], reference: str) -> list[PairedTest]:
    """`reference` against every other method, asked alike, on each set; the background plays no part."""
    scores: dict[tuple[str, str], dict[str, dict[Hashable, Record]]] = defaultdict(lambda: defaultdict(dict))
    for r in records:
        if r.dice is not None and r.structure != BACKGROUND:
            scores[r.dataset, r.prompt_origin][r.method][r.case, r.structure, r.fold] = r
    tests: list[PairedTest] = []
    for (dataset, origin), methods in scores.items():
        if reference not in methods:
            continue  # nobody asked it in this way
        for method in methods:
            shared = methods[method].keys() & methods[reference].keys() if method != reference else set()
            differences: dict[str, list[float]] = defaultdict(list)
            for key in shared:
                first, second = methods[reference][key], methods[method][key]
                differences[first.patient].append(float(second.dice or 0) - float(first.dice or 0))
            if differences:
                means = [float(np.mean(values)) for values in differences.values()]
                difference = float(np.mean(means))
                tests.append(PairedTest(dataset, origin, reference, method, len(means), difference, paired_p(means)))
    corrected = holm([test.p for test in tests])
    return [
        PairedTest(t.dataset, t.origin, t.reference, t.method, t.patients, t.difference, p)
        for t, p in zip(tests, corrected, strict=True)
    ]


def slice_report(records: Sequence[Record], reference: str) -> str:
    """All tables as Markdown."""
    parts = [_structures(structure_rows(records))]
    points = support_points(records)
    if points:
        parts.append(_curve(points))
    parts += [common.sentence + "\n" for common in common_items(records).values()]
    tests = paired_tests(records, reference)
    if tests:
        parts.append(_tests(tests))
    return "\n".join(parts)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """A table whose first `texts` columns are words."""
    rule = ["---"] * texts + ["--:"] * (len(header) - texts)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))


def _structures(rows: Sequence[StructureRow]) -> str:
    used = [i for i in range(len(COLUMNS)) if any(row.means[i] is not None for row in rows)]
    header = ["set", "structure", "method", "prompt", "images", "95 % of Dice", *(COLUMNS[i][0] for i in used)]
    lines = [
        [
            row.dataset, row.structure, row.method, wording.origin(row.origin), str(row.images),
            wording.interval(row.interval), *(wording.score(row.means[i]) for i in used),
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(header, lines, 4)


def _curve(points: Sequence[Point]) -> str:
    shots = sorted({point.shots for point in points})
    rows: dict[tuple[str, str], dict[int, Point]] = defaultdict(dict)
    for point in points:
        rows[point.dataset, point.method][point.shots] = point
    lines = [[*key, *(_cell(found.get(n)) for n in shots)] for key, found in rows.items()]
    return markdown(["set", "method", *(wording.count(n, "support") for n in shots)], lines, 2)


def _cell(point: Point | None) -> str:
    if point is None:
        return wording.MISSING
    return wording.score(point.mean) + ("" if point.sd is None else f" ± {point.sd:.3f}")


def _tests(tests: Sequence[PairedTest]) -> str:
    lines = [
        [
            t.dataset, wording.origin(t.origin), f"{t.method} {wording.MINUS} {t.reference}", str(t.patients),
            wording.change(t.difference), wording.score(t.p),
        ]
        for t in tests
    ]  # fmt: skip
    return markdown(["set", "prompt", "difference", "patients", "Dice", "p"], lines, 3)

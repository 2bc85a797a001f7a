"""What a report costs: made-up scores and volumes of many cases, drawn and written."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaptmedseg.bench.metrics import bumpy_pairs
from adaptmedseg.evaluation.metrics import measure
from adaptmedseg.evaluation.overlays import overlay_png, pick_cases
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.report import Method, Overlay, ReportInput, write_report
from adaptmedseg.evaluation.study import MAX_PICTURES
from adaptmedseg.evaluation.verdict import verdict

SPACING_MM = (2.5, 0.8, 0.8)
MODALITIES = ("T2 MRI", "CT")
ADAPTED = "adapted"


@dataclass(frozen=True)
class ReportCost:
    """Seconds by the clock of drawing pictures and of writing the report, of the processor for both, how many pictures,
    and megabytes of the page."""

    draw: float
    write: float
    processor: float
    pictures: int
    page_mb: float


def made_up_scores(cases: int, structures: int, methods: int, seed: int = 0) -> list[Record]:
    """Measures of bumpy blobs with names and Dice of their own for every method, case and structure."""
    rng = np.random.default_rng(seed)
    prediction, truth = bumpy_pairs((24, 64, 64), structures, seed)
    measured = [measure(p, t, SPACING_MM).as_dict() for p, t in zip(prediction, truth, strict=True)]
    names = [f"method {number}" for number in range(1, methods)] + [ADAPTED]
    return [
        Record(
            method=name, dataset="made up", modality=MODALITIES[number % 2], case=f"case {number:03d}",
            patient=f"case {number:03d}", structure=f"structure {k + 1}", prompt_origin="text",
            dice=float(rng.uniform(0.4, 0.95)), volume_ml=float(rng.uniform(20, 60)),
            truth_volume_ml=float(rng.uniform(20, 60)), extra=measured[k],
        )
        for name in names
        for number in range(cases)
        for k in range(structures)
    ]  # fmt: skip


def measure_report(out: Path, cases: int, structures: int, methods: int, shape: tuple[int, int, int]) -> ReportCost:
    """Draw the worst, median and best masks of volumes (d, h, w) and write the report of all scores into OUT."""
    records = made_up_scores(cases, structures, methods)
    prediction, truth = bumpy_pairs(shape, 1)
    image = np.random.default_rng(0).normal(0.4, 0.1, shape).astype(np.float32) + 0.3 * truth[0]
    started, processor = time.perf_counter(), time.process_time()
    pictures = [
        Overlay(overlay_png(image, truth[0], np.roll(prediction[0], number, axis=2), SPACING_MM), record, rank)
        for number, (rank, record) in enumerate(pick_cases(records, ADAPTED, MAX_PICTURES))
    ]
    drawn = time.perf_counter()
    names = list(dict.fromkeys(record.method for record in records))
    history = [{"step": step, "loss": 1 / (1 + step / 500)} for step in range(5000)]
    report = ReportInput(
        title="Made-up scores",
        verdict=verdict(records, base=names[0], adapted=ADAPTED),
        records=records,
        methods=[Method(name, name) for name in names],
        comparisons=[(names[0], name) for name in names[1:]],
        histories=dict.fromkeys(names, history),
        overlays=pictures,
    )
    page = write_report(out, report).html
    used = time.process_time() - processor
    return ReportCost(drawn - started, time.perf_counter() - drawn, used, len(pictures), page.stat().st_size / 1e6)

"""A whole examination of a folder: the check, its page, the same as JSON, and a proposed configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from adaptmedseg.data.check_result import CaseCheck, CheckReport
from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.labelled import LabelledVolume
from adaptmedseg.data.registry import Family, Modality
from adaptmedseg.doctor.advice import Advice, advise
from adaptmedseg.doctor.cost import measure_cost
from adaptmedseg.doctor.page import write_page
from adaptmedseg.doctor.picture import COLOURS, case_png
from adaptmedseg.doctor.proposal import propose
from adaptmedseg.models.segvol import SMALL
from adaptmedseg.training.config import TrainConfig

PAGE, FACTS, PROPOSED = "check.html", "check.json", "proposed.yaml"
_CT_WINDOW = (-160.0, 240.0)  # HU, soft tissue


@dataclass
class Gallery:
    """Draws a picture of every readable case while its voxels are in memory (an `OnCase` of `check_folder`)."""

    family: Family | None
    pictures: dict[str, bytes] = field(default_factory=dict)
    colours: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __call__(self, checked: CaseCheck, case: LabelledVolume, masks: Mapping[str, np.ndarray]) -> None:
        for name in masks:
            self.colours.setdefault(name, COLOURS[len(self.colours) % len(COLOURS)])
        stats = checked.statistics
        window = _CT_WINDOW
        if self.family != "CT" and stats is not None:
            window = (stats.volume[0.5], stats.volume[99.5])
        self.pictures[checked.id] = case_png(case.image.data, masks, case.image.spacing, window, self.colours)


def write_examination(
    out: Path,
    source: Path,
    report: CheckReport,
    gallery: Gallery,
    start: Path,
    modality: Modality | None,
    tried: TrainConfig | None,
    device: torch.device,
) -> list[Path]:
    """Write the page, the facts as JSON and, where a case is good, a proposed configuration into `out`.

    Args:
        out: a folder; files of an earlier examination are replaced.
        source: what was checked.
        report, gallery: of the check.
        start: the configuration that the proposal starts from.
        modality: of the images, where it is known.
        tried: a configuration to try a few steps of, for its cost.
        device: where it is tried.

    Returns:
        The files written.
    """
    advice = advise(report, SMALL.spatial_size)
    good = [case for case in report.cases if not case.errors]
    cost: list[str] = []
    if tried is not None and advice is not None:
        largest = max((case.shape for case in good if case.shape), key=lambda shape: int(np.prod(shape)))
        depth, height, width = largest
        names = sorted(advice.annotating)
        kind = modality.name if modality else "CT"
        measured = measure_cost(tried, names, kind, len(good), (depth, height, width), device)
        cost = measured.sentences(tried.name)
    write_page(out / PAGE, source.name, report, advice, cost, gallery.pictures, gallery.colours)
    write_atomic(out / FACTS, json.dumps(_facts(report, advice, cost), indent=1) + "\n")
    written = [out / PAGE, out / FACTS]
    if advice is not None and good:
        family = modality.family if modality else None
        text = propose(start, f"{source.stem}_proposed", f"prepared/{source.stem}", advice, len(good), family)
        write_atomic(out / PROPOSED, text)
        written.append(out / PROPOSED)
    return written


def _facts(report: CheckReport, advice: Advice | None, cost: list[str]) -> dict[str, object]:
    return {
        "folder_errors": list(report.folder_errors),
        "cases": [
            {
                "id": case.id,
                "errors": list(case.errors),
                "warnings": list(case.warnings),
                "shape_dhw": case.shape,
                "spacing_dhw_mm": case.spacing,
                "orientation": case.orientation,
                "intensities": case.intensities,
                "volumes_ml": case.volumes_ml,
            }
            for case in report.cases
        ],
        "advice": list(advice.sentences) if advice else [],
        "cost": cost,
    }

"""Confidence of a case that is being predicted, and the list of cases to review, worst first."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adaptmedseg.data.registry import mirror as registered_mirror
from adaptmedseg.errors import UserError
from adaptmedseg.inference.calibration import Calibration
from adaptmedseg.inference.confidence import Evidence, agreements, mirror_within, sharpness
from adaptmedseg.inference.prediction import Answer
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.inference.prompt_file import PromptSet

COLUMNS = ("case", "structure", "estimated_dice", "agreement", "sharpness", "volume_ml", "image")


class Judge:
    """Watches the answers of one case go by, then asks again with a changed image."""

    def __init__(self, predictor: Predictor, calibration: Calibration | None):
        self.predictor, self.calibration = predictor, calibration
        self._sharp: dict[str, float] = {}
        self._bits: dict[str, np.ndarray] = {}

    def watch(self, answers: Iterator[Answer]) -> Iterator[Answer]:
        """The same answers; of each a mask is kept, one bit a voxel."""
        for answer in answers:
            self._sharp[answer.structure] = sharpness(answer.result.logits)
            self._bits[answer.structure] = np.packbits(answer.result.logits > 0)
            yield answer

    def confidence(self, prompts: PromptSet, zoom: bool) -> dict[str, dict[str, float | None]]:
        """By structure: `estimated_dice` (None without a calibration), and what it rests on."""
        predictor = self.predictor
        crop = predictor.segmenter.crop
        masks = {
            name: np.unpackbits(bits, count=crop.size).reshape(crop.shape).astype(bool)
            for name, bits in self._bits.items()
        }
        mirror = mirror_within(predictor.loaded.structures, _mirror)
        agreed = agreements(predictor.segmenter, predictor.placed(prompts), masks, zoom, mirror)
        found = {name: Evidence(agreed[name], sharp) for name, sharp in self._sharp.items()}
        return {name: self._note(evidence) for name, evidence in found.items()}

    def _note(self, evidence: Evidence) -> dict[str, float | None]:
        estimate = None if self.calibration is None else round(self.calibration.estimate(evidence), 4)
        return {
            "estimated_dice": estimate,
            "agreement": round(evidence.agreement, 4),
            "sharpness": round(evidence.sharpness, 4),
        }


def _mirror(name: str) -> str:
    """The registry's partner of a structure; a name of the user's own has none."""
    try:
        return registered_mirror(name)
    except UserError:
        return name


def review_csv(notes: Mapping[str, Mapping[str, Any]]) -> str:
    """Every mask of every case as CSV, the one to look at first on top; `notes` maps cases to their notes."""
    rows = [
        (Evidence(found["agreement"], found["sharpness"]).score, case, structure, found, note)
        for case, note in notes.items()
        for structure, found in note["confidence"].items()
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for _, case, structure, found, note in sorted(rows, key=lambda row: row[:3]):
        values = [found[column] for column in COLUMNS[2:5]]
        writer.writerow([case, structure, *values, note["volume_ml"][structure], note["image"]])
    return text.getvalue()

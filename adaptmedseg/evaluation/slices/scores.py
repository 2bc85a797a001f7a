"""Scores of one mask of a slice or picture: overlap, outlines in mm and in pixels, components found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmedseg.data.overlap import checked_masks, overlap_of
from adaptmedseg.data.pictures.dataset import SliceItem
from adaptmedseg.evaluation.lesions import count_lesions
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.surfaces import SurfaceDistances, surface_distances

BACKGROUND = "background"
TOLERANCE_PIXELS = 1.0


@dataclass(frozen=True)
class Answer:
    """Who answered, how it was asked, and the boolean mask (h, w) of a structure. `draw` numbers draws of supports."""

    method: str
    origin: str
    structure: str
    mask: np.ndarray
    draw: int | None = None


def slice_measures(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] | None) -> dict[str, Any]:
    """Measures of masks (h, w) beside Dice, under the names that they have in results.

    `class_accuracy` is the share of the truth's pixels that were found. `nsd_1px` is the normalised surface Dice of the
    outlines at a tolerance of one pixel, 0 where one mask alone is empty. Distances in mm are None where a mask is
    empty or the size of pixels, `spacing` along (h, w), is not known.
    """
    predicted, true = checked_masks(prediction, truth)
    overlap, lesions = overlap_of(predicted, true), count_lesions(predicted, true)
    both = predicted.any() and true.any()
    pixels = surface_distances(predicted, true, (1.0, 1.0)) if both else None
    mm: SurfaceDistances | None = surface_distances(predicted, true, spacing) if both and spacing else None
    nsd = pixels.normalised_dice(TOLERANCE_PIXELS) if pixels else 0.0 if predicted.any() or true.any() else None
    return {
        "jaccard": overlap.jaccard,
        "class_accuracy": overlap.shared / overlap.true if overlap.true else None,
        "asd_mm": None if mm is None else mm.average(),
        "assd_mm": None if mm is None else mm.symmetric_average(),
        "hd95_mm": None if mm is None else mm.hausdorff(95),
        "nsd_1px": nsd,
        "component_recall": lesions.recall,
        "component_precision": lesions.precision,
        "truth_pixels": overlap.true,
        "predicted_pixels": overlap.predicted,
        "truth_share": overlap.true / truth.size,
        "truth_empty": overlap.true == 0,
        "prediction_empty": overlap.predicted == 0,
    }


def slice_record(dataset: str, item: SliceItem, truth: np.ndarray, answer: Answer) -> Record:
    """The score of one answer. Volumes are those of a slice of 1 mm; pixels of unknown size count as 1 mm²."""
    found = slice_measures(answer.mask, truth, item.spacing)
    millilitres = float(np.prod(item.spacing or (1.0, 1.0))) / 1000
    return Record(
        method=answer.method,
        dataset=dataset,
        modality=item.modality,
        case=item.id,
        patient=item.patient,
        structure=answer.structure,
        prompt_origin=answer.origin,
        dice=overlap_of(answer.mask, truth).dice,
        volume_ml=found["predicted_pixels"] * millilitres,
        truth_volume_ml=found["truth_pixels"] * millilitres,
        split=item.split,
        fold=answer.draw,
        extra=found,
    )


def item_records(dataset: str, item: SliceItem, answers: Sequence[Answer], *, background: bool) -> list[Record]:
    """Scores of all answers to one image; with `background` that of what none of them covers, too, against what no
    annotated structure covers, where all of these were asked for: with one left out both would be something else."""
    truths = {answer.structure: item.mask(answer.structure) for answer in answers}
    records = [slice_record(dataset, item, truths[answer.structure], answer) for answer in answers]
    if background and answers and set(item.annotated) <= truths.keys():
        first = answers[0]
        rest = Answer(first.method, first.origin, BACKGROUND, ~_union({a.structure: a.mask for a in answers}))
        records.append(slice_record(dataset, item, ~_union(truths), rest))
    return records


def _union(masks: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.logical_or.reduce(list(masks.values()))

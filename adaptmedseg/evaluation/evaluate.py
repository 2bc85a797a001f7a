"""Scores of a model on prepared cases, on the scanner's own voxels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.data.overlap import dice
from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.data.prepared.case import UNKNOWN_SITE
from adaptmedseg.evaluation.metrics import MeasureSettings, measure
from adaptmedseg.evaluation.questions import Answered, ByName, FixedOutput, Question
from adaptmedseg.evaluation.records import Record
from adaptmedseg.inference.asking import uses_token
from adaptmedseg.inference.loading import LoadedModel
from adaptmedseg.inference.prompt_origin import JOIN, TEXT, with_task_token
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.unet import ReferenceUNet

OnMask = Callable[[PreparedCase, str, np.ndarray, Record], None]


def segvol_for_all(modality: str) -> Normalisation:
    """SegVol's rule, whatever the modality."""
    return SEGVOL


def never(modality: str) -> bool:
    """The whole view alone, whatever the modality."""
    return False


def no_token(modality: str, structure: str, named: bool) -> bool:
    """The model has no tokens."""
    return False


@dataclass(frozen=True)
class Asked:
    """Who is asked, and how: `method` names the model in tables, `questions` are how structures are prompted.

    Of a modality `normalisation_of` gives the way of normalising, and `zooms` whether to take a second look by windows
    at full resolution; `uses_token` tells whether the model's own token for a structure has a say, by name or without.
    Without `measures` Dice and volumes are all that is measured.
    """

    method: str
    dataset: str
    questions: Sequence[Question] = (ByName(),)
    normalisation_of: Callable[[str], Normalisation] = segvol_for_all
    zooms: Callable[[str], bool] = never
    uses_token: Callable[[str, str, bool], bool] = no_token
    measures: MeasureSettings | None = None


def asked_of(
    loaded: LoadedModel,
    method: str,
    dataset: str,
    questions: Sequence[Question] = (ByName(),),
    *,
    zoom: bool | None = None,
    measures: MeasureSettings | None = None,
) -> Asked:
    """A loaded model asked as it was made for, or with `zoom` as that says; a U-Net never gets a prompt."""
    return Asked(
        method,
        dataset,
        (FixedOutput(),) if isinstance(loaded.model, ReferenceUNet) else questions,
        loaded.normalisation_of,
        loaded.zooms if zoom is None else lambda modality: zoom,
        partial(uses_token, loaded),
        measures,
    )


def evaluate_case(
    segmenter: CropSegmenter, case: PreparedCase, structures: Sequence[str], asked: Asked, on_mask: OnMask | None = None
) -> list[Record]:
    """One record for each question and structure that the case annotates; truth outside the crop counts as missed.

    The prepared crop keeps the scanner's voxels, so Dice is that of the mask on the scanner's grid.
    """
    names = [name for name in structures if name in case.annotated]
    if not names:
        return []
    segmenter.set_crop(case.image(asked.normalisation_of(case.modality)), case.modality)
    zoom = asked.zooms(case.modality)
    records = []
    for question in asked.questions:
        for answered in question.ask(segmenter, case, names, zoom):
            record = _record(case, answered, asked, zoom)
            records.append(record)
            if on_mask is not None:
                on_mask(case, answered.structure, answered.mask, record)
    return records


def _record(case: PreparedCase, answered: Answered, asked: Asked, zoom: bool) -> Record:
    name, mask, origin = answered.structure, answered.mask, answered.origin
    if asked.uses_token(case.modality, name, TEXT in origin.split(JOIN)):
        origin = with_task_token(origin)
    lost = case.voxels[name] - case.voxels_in_crop[name]
    truth = case.mask(name)
    extra: dict[str, Any] = {}
    if asked.measures is None:
        score = dice(mask, truth, lost)
    else:
        found = measure(mask, truth, case.spacing if case.spacing_stated else None, asked.measures, lost)
        score = found.overlap.dice
        extra = {**found.as_dict(), "truth_voxels_outside_crop": lost, "zoom": zoom}
    if case.site != UNKNOWN_SITE:
        extra["site"] = case.site
    voxel_ml = case.grid.voxel_ml
    return Record(
        method=asked.method,
        dataset=asked.dataset,
        modality=case.modality,
        case=case.id,
        patient=case.patient,
        structure=name,
        prompt_origin=origin,
        dice=score,
        volume_ml=float(mask.sum()) * voxel_ml,
        truth_volume_ml=case.voxels[name] * voxel_ml,
        split=case.split if case.fold is None else "test",
        fold=case.fold,
        extra=extra,
    )


def evaluate_cases(
    segmenter: CropSegmenter,
    cases: Sequence[PreparedCase],
    structures: Sequence[str],
    asked: Asked,
    *,
    on_mask: OnMask | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Records of all cases, in their order."""
    records: list[Record] = []
    for done, case in enumerate(cases, 1):
        records.extend(evaluate_case(segmenter, case, structures, asked, on_mask))
        if progress is not None:
            progress(done, len(cases))
    return records


def mean_dice(records: Sequence[Record]) -> float:
    """Mean over structures of the mean over cases; NaN without a score."""
    by_structure: dict[str, list[float]] = {}
    for record in records:
        if record.dice is not None:
            by_structure.setdefault(record.structure, []).append(record.dice)
    return float(np.mean([np.mean(values) for values in by_structure.values()])) if by_structure else float("nan")

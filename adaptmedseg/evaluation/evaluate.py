"""Scores of a model on prepared cases, on the scanner's own voxels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.evaluation.metrics import dice
from adaptmedseg.evaluation.records import Record
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.training.simulate import box_of

Ask = Literal["text", "oracle box", "none"]
OnMask = Callable[[PreparedCase, str, np.ndarray, Record], None]


def segvol_for_all(modality: str) -> Normalisation:
    """SegVol's rule, whatever the modality."""
    return SEGVOL


@dataclass(frozen=True)
class Asked:
    """Who is asked, and how: `method` names the model in tables, `ask` is how structures are prompted.

    "none" is for networks with one fixed output a structure: they get no prompt, whatever is asked. `zoom` takes a
    second look by windows at full resolution. `normalisation_of` gives a modality's way of normalising.
    """

    method: str
    dataset: str
    ask: Ask = "text"
    zoom: bool = False
    normalisation_of: Callable[[str], Normalisation] = segvol_for_all


def prompts_for(case: PreparedCase, names: list[str], ask: Ask) -> list[StructurePrompt]:
    """Prompts for structures of one case: by name, or by name and the truth's own box ('oracle')."""
    if ask != "oracle box":
        return [StructurePrompt(name) for name in names]
    boxes = {name: box_of(case.mask(name)) for name in names}
    return [StructurePrompt(name, box=torch.from_numpy(box)) for name, box in boxes.items() if box is not None]


def evaluate_case(
    segmenter: CropSegmenter, case: PreparedCase, structures: Sequence[str], asked: Asked, on_mask: OnMask | None = None
) -> list[Record]:
    """One record for each structure that the case annotates; truth outside the prepared crop counts as missed.

    The prepared crop keeps the scanner's voxels, so Dice is that of the mask on the scanner's grid.
    """
    names = [name for name in structures if name in case.annotated]
    if asked.ask == "oracle box":
        names = [name for name in names if case.voxels_in_crop[name]]
    if not names:
        return []
    segmenter.set_crop(case.image(asked.normalisation_of(case.modality)), case.modality)
    prompts = prompts_for(case, names, asked.ask)
    records = []
    voxel_ml = case.grid.voxel_ml
    for name, result in zip(names, segmenter.segment(prompts, zoom=asked.zoom), strict=True):
        mask = result.logits > 0
        lost = case.voxels[name] - case.voxels_in_crop[name]
        record = Record(
            method=asked.method,
            dataset=asked.dataset,
            modality=case.modality,
            case=case.id,
            patient=case.patient,
            structure=name,
            prompt_origin=asked.ask,
            dice=dice(mask, case.mask(name), lost),
            volume_ml=float(mask.sum()) * voxel_ml,
            truth_volume_ml=case.voxels[name] * voxel_ml,
            split=case.split if case.fold is None else "test",
            fold=case.fold,
        )
        records.append(record)
        if on_mask is not None:
            on_mask(case, name, mask, record)
    return records


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

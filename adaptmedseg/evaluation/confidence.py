"""How well confidence ranks errors: evidence of masks beside their true Dice, on cases that no training saw."""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace

import torch

from adaptmedseg.data.overlap import dice
from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.inference.calibration import Calibration, fit_calibration
from adaptmedseg.inference.confidence import Evidence, agreements, mirror_within, sharpness
from adaptmedseg.inference.loading import LoadedModel
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.prompts import StructurePrompt


@dataclass(frozen=True)
class Judged:
    """A mask asked by name: what speaks for it, its true Dice, and the estimate that a calibration gives it.

    `group` is what calibrations are held apart by: models, or folds.
    """

    group: str
    case: str
    patient: Hashable
    structure: str
    evidence: Evidence
    dice: float
    estimate: float | None = None


def judge_case(
    loaded: LoadedModel,
    segmenter: CropSegmenter,
    case: PreparedCase,
    structures: Collection[str],
    mirror: Callable[[str], str],
    group: str = "",
) -> list[Judged]:
    """Evidence and true Dice of the structures that a case annotates; those empty in truth and mask are left out."""
    names = [name for name in case.annotated if name in structures]
    if not names:
        return []
    segmenter.set_crop(case.image(loaded.normalisation_of(case.modality)), case.modality)
    zoom = loaded.zooms(case.modality)
    prompts = [StructurePrompt(name) for name in names]
    masks, sharp = {}, {}
    for result in segmenter.segment(prompts, zoom):
        masks[result.structure], sharp[result.structure] = result.logits > 0, sharpness(result.logits)
    agreed = agreements(segmenter, prompts, masks, zoom, mirror_within(loaded.structures, mirror))
    found = []
    for name in names:
        value = dice(masks[name], case.mask(name), case.voxels[name] - case.voxels_in_crop[name])
        if value is not None:
            found.append(Judged(group, case.id, case.patient, name, Evidence(agreed[name], sharp[name]), value))
    return found


def judge(
    loaded: LoadedModel,
    cases: Sequence[PreparedCase],
    structures: Collection[str],
    mirror: Callable[[str], str],
    device: torch.device,
    *,
    group: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[Judged]:
    """As `judge_case`, for all cases."""
    segmenter = CropSegmenter(loaded.model.to(device), loaded.size, loaded.resize, device)
    found: list[Judged] = []
    for done, case in enumerate(cases, 1):
        found += judge_case(loaded, segmenter, case, structures, mirror, group)
        if progress is not None:
            progress(done, len(cases))
    return found


def calibrated_apart(judged: Sequence[Judged]) -> list[Judged]:
    """Each mask with the estimate of a calibration that was fitted without its group, or, where there is one group
    alone, without its patient. Raises ValueError where too few are left to fit on."""
    several = len({one.group for one in judged}) > 1

    def key(one: Judged) -> Hashable:
        return one.group if several else one.patient

    curves: dict[Hashable, Calibration] = {}
    for apart in {key(one) for one in judged}:
        rest = [one for one in judged if key(one) != apart]
        curves[apart] = fit_calibration([one.evidence for one in rest], [one.dice for one in rest])
    return [replace(one, estimate=curves[key(one)].estimate(one.evidence)) for one in judged]

"""Models asked by name about the same cases under the same shifts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np
import torch

from adaptmedseg.data.overlap import dice
from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.evaluation.evaluate import Asked, asked_of, evaluate_case
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.shifts.complexity import complexity
from adaptmedseg.evaluation.shifts.corruptions import CORRUPTIONS
from adaptmedseg.evaluation.shifts.geometry import GEOMETRY
from adaptmedseg.evaluation.shifts.scene import Scene, Shift
from adaptmedseg.evaluation.study import StudyData, StudyMethod, check_study, study_structures
from adaptmedseg.inference.confidence import Mirror, mirror_within
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.prompts import StructurePrompt

CLEAN = "none"
SHIFTS: tuple[Shift, ...] = (*CORRUPTIONS, *GEOMETRY)
Progress = Callable[[int, int], None]


def run_shifts(
    methods: Sequence[StudyMethod],
    data: Sequence[StudyData],
    device: torch.device,
    *,
    shifts: Sequence[Shift] = SHIFTS,
    structures: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Record]:
    """Scores of every method on every case, clean and under every shift at every severity.

    `extra` of a record has `shift` (`none` where clean), `severity` from 1 on (0 where clean), `level`, and where clean
    the covariates of `complexity`. UserError as `study.check_study`.
    """
    check_study(methods, data, structures)
    total, done = len(methods) * sum(len(source.cases) for source in data), 0
    records: list[Record] = []
    for method in methods:
        loaded = method.loaded
        segmenter = CropSegmenter(loaded.model.to(device), loaded.size, loaded.resize, device)
        for source in data:
            names = study_structures(method, source.dataset, structures)
            asked = asked_of(loaded, method.name, source.dataset.name, zoom=method.zoom)
            mirror = mirror_within(loaded.structures, source.dataset.registry.mirror)
            for case in source.cases:
                records += shift_case(segmenter, case, names, asked, mirror, shifts, seed)
                done += 1
                if progress is not None:
                    progress(done, total)
    return records


def shift_case(
    segmenter: CropSegmenter,
    case: PreparedCase,
    structures: Sequence[str],
    asked: Asked,
    mirror: Mirror,
    shifts: Sequence[Shift],
    seed: int,
) -> list[Record]:
    """The clean scores of a case, then those under each shift; the draw depends on seed, case and shift alone."""
    clean = {record.structure: record for record in evaluate_case(segmenter, case, structures, asked)}
    if not clean:
        return []
    image = case.image(asked.normalisation_of(case.modality))
    scene = Scene(image, {name: case.mask(name) for name in clean}, case.spacing)
    records = [
        replace(record, extra={"shift": CLEAN, "severity": 0, "level": None}
                | complexity(image, scene.masks[name]).as_dict())
        for name, record in clean.items()
    ]  # fmt: skip
    for shift in shifts:
        for severity, level in enumerate(shift.levels, 1):
            rng = np.random.default_rng([seed, crc32(case.id.encode()), crc32(shift.name.encode())])
            changed = shift.apply(scene, level, rng)
            extra = {"shift": shift.name, "severity": severity, "level": level}
            for name, mask in _masks(segmenter, changed, case, asked, mirror).items():
                lost = case.voxels[name] - case.voxels_in_crop[name]
                volume = float(mask.sum()) * case.grid.voxel_ml
                score = dice(mask, changed.masks[name], lost)
                records.append(replace(clean[name], dice=score, volume_ml=volume, extra=extra))
    return records


def _masks(
    segmenter: CropSegmenter, scene: Scene, case: PreparedCase, asked: Asked, mirror: Mirror
) -> Mapping[str, np.ndarray]:
    """The model's masks of a changed scene, under the names that the structures have in the clean one.

    In a mirror the left kidney is a right one, and is asked for as such; where the model knows no such structure it is
    left out.
    """
    names = {name: mirror(name) if scene.mirrored else name for name in scene.masks}
    pairs = [(name, now) for name, now in names.items() if now is not None]
    segmenter.set_crop(scene.image, case.modality)
    results = segmenter.segment([StructurePrompt(now) for _, now in pairs], asked.zooms(case.modality))
    return {name: result.logits > 0 for (name, _), result in zip(pairs, results, strict=True)}

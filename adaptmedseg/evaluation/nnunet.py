"""nnU-Net's own results as scores beside ours: a folder of predicted label maps, or the summary.json of its evaluation.

Label maps are measured as our masks are, on the scanner's voxels; a summary holds overlap and volumes alone. Which
cases nnU-Net was trained on is known to neither, so that the test cases must have been kept from it.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptmedseg.data.normalise import crop_slices
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.data.prepared.case import UNKNOWN_SITE
from adaptmedseg.data.volume import read_labels, volume_stem, volume_suffix
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.metrics import MeasureSettings, measure
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.study import StudyData
from adaptmedseg.inference.prompt_origin import NONE

SUMMARY = "summary.json"
GRID_TOLERANCE_MM = 0.1
CHANNEL = "_0000"  # nnU-Net's ending of the first channel's image


def nnunet_records(
    method: str, source: Path, data: Sequence[StudyData], measures: MeasureSettings | None = None
) -> list[Record]:
    """Scores of the cases to score of all data sets for which SOURCE has something, measured by `measures`; others have
    none, which reports tell. UserError where it has something for no case, cannot be read, or lies on another grid."""
    measures = measures or MeasureSettings()
    found: list[Record] = []
    if source.is_file():
        metrics = _summary(source)
        for one in data:
            for case in one.cases:
                found += _from_summary(method, one.dataset, case, metrics.get(_id_of(case, metrics)), source)
    elif source.is_dir():
        files = {volume_stem(path): path for path in sorted(source.iterdir()) if volume_suffix(path)}
        for one in data:
            for case in one.cases:
                name = _id_of(case, files)
                found += _from_mask(method, one.dataset, case, files[name], measures) if name in files else []
    else:
        raise UserError(f"{source}: there is no such folder or file; give nnU-Net's predictions or its {SUMMARY}")
    if not found:
        raise UserError(f"{source}: holds nothing of the cases to score ({_some_ids(data)}); their names must agree")
    return found


def _some_ids(data: Sequence[StudyData]) -> str:
    return ", ".join([case.id for one in data for case in one.cases][:3]) + ", ..."


def _id_of(case: PreparedCase, known: Any) -> str:
    """The name under which nnU-Net has a case: its id, or that of its image's file."""
    image = volume_stem(Path(case.sources["image"]["path"]))
    names = (case.id, image, image.removesuffix(CHANNEL))
    return next((name for name in names if name in known), case.id)


def _labels_of(dataset: PreparedDataset) -> dict[str, list[int]]:
    """Label values by structure: those of the source that the set was prepared from."""
    return {name: list(values) for name, values in dataset.manifest["label_values"].items()}


def _from_mask(
    method: str, dataset: PreparedDataset, case: PreparedCase, path: Path, measures: MeasureSettings
) -> Iterator[Record]:
    volume = read_labels(path)
    same = volume.grid.shape == case.grid.shape
    if not same or volume.grid.distance_mm(case.grid) > GRID_TOLERANCE_MM:
        apart = f"its corners lie up to {volume.grid.distance_mm(case.grid):.3g} mm off" if same else (
            f"{_size(volume.grid.shape)} against {_size(case.grid.shape)} voxels"
        )  # fmt: skip
        raise UserError(
            f"{path}: lies on another grid than the image of {dataset.name}/{case.id} ({apart}); "
            "give nnU-Net's masks on the scanner's grid"
        )
    inside = crop_slices(case.crop)
    for structure, values in _labels_of(dataset).items():
        if structure not in case.annotated:
            continue
        predicted = np.isin(volume.data, values)
        truth = np.zeros(volume.data.shape, bool)
        truth[inside] = case.mask(structure)
        lost = case.voxels[structure] - case.voxels_in_crop[structure]
        spacing = case.spacing if case.spacing_stated else None
        found = measure(predicted, truth, spacing, measures, lost)
        extra = {**found.as_dict(), "truth_voxels_outside_crop": lost}
        yield _record(method, dataset, case, structure, found.overlap.dice, found.overlap.predicted, extra)


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _summary(path: Path) -> dict[str, dict[str, Any]]:
    """Measures by case and label of nnU-Net's (version 2) summary.json."""
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))["metric_per_case"]
        return {volume_stem(Path(case["prediction_file"])): dict(case["metrics"]) for case in cases}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: is no summary of nnU-Net (version 2): it has no 'metric_per_case'") from None


def _from_summary(
    method: str, dataset: PreparedDataset, case: PreparedCase, metrics: dict[str, Any] | None, path: Path
) -> Iterator[Record]:
    for structure, values in _labels_of(dataset).items() if metrics is not None else ():
        found = (metrics or {}).get(str(values[0])) if len(values) == 1 else None
        if found is None or structure not in case.annotated:
            continue
        try:
            predicted, true = int(found["n_pred"]), int(found["n_ref"])
            value = float(found["Dice"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: case {case.id}, label {values[0]}: holds no Dice, n_pred and n_ref") from None
        if true != case.voxels[structure]:
            raise UserError(
                f"{path}: case {case.id} has {true} true voxels of label {values[0]}, and {dataset.name} has "
                f"{case.voxels[structure]} of {structure}; it was evaluated against another truth"
            )
        dice = value if predicted + true else None
        extra = {"truth_empty": true == 0, "prediction_empty": predicted == 0}
        yield _record(method, dataset, case, structure, dice, predicted, extra)


def _record(
    method: str,
    dataset: PreparedDataset,
    case: PreparedCase,
    structure: str,
    dice: float | None,
    voxels: int,
    extra: dict[str, Any],
) -> Record:
    voxel_ml = case.grid.voxel_ml
    return Record(
        method=method,
        dataset=dataset.name,
        modality=case.modality,
        case=case.id,
        patient=case.patient,
        structure=structure,
        prompt_origin=NONE,
        dice=dice,
        volume_ml=voxels * voxel_ml,
        truth_volume_ml=case.voxels[structure] * voxel_ml,
        split=case.split if case.fold is None else "test",
        fold=case.fold,
        extra=extra if case.site == UNKNOWN_SITE else extra | {"site": case.site},
    )

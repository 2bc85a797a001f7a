"""Overlap, volume, surfaces and lesions of a mask against the truth.

All volumes are `(d, h, w)` with the spacing in the same order, in mm. What has no value is None, never a number that a
mean would swallow; which values are missing follows from which mask is empty:

| | both empty | truth alone | prediction alone |
|---|---|---|---|
| Dice, Jaccard, NSD, lesion F1 | None | 0 | 0 |
| HD95, ASSD, ASD | None | None | None |
| lesion precision | None | 0 | None |
| lesion recall | None | None | 0 |
| relative volume error | None | None | -1 |
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmedseg.data.normalise import bounding_box, crop_slices
from adaptmedseg.data.overlap import Mask, Overlap, checked_masks, overlap_of
from adaptmedseg.evaluation.lesions import LesionCounts, count_lesions
from adaptmedseg.evaluation.surfaces import Elements, Spacing, SurfaceDistances, surface_distances

TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class MeasureSettings:
    """How surfaces are measured: NSD's tolerance, and what a surface is made of (see `surfaces`)."""

    tolerance_mm: float = TOLERANCE_MM
    elements: Elements = "voxels"


@dataclass(frozen=True)
class MaskMeasures:
    """Everything measured of one mask. `surface` is None where a mask is empty or the size of voxels is unknown."""

    overlap: Overlap
    surface: SurfaceDistances | None
    lesions: LesionCounts
    voxel_ml: float
    settings: MeasureSettings
    spacing_known: bool = True

    @property
    def nsd(self) -> float | None:
        """Normalised surface Dice; 0 where one mask alone is empty, None where both are or the spacing is unknown."""
        if self.surface is not None:
            return self.surface.normalised_dice(self.settings.tolerance_mm)
        return 0.0 if self.spacing_known and (self.overlap.predicted or self.overlap.true) else None

    @property
    def volume_error_ml(self) -> float:
        """Predicted minus true volume, signed."""
        return (self.overlap.predicted - self.overlap.true) * self.voxel_ml

    def as_dict(self) -> dict[str, Any]:
        """The measures beside Dice under the names they have in results files and tables."""
        overlap, surface, lesions = self.overlap, self.surface, self.lesions
        relative = (overlap.predicted - overlap.true) / overlap.true if overlap.true else None
        return {
            "jaccard": overlap.jaccard,
            "hd95_mm": None if surface is None else surface.hausdorff(95),
            "assd_mm": None if surface is None else surface.symmetric_average(),
            "asd_mm": None if surface is None else surface.average(),
            "nsd": self.nsd,
            "nsd_tolerance_mm": self.settings.tolerance_mm,
            "surface_elements": self.settings.elements,
            "volume_error_ml": self.volume_error_ml,
            "absolute_volume_error_ml": abs(self.volume_error_ml),
            "relative_volume_error": relative,
            "lesion_precision": lesions.precision,
            "lesion_recall": lesions.recall,
            "lesion_f1": lesions.f1,
            "truth_lesions": lesions.truth,
            "predicted_lesions": lesions.predicted,
            "truth_empty": overlap.true == 0,
            "prediction_empty": overlap.predicted == 0,
        }


def measure(
    prediction: Mask,
    truth: Mask,
    spacing_mm: Spacing | None,
    settings: MeasureSettings | None = None,
    lost_truth_voxels: int = 0,
) -> MaskMeasures:
    """All measures of one mask; the arrays are cropped to both masks first and surfaces found once.

    Surfaces and lesions are those inside the arrays given; `lost_truth_voxels` as in `dice` counts for overlap and
    volume alone. Without `spacing_mm` (unknown voxel size) nothing is measured in mm, and volumes count voxels of
    1 mm³. Raises ValueError as `dice` does.
    """
    predicted, true = checked_masks(prediction, truth)
    either = predicted | true
    if either.any():
        inside = crop_slices(bounding_box(either))
        predicted, true = (np.ascontiguousarray(mask[inside]) for mask in (predicted, true))
    else:
        predicted, true = predicted[:1, :1, :1], true[:1, :1, :1]
    settings = settings or MeasureSettings()
    surface = None
    if spacing_mm is not None and predicted.any() and true.any():
        surface = surface_distances(predicted, true, spacing_mm, settings.elements)
    voxel_ml = float(np.prod(spacing_mm or (1.0, 1.0, 1.0))) / 1000
    overlap = overlap_of(predicted, true, lost_truth_voxels)
    return MaskMeasures(overlap, surface, count_lesions(predicted, true), voxel_ml, settings, spacing_mm is not None)

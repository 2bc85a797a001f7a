"""Overlap of two masks: the one Dice of this project, for scores, benchmarks and confidence alike."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of a prediction, the truth and what they share; truth that a crop cut off counts as missed."""

    predicted: int
    true: int
    shared: int

    @property
    def dice(self) -> float | None:
        """2 |P ∩ T| / (|P| + |T|) (Dice, Ecology 26, 1945); None where both are empty."""
        total = self.predicted + self.true
        return 2 * self.shared / total if total else None

    @property
    def jaccard(self) -> float | None:
        """|P ∩ T| / |P ∪ T| (Jaccard 1912); None where both are empty."""
        union = self.predicted + self.true - self.shared
        return self.shared / union if union else None


def checked_masks(prediction: Mask, truth: Mask) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Both as booleans. Raises ValueError for different shapes and for values other than 0 and 1."""
    predicted, true = _binary(prediction, "prediction"), _binary(truth, "truth")
    if predicted.shape != true.shape:
        raise ValueError(f"prediction and truth differ in shape: {predicted.shape} and {true.shape}")
    return predicted, true


def _binary(mask: Mask, name: str) -> npt.NDArray[np.bool_]:
    """`mask` as booleans; a label map with values above 1 is refused rather than merged into one structure."""
    array = np.asarray(mask)
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name}: a mask holds 0 and 1 only, but this one has values {np.unique(array)[:5].tolist()}")
    return array.astype(bool, copy=False)


def overlap_of(predicted: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_], lost_truth_voxels: int = 0) -> Overlap:
    """Voxel counts of two boolean masks of one shape; `lost_truth_voxels` as in `dice`."""
    if lost_truth_voxels < 0:
        raise ValueError(f"lost_truth_voxels: a count can't be negative, got {lost_truth_voxels}")
    counts = [int(np.count_nonzero(mask)) for mask in (predicted, true, predicted & true)]
    return Overlap(counts[0], counts[1] + lost_truth_voxels, counts[2])


def dice(prediction: Mask, truth: Mask, lost_truth_voxels: int = 0) -> float | None:
    """Dice coefficient of two masks of one shape.

    `lost_truth_voxels` counts truth voxels outside the arrays given (those that a crop cut off): the prediction
    can't hold them, so they count as false negatives.

    Empty truth: `None` (not scored) when the prediction is empty too, 0.0 when it isn't.

    Raises ValueError for different shapes, for values other than 0 and 1, and for a negative count.
    """
    return overlap_of(*checked_masks(prediction, truth), lost_truth_voxels).dice

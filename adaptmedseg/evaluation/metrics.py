"""Overlap and volume of masks. All volumes are `(d, h, w)` with the spacing in the same order, in mm."""

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.generic]


def _binary(mask: Mask, name: str) -> npt.NDArray[np.bool_]:
    """`mask` as booleans; a label map with values above 1 is refused rather than merged into one structure."""
    array = np.asarray(mask)
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name}: a mask holds 0 and 1 only, but this one has values {np.unique(array)[:5].tolist()}")
    return array.astype(bool)


def dice(prediction: Mask, truth: Mask, lost_truth_voxels: int = 0) -> float | None:
    """Dice coefficient 2 |P ∩ T| / (|P| + |T|) (Dice, Ecology 26, 1945) of two masks of one shape.

    `lost_truth_voxels` counts truth voxels outside the arrays given (those that a crop cut off): the prediction
    can't hold them, so they count as false negatives.

    Empty truth: `None` (not scored) when the prediction is empty too, 0.0 when it isn't.

    Raises ValueError for different shapes, for values other than 0 and 1, and for a negative count.
    """
    if lost_truth_voxels < 0:
        raise ValueError(f"lost_truth_voxels: a count can't be negative, got {lost_truth_voxels}")
    predicted, true = _binary(prediction, "prediction"), _binary(truth, "truth")
    if predicted.shape != true.shape:
        raise ValueError(f"prediction and truth differ in shape: {predicted.shape} and {true.shape}")
    total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(true)) + lost_truth_voxels
    if total == 0:
        return None
    return 2 * int(np.count_nonzero(predicted & true)) / total

"""Detection of lesions: connected components of the truth that were found, and of the prediction that are there."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of the truth and how many of them were found, lesions of the prediction and how many of them are true.

    A lesion is found, or true, when a single voxel of it is in the other mask: several marks on one lesion are all
    true, and one mark over several lesions finds all of them.
    """

    truth: int
    found: int
    predicted: int
    true: int

    @property
    def precision(self) -> float | None:
        """Share of the predicted lesions that are true; None where nothing is predicted."""
        return self.true / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the true lesions that were found; None where there is none."""
        return self.found / self.truth if self.truth else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, 0 where one of the masks alone is empty; None where both are."""
        if not self.truth and not self.predicted:
            return None
        precision, recall = self.precision or 0.0, self.recall or 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def count_lesions(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> LesionCounts:
    """Lesions of two boolean masks (d, h, w) or (h, w) of one shape; voxels that share a face, an edge or a corner are
    one lesion."""
    neighbours = np.ones((3,) * truth.ndim, bool)
    true_labels, true_count = ndimage.label(truth, neighbours)
    labels, count = ndimage.label(prediction, neighbours)
    shared = prediction & truth
    found, true = np.unique(true_labels[shared]), np.unique(labels[shared])
    return LesionCounts(int(true_count), len(found), int(count), len(true))

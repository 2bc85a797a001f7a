"""How hard a structure is to see in an image: covariates that say where a model fails, shift or not."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

SHELL = 2  # voxels on either side of the border
BINS = 32


@dataclass(frozen=True)
class Complexity:
    """Of one structure in one image (in [0, 1]).

    `size_share`: its share of the image's voxels. `boundary_contrast`: difference of the mean intensity of the shells
    inside and outside of its border over their pooled standard deviation (0: no visible border). `texture_entropy`: of
    the histogram of its own intensities, bits (0: one grey value, 5: all alike often). None where the structure has no
    such voxels.
    """

    size_share: float
    boundary_contrast: float | None
    texture_entropy: float | None

    def as_dict(self) -> dict[str, float | None]:
        """The covariates under the names they have in results files."""
        return asdict(self)


COVARIATES = {
    "size_share": "share of the image's voxels",
    "boundary_contrast": "contrast at the border, standard deviations",
    "texture_entropy": "entropy of intensities inside, bits",
}


def complexity(image: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_]) -> Complexity:
    """Covariates of a mask (d, h, w) in an image of the same shape with intensities in [0, 1]."""
    if not mask.any():
        return Complexity(0.0, None, None)
    place = ndimage.find_objects(mask.astype(np.uint8))[0]
    around = tuple(slice(max(s.start - SHELL - 1, 0), s.stop + SHELL + 1) for s in place)
    inside, values = mask[around], image[around].astype(np.float64)
    core = ndimage.binary_erosion(inside, iterations=SHELL)
    grown = ndimage.binary_dilation(inside, iterations=SHELL)
    return Complexity(
        float(mask.mean()), _contrast(values[inside & ~core], values[grown & ~inside]), _entropy(values[inside])
    )


def _contrast(inner: npt.NDArray[np.float64], outer: npt.NDArray[np.float64]) -> float | None:
    if not len(inner) or not len(outer):
        return None
    spread = float(np.sqrt((inner.var() + outer.var()) / 2))
    return abs(float(inner.mean() - outer.mean())) / max(spread, 1e-6)


def _entropy(values: npt.NDArray[np.float64]) -> float:
    counts, _ = np.histogram(values, bins=BINS, range=(0, 1))
    shares = counts[counts > 0] / counts.sum()
    return abs(float(-(shares * np.log2(shares)).sum()))

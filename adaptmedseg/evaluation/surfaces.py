"""Distances between the surfaces of two masks, in mm, by one of two definitions of what a surface is made of.

`voxels`, the default and what MONAI and SimpleITK's contours use: the mask's voxels with a face neighbour outside of it
(voxels at the array's rim among them), each counted once. Distances lie between voxel centres, so that two masks that
differ by one voxel everywhere are one voxel apart; thick slices weigh as much as thin ones.

`surfels`, what DeepMind's surface-distance uses (Nikolov et al. 2018, arXiv:1809.04430): the pieces of the
marching-cubes surface at the corners between voxels, each weighted by its area in mm². Percentiles step instead of
interpolating.

Neither is wrong, and their numbers differ: on anisotropic voxels by several percent of an average distance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from monai.metrics.utils import get_code_to_measure_table
from scipy.spatial import KDTree

Elements = Literal["voxels", "surfels"]
Spacing = tuple[float, ...]  # mm along d, h, w; of slices along h, w
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Rounding must not decide whether 5 voxels of 0.4 mm lie within a tolerance of 2 mm, or 19 of 20 areas are 95 percent.
_TIE_MM, _TIE_SHARE = 1e-6, 1e-7


@dataclass(frozen=True)
class DirectedDistances:
    """From each element of one surface to the nearest of the other: `mm` (n,), and the elements' `areas` (n,) in mm²;
    without areas every element counts alike."""

    mm: Floats
    areas: Floats | None = None

    @property
    def total(self) -> float:
        return float(len(self.mm)) if self.areas is None else float(self.areas.sum())

    @property
    def integral(self) -> float:
        """Sum of the distances, each weighted by its element's area."""
        return float(self.mm.sum()) if self.areas is None else float(self.mm @ self.areas)

    def within(self, tolerance_mm: float) -> float:
        """How much of the surface lies within the tolerance."""
        near = self.mm <= tolerance_mm + _TIE_MM
        return float(np.count_nonzero(near)) if self.areas is None else float(self.areas[near].sum())

    def percentile(self, percent: float) -> float:
        """Interpolated between elements; with areas the first distance up to which `percent` of the area lies."""
        if self.areas is None:
            return float(np.percentile(self.mm, percent))
        order = np.argsort(self.mm)
        shares = np.cumsum(self.areas[order]) / self.areas.sum()
        reached = int(np.searchsorted(shares, percent / 100 - _TIE_SHARE))
        return float(self.mm[order][min(reached, len(order) - 1)])


@dataclass(frozen=True)
class SurfaceDistances:
    """Both directions; from these every surface measure follows."""

    to_truth: DirectedDistances
    to_prediction: DirectedDistances

    def hausdorff(self, percent: float = 95.0) -> float:
        """The larger one of the two directions' percentiles, in mm (Huttenlocher et al. 1993 for 100 percent)."""
        return max(self.to_truth.percentile(percent), self.to_prediction.percentile(percent))

    def average(self) -> float:
        """ASD: mean distance from the predicted surface to the true one, in mm."""
        return self.to_truth.integral / self.to_truth.total

    def symmetric_average(self) -> float:
        """ASSD: mean over the elements of both surfaces, in mm (Heimann et al. 2009)."""
        both = (self.to_truth, self.to_prediction)
        return sum(one.integral for one in both) / sum(one.total for one in both)

    def normalised_dice(self, tolerance_mm: float) -> float:
        """NSD: the share of both surfaces that lies within the tolerance of the other (Nikolov et al. 2018)."""
        both = (self.to_truth, self.to_prediction)
        return sum(one.within(tolerance_mm) for one in both) / sum(one.total for one in both)


def surface_distances(
    prediction: Bools, truth: Bools, spacing_mm: Spacing, elements: Elements = "voxels"
) -> SurfaceDistances:
    """Distances between the surfaces of two boolean masks (d, h, w) of one shape, neither of them empty; of two masks
    (h, w) between their outlines, made of pixels.

    Only elements that the other surface lacks are looked up, in a k-d tree, which costs what the surfaces cost and not
    what the box round them does. `spacing_mm` is in the order of the axes. Raises ValueError for an empty mask, and
    for surfels of two dimensions.
    """
    if not prediction.any() or not truth.any():
        raise ValueError("an empty mask has no surface to measure from")
    if elements == "surfels" and prediction.ndim != 3:
        raise ValueError("surfels are made of volumes; measure slices by voxels")
    find: Callable[[Bools, Spacing], tuple[Bools, Floats | None]]
    find = _surface_voxels if elements == "voxels" else _surfels
    predicted, predicted_areas = find(prediction, spacing_mm)
    true, true_areas = find(truth, spacing_mm)
    return SurfaceDistances(
        DirectedDistances(_nearest(predicted, true, spacing_mm), predicted_areas),
        DirectedDistances(_nearest(true, predicted, spacing_mm), true_areas),
    )


def _nearest(surface: Bools, other: Bools, spacing_mm: Spacing) -> Floats:
    """From each element of a surface, in the array's order, to the nearest one of the other, in mm."""
    shared = other[surface]
    mm = np.zeros(len(shared))
    if not shared.all():
        tree = KDTree(np.argwhere(other) * np.array(spacing_mm), leafsize=32, balanced_tree=False)
        mm[~shared] = tree.query(np.argwhere(surface & ~other) * np.array(spacing_mm))[0]
    return mm


def _surface_voxels(mask: Bools, _spacing_mm: Spacing) -> tuple[Bools, None]:
    """Voxels of a mask with a face neighbour outside of it; outside of the array is outside of the mask."""
    padded = np.pad(mask, 1)
    core = mask.copy()
    for axis, n in enumerate(mask.shape):
        for start in (0, 2):
            place = [slice(1, -1)] * mask.ndim
            place[axis] = slice(start, start + n)
            core &= padded[tuple(place)]
    return mask & ~core, None


def _surfels(mask: Bools, spacing_mm: Spacing) -> tuple[Bools, Floats]:
    """Corners between voxels (d + 1, h + 1, w + 1) that the surface passes, and the area of its piece at each."""
    areas, bits = _areas_by_neighbourhood(spacing_mm)
    padded = np.pad(mask, 1).view(np.uint8)
    d, h, w = padded.shape
    code = np.zeros((d - 1, h - 1, w - 1), np.uint8)
    for (i, j, k), bit in np.ndenumerate(bits):
        code += padded[i : d - 1 + i, j : h - 1 + j, k : w - 1 + k] * bit
    surface = (code != 0) & (code != 255)
    return surface, areas[code[surface]]


@lru_cache(maxsize=64)
def _areas_by_neighbourhood(spacing_mm: Spacing) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Area in mm² of the surface in each of the 256 neighbourhoods of 2×2×2 voxels, and the voxels' bits (2, 2, 2)."""
    table, kernel = get_code_to_measure_table(spacing_mm)
    return table.numpy().astype(np.float64), kernel[0, 0].numpy().astype(np.uint8)

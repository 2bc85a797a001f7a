"""SegVol's normalisation of one volume ("SegVol: Universal and Interactive Volumetric Medical Image Segmentation")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptmedseg.data.volume import Volume
from adaptmedseg.errors import UserError

NORMALISATION = "segvol-1"  # name and version of what `segvol_normalise` does: models are bound to it
Crop = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class ForegroundStatistics:
    """Mean, standard deviation and the 0.05 and 99.95 percentiles of the voxels above the volume's mean."""

    mean: float
    std: float
    low: float
    high: float


def foreground_statistics(image: np.ndarray) -> ForegroundStatistics:
    """Statistics of the foreground, taken before clipping.

    Raises:
        ValueError: no voxel lies above the mean (the image is constant).
    """
    foreground = image[image > np.mean(image, dtype=np.float64)]
    if foreground.size == 0:
        raise ValueError("the image is constant, so that it has no foreground")
    low, high = np.percentile(foreground, [0.05, 99.95])
    mean = float(np.mean(foreground, dtype=np.float64))
    return ForegroundStatistics(mean, float(np.std(foreground, dtype=np.float64)), float(low), float(high))


def standardise(image: np.ndarray) -> np.ndarray:
    """Clip to the foreground's percentiles, subtract its mean and divide by its standard deviation; float32."""
    stats = foreground_statistics(image)
    clipped = np.clip(image, stats.low, stats.high).astype(np.float32)
    return (clipped - np.float32(stats.mean)) / np.float32(max(stats.std, 1e-8))


def min_max(image: np.ndarray) -> np.ndarray:
    """Shift and scale to [0, 1]."""
    shifted = image - image.min()
    return shifted / max(float(shifted.max()), 1e-8)


def bounding_box(mask: np.ndarray) -> Crop:
    """The (start, stop) of every axis round the true voxels of a (d, h, w) mask.

    Raises:
        ValueError: the mask is empty.
    """
    ranges = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if hit.size == 0:
            raise ValueError("an empty mask has no bounding box")
        ranges.append((int(hit[0]), int(hit[-1]) + 1))
    return ranges[0], ranges[1], ranges[2]


def crop_slices(crop: Crop) -> tuple[slice, slice, slice]:
    """Slices that cut `crop` out of a (d, h, w) array."""
    return slice(*crop[0]), slice(*crop[1]), slice(*crop[2])


def segvol_normalise(image_dhw: np.ndarray) -> tuple[np.ndarray, Crop]:
    """Normalise a volume as SegVol does.

    Args:
        image_dhw: (d, h, w), any unit (HU or arbitrary MR intensities).

    Returns:
        The full grid as float32 in [0, 1], not cropped, and the crop: (start, stop) of the bounding box of the voxels
        above 0, one pair per axis in the order d, h, w. Cropping is left to the caller, who needs both grids.

    Raises:
        ValueError: the image or its foreground is constant.
    """
    normalised = min_max(standardise(image_dhw)).astype(np.float32)
    return normalised, bounding_box(normalised > 0)


def normalise_volume(volume: Volume) -> tuple[np.ndarray, Crop]:
    """`segvol_normalise` of a volume that was read; raises UserError, naming the file, where nothing stands out."""
    try:
        return segvol_normalise(volume.data)
    except ValueError:
        raise UserError(
            f"{volume.path} has no contrast: all voxels above its mean are equal, as in a mask; give a scan instead."
        ) from None

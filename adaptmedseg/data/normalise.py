"""Intensities to [0, 1], by a rule that belongs to a model, and the box of the foreground.

SegVol's rule (Du et al. 2023, "SegVol: Universal and Interactive Volumetric Medical Image Segmentation") sets all
that is darker than nearly all of the foreground to zero. That suits CT; in MRI it takes away the dark tissues, which
the other rules keep. All but the bias correction are functions of a voxel's own intensity, so that a prepared case,
which keeps the scanner's intensities, can be seen through any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from adaptmedseg.data.bias import correct_bias
from adaptmedseg.data.intensity import IntensityStatistics, intensity_statistics
from adaptmedseg.data.volume import Volume
from adaptmedseg.errors import UserError

Crop = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Rule = Literal["segvol", "percentile", "zscore", "nyul"]

SEGVOL_CLIP = (0.05, 99.95)  # percentiles of the foreground
PERCENTILE_CLIP = (0.5, 99.5)  # percentiles of all voxels
ZSCORE_LIMIT = 3.0  # standard deviations of the foreground on either side of its mean
NYUL_PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)  # of the foreground
_NYUL_ENDS = (0.5, 99.95)  # dark end: of all voxels, so that dark tissue has room; bright end: of the foreground


@dataclass(frozen=True)
class Curve:
    """A rising function of intensity, linear between its knots and constant beyond them."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """float32 of the same shape: `out` (which may be the image itself) or, without it, a new array."""
        if out is None:
            out = np.empty(image.shape, np.float32)
        if len(self.x) > 2:
            out[...] = np.interp(image, self.x, self.y)
            return out
        low, high, first, last = (np.float32(knot) for knot in (*self.x, *self.y))
        np.clip(image, low, high, out=out, casting="same_kind")
        out -= low
        out *= (last - first) / max(high - low, np.float32(1e-8))
        if first:
            out += first
        return out


class Normalisation(BaseModel):
    """How a model wants intensities in [0, 1]; kept in its file and replayed at prediction.

    `rule`: ``segvol``; ``percentile`` (from the 0.5 to the 99.5 percentile of all voxels); ``zscore`` (mean and
    standard deviation of the foreground, three of them on either side); ``nyul`` (Nyúl et al. 2000: the foreground's
    deciles are moved to those of the training cases, `landmarks`, fitted where they are not given).
    `n4` corrects the bias field first (Tustison et al. 2010); the rule's statistics are then the corrected crop's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Rule = "segvol"
    n4: bool = False
    landmarks: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _landmarks_fit(self) -> Normalisation:
        if self.landmarks is None:
            return self
        if self.rule != "nyul":
            raise ValueError(f"rule '{self.rule}' takes no landmarks; only 'nyul' does")
        if len(self.landmarks) != len(NYUL_PERCENTILES):
            raise ValueError(f"{len(self.landmarks)} landmarks are given and {len(NYUL_PERCENTILES)} are needed")
        ends = (0.0, *self.landmarks, 1.0)
        if any(low > high for low, high in pairwise(ends)):
            raise ValueError("landmarks must rise from 0 to 1")
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether nothing is left to be learnt from training cases."""
        return self.rule != "nyul" or self.landmarks is not None

    def curve(self, stats: IntensityStatistics) -> Curve:
        """The rule for an image of these statistics.

        Raises:
            ValueError: Nyúl's landmarks were not fitted.
        """
        if self.rule == "percentile":
            low, high = (stats.volume[q] for q in PERCENTILE_CLIP)
            return Curve((low, high), (0.0, 1.0)) if low < high else Curve((stats.lowest, stats.highest), (0.0, 1.0))
        if self.rule == "zscore":
            reach = ZSCORE_LIMIT * stats.std
            return Curve((stats.mean - reach, stats.mean + reach), (0.0, 1.0))
        if self.rule == "nyul":
            if self.landmarks is None:
                raise ValueError("Nyúl's landmarks are fitted on training cases first")
            return Curve(_nyul_knots(stats), (0.0, *self.landmarks, 1.0))
        low, high = (stats.foreground[q] for q in SEGVOL_CLIP)
        return Curve((low, high), (0.0, 1.0))

    def statistics(self, image: np.ndarray) -> IntensityStatistics:
        """What this rule needs to know of an image; raises ValueError where it is constant."""
        if self.rule == "segvol":
            return intensity_statistics(image, (), SEGVOL_CLIP)
        return intensity_statistics(image)

    def apply(
        self, intensities: np.ndarray, stats: IntensityStatistics, spacing: tuple[float, float, float]
    ) -> np.ndarray:
        """A whole foreground crop in its own units to float32 in [0, 1].

        Args:
            intensities: (d, h, w).
            stats: of the volume that the crop was cut from.
            spacing: (d, h, w) in mm.
        """
        if self.n4:
            intensities = correct_bias(intensities, spacing)
            stats = self.statistics(intensities)
        return self.curve(stats)(intensities)


SEGVOL = Normalisation()


def fit_landmarks(cases: Iterable[IntensityStatistics]) -> tuple[float, ...]:
    """Nyúl's standard scale: the mean over cases of the foreground's deciles, each case's range mapped to [0, 1].

    Raises:
        ValueError: no case.
    """
    scaled = []
    for stats in cases:
        knots = np.array(_nyul_knots(stats))
        scaled.append((knots[1:-1] - knots[0]) / (knots[-1] - knots[0]))
    if not scaled:
        raise ValueError("landmarks are fitted on at least one case")
    return tuple(round(float(landmark), 6) for landmark in np.mean(scaled, axis=0))


def _nyul_knots(stats: IntensityStatistics) -> tuple[float, ...]:
    dark, bright = _NYUL_ENDS
    knots = (stats.volume[dark], *(stats.foreground[q] for q in NYUL_PERCENTILES), stats.foreground[bright])
    return tuple(np.maximum.accumulate(knots).tolist())


def standardise(image: np.ndarray) -> np.ndarray:
    """SegVol's first step as published: clip to the foreground's percentiles, subtract its mean, divide by its std."""
    foreground = image[image > np.mean(image, dtype=np.float64)]
    low, high = np.percentile(foreground, SEGVOL_CLIP)
    mean, std = np.mean(foreground, dtype=np.float64), np.std(foreground, dtype=np.float64)
    clipped = np.clip(image, low, high).astype(np.float32)
    return (clipped - np.float32(mean)) / np.float32(max(std, 1e-8))


def min_max(image: np.ndarray) -> np.ndarray:
    """SegVol's second step as published: shift and scale to [0, 1]."""
    shifted = image - image.min()
    return shifted / max(float(shifted.max()), 1e-8)


def bounding_box(mask: np.ndarray) -> Crop:
    """The (start, stop) of every axis round the true voxels of a (d, h, w) mask.

    Raises:
        ValueError: the mask is empty.
    """
    ranges: list[tuple[int, int]] = []
    rest = mask  # narrowed axis by axis: slices of the first cost least, and what is left of the others is small
    for axis in range(3):
        hit = np.flatnonzero(rest.any(axis=tuple(a for a in range(3) if a != axis)))
        if hit.size == 0:
            raise ValueError("an empty mask has no bounding box")
        ranges.append((int(hit[0]), int(hit[-1]) + 1))
        rest = rest[(slice(None),) * axis + (slice(*ranges[-1]),)]
    return ranges[0], ranges[1], ranges[2]


def crop_slices(crop: Crop) -> tuple[slice, slice, slice]:
    """Slices that cut `crop` out of a (d, h, w) array."""
    return slice(*crop[0]), slice(*crop[1]), slice(*crop[2])


def foreground_crop(image: np.ndarray, stats: IntensityStatistics) -> Crop:
    """The box of the voxels that SegVol's rule puts above 0: what every model sees, whatever its own rule.

    Raises:
        ValueError: there is none.
    """
    return bounding_box(image > np.float32(SEGVOL.curve(stats).x[0]))


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
    stats = SEGVOL.statistics(image_dhw)
    return SEGVOL.curve(stats)(image_dhw), foreground_crop(image_dhw, stats)


def foreground_of(
    volume: Volume, statistics: Callable[[np.ndarray], IntensityStatistics] = SEGVOL.statistics
) -> tuple[IntensityStatistics, Crop]:
    """Statistics of a volume, by the function given, and the box of its foreground.

    Raises:
        UserError: nothing stands out in the volume; names its file.
    """
    try:
        stats = statistics(volume.data)
        return stats, foreground_crop(volume.data, stats)
    except ValueError:
        raise UserError(
            f"{volume.path} has no contrast: all voxels above its mean are equal, as in a mask; give a scan instead."
        ) from None


def normalised_crop(volume: Volume, normalisation: Normalisation = SEGVOL) -> tuple[np.ndarray, Crop]:
    """A volume's foreground crop, float32 in [0, 1] (d, h, w), and where it lies. UserError as `foreground_of`."""
    stats, crop = foreground_of(volume, normalisation.statistics)
    return normalisation.apply(volume.data[crop_slices(crop)], stats, volume.spacing), crop

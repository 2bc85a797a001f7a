"""What is known of a volume's intensities: exact percentiles and moments, from which every normalisation follows.

*Foreground* are the voxels above the volume's mean, as in SegVol (Du et al. 2023) and in Nyúl & Udupa's landmarks
(Nyúl et al. 2000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

VOLUME_PERCENTILES = (0.5, 1.0, 2.0, 5.0, 25.0, 50.0, 75.0, 95.0, 98.0, 99.0, 99.5)
FOREGROUND_PERCENTILES = (0.05, 1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0, 99.5, 99.95)
_WIDEST_HISTOGRAM = 1 << 17  # of distinct whole numbers
_CONSTANT = "the image is constant, so that it has no foreground"


@dataclass(frozen=True)
class IntensityStatistics:
    """Of a volume in its own units: `lowest` and `highest` voxel, `mean` and `std` of the foreground, and percentiles
    (percent to intensity, interpolated linearly between voxels) of all voxels and of the foreground."""

    lowest: float
    highest: float
    mean: float
    std: float
    volume: Mapping[float, float]
    foreground: Mapping[float, float]

    def to_json(self) -> dict[str, Any]:
        """The same with text as keys."""
        return {
            "lowest": self.lowest,
            "highest": self.highest,
            "foreground_mean": self.mean,
            "foreground_std": self.std,
            "volume_percentiles": {f"{q:g}": value for q, value in self.volume.items()},
            "foreground_percentiles": {f"{q:g}": value for q, value in self.foreground.items()},
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> IntensityStatistics:
        """Undo `to_json`. Raises KeyError, ValueError or TypeError for anything else."""
        volume, foreground = (
            {float(q): float(value) for q, value in table[key].items()}
            for key in ("volume_percentiles", "foreground_percentiles")
        )
        return cls(
            float(table["lowest"]),
            float(table["highest"]),
            float(table["foreground_mean"]),
            float(table["foreground_std"]),
            volume,
            foreground,
        )


def intensity_statistics(
    image: np.ndarray,
    volume: Sequence[float] = VOLUME_PERCENTILES,
    foreground: Sequence[float] = FOREGROUND_PERCENTILES,
) -> IntensityStatistics:
    """Statistics of an image of any shape, exact, whatever its range.

    Args:
        image: floating point or integers, finite.
        volume, foreground: the percentiles wanted of all voxels and of the foreground.

    Raises:
        ValueError: no voxel lies above the mean (the image is constant).
    """
    histogram = _whole_numbers(image)
    if histogram is None:
        return _of_voxels(image, volume, foreground)
    values, counts = histogram
    mean = float(values @ counts) / int(counts.sum())
    above = values > mean
    if not above.any():
        raise ValueError(_CONSTANT)
    chosen, often = values[above], counts[above]
    centre = float(chosen @ often) / int(often.sum())
    spread = float(np.sqrt(((chosen - centre) ** 2 @ often) / int(often.sum())))
    return IntensityStatistics(
        float(values[0]),
        float(values[-1]),
        centre,
        spread,
        _percentiles(values, counts, volume),
        _percentiles(chosen, often, foreground),
    )


def _of_voxels(image: np.ndarray, volume: Sequence[float], foreground: Sequence[float]) -> IntensityStatistics:
    chosen = image[image > np.mean(image, dtype=np.float64)]
    if chosen.size == 0:
        raise ValueError(_CONSTANT)
    tables = [
        dict(zip(wanted, np.percentile(voxels, wanted).tolist(), strict=True)) if wanted else {}
        for voxels, wanted in ((image, tuple(volume)), (chosen, tuple(foreground)))
    ]
    mean, std = np.mean(chosen, dtype=np.float64), np.std(chosen, dtype=np.float64)
    return IntensityStatistics(float(image.min()), float(image.max()), float(mean), float(std), *tables)


def _whole_numbers(image: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The values that occur, ascending, and how often; None where some are no whole numbers or the range is wide.

    Most scans hold whole numbers, and counting them is many times faster than putting them in order.
    """
    low, high = float(image.min()), float(image.max())
    if high - low >= _WIDEST_HISTOGRAM or low != np.floor(low):
        return None
    small = np.iinfo(np.int16)
    kind = np.int16 if small.min <= low and high <= small.max else np.int64
    counts = np.zeros(int(high - low) + 1, np.int64)
    for part in image.reshape(image.shape[0], -1):  # by slices, so that nothing as large as the volume is held
        whole = part.astype(kind)
        if not np.array_equal(whole.astype(part.dtype), part):
            return None
        counts += np.bincount(whole.astype(np.int64) - int(low), minlength=counts.size)
    present = np.flatnonzero(counts)
    return present + low, counts[present]


def _percentiles(values: np.ndarray, counts: np.ndarray, wanted: Sequence[float]) -> dict[float, float]:
    """Percentiles of values that occur `counts` times, linear between neighbours in rank, as in numpy."""
    ends = np.cumsum(counts)
    ranks = (ends[-1] - 1) * np.asarray(wanted, np.float64) / 100
    below = np.floor(ranks).astype(np.int64)
    low, high = (
        values[np.searchsorted(ends, rank, side="right")] for rank in (below, np.minimum(below + 1, ends[-1] - 1))
    )
    return dict(zip(wanted, (low + (high - low) * (ranks - below)).tolist(), strict=True))

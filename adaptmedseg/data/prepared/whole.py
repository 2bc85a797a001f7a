"""A prepared case put back on its whole canonical volume."""

from __future__ import annotations

import numpy as np

from adaptmedseg.data.grid import Volume
from adaptmedseg.data.normalise import crop_slices
from adaptmedseg.data.prepared.case import PreparedCase


def whole_volume(case: PreparedCase) -> Volume:
    """The image on the scanner's whole grid, canonical; outside of the stored crop, its darkest value."""
    inside = case.intensities()
    return Volume(_on_whole(case, inside, inside.min()), case.spacing, case.grid, case.folder)


def whole_labels(case: PreparedCase) -> tuple[np.ndarray, dict[int, str]]:
    """The truth as one integer map (d, h, w) on the whole canonical volume, and what its values mean.

    Where structures overlap, the one later in the list wins.
    """
    inside = np.zeros(case.shape, np.uint8 if len(case.annotated) < 256 else np.uint16)
    for value, name in enumerate(case.annotated, 1):
        inside[case.mask(name)] = value
    return _on_whole(case, inside, 0), dict(enumerate(case.annotated, 1))


def _on_whole(case: PreparedCase, inside: np.ndarray, fill: float) -> np.ndarray:
    whole = np.full(case.grid.canonical().shape[::-1], fill, inside.dtype)
    whole[crop_slices(case.crop)] = inside
    return whole

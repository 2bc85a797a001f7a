"""Writing maps of real numbers, such as probabilities, with the same care as masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adaptmedseg.data.grid import Grid
from adaptmedseg.data.nifti import save_nifti
from adaptmedseg.data.volume import NIFTI_SUFFIXES, to_grid, volume_suffix, write_checked
from adaptmedseg.errors import UserError


def write_probabilities(path: str | Path, probabilities_dhw: np.ndarray, grid: Grid) -> None:
    """Write a canonical map of probabilities as float32 on the scanner's grid.

    As `write_mask`: same shape, affine and orientation as the source image, complete or not at all, read again and
    compared before it gets its name.

    Args:
        path: ends in .nii.gz or .nii.
        probabilities_dhw: (d, h, w), each in [0, 1].
        grid: the grid of the image that the map belongs to.

    Raises:
        UserError: the suffix is another one, or the disk is full.
        ValueError: a value is no probability.
    """
    path = Path(path)
    suffix = volume_suffix(path)
    if suffix not in NIFTI_SUFFIXES:
        raise UserError(f"{path}: probabilities are written as .nii.gz or .nii; choose one of these suffixes.")
    if not ((probabilities_dhw >= 0) & (probabilities_dhw <= 1)).all():  # written so that NaN counts as wrong
        raise ValueError("probabilities lie between 0 and 1")
    array = to_grid(probabilities_dhw.astype(np.float32, copy=False), grid)
    write_checked(path, array, grid, save_nifti)

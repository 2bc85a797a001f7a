"""Bias field correction by N4 (Tustison et al. 2010), on a coarse copy and the same at every run."""

from __future__ import annotations

import numpy as np
import SimpleITK

from adaptmedseg.data.coarse import block_means, refine

COARSE = 32  # voxels an axis on which the field is estimated; a bias field is smooth
_ITERATIONS = (20, 20)
_FLOOR = 1e-3  # of the range: N4 works on logarithms


def correct_bias(image: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Divide an image by its bias field.

    Args:
        image: (d, h, w), in any unit; its lowest value is taken as no signal.
        spacing: (d, h, w) in mm.

    Returns:
        float32 of the same shape, in the same unit, with the lowest value where it was.
    """
    low = np.float32(image.min())
    signal = image.astype(np.float32) - low
    signal += np.float32(_FLOOR) * signal.max()
    return signal * np.exp(-refine(_log_field(signal, spacing), signal.shape)) + low


def _log_field(signal: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The logarithm of the bias field of a positive image, on a coarse grid over the same field of view."""
    size = tuple(min(COARSE, n) for n in signal.shape)
    averaged = block_means(signal, size)
    coarse = SimpleITK.GetImageFromArray(averaged)
    coarse.SetSpacing([mm * n / m for mm, n, m in zip(spacing, signal.shape, size, strict=True)][::-1])
    corrector = SimpleITK.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(_ITERATIONS)
    corrector.SetNumberOfThreads(1)  # sums of several threads differ from run to run
    corrected = corrector.Execute(coarse, SimpleITK.OtsuThreshold(coarse, 0, 1, 200))
    return np.log(averaged / np.maximum(SimpleITK.GetArrayFromImage(corrected), np.finfo(np.float32).tiny))

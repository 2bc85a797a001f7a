"""Canonical arrays as NIfTI bytes for a viewer, in a straight frame of their own.

Viewers differ in what they make of oblique and sheared axes. The bytes here say the voxel sizes and that the axes are
Right, Anterior, Superior, no more, so that a viewer's voxels are the canonical ones; where these lie in the scanner is
for the caller to keep (`Grid.canonical().affine`).
"""

from __future__ import annotations

import nibabel as nib
import numpy as np

from adaptmedseg.data.prepared.arrays import encode_intensities

Spacing = tuple[float, float, float]
COLOURS = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def shown_image(image_dhw: np.ndarray, spacing: Spacing) -> bytes:
    """Intensities (d, h, w), in 16 bits where the eye loses nothing."""
    stored, scale = encode_intensities(image_dhw, float(np.ptp(image_dhw)))
    return _bytes(stored.transpose(2, 1, 0), spacing, scale.slope, scale.intercept)


def shown_labels(labels_dhw: np.ndarray, spacing: Spacing) -> bytes:
    """An integer map (d, h, w)."""
    return _bytes(labels_dhw.transpose(2, 1, 0), spacing)


def shown_colours(colours: np.ndarray) -> bytes:
    """A picture (h, w, 3), uint8, as one slice; its top row is the most anterior one, as on screens."""
    flipped = np.ascontiguousarray(colours[::-1])
    return _bytes(flipped.view(COLOURS)[..., 0].transpose(1, 0)[..., None], (1.0, 1.0, 1.0))


def _bytes(array: np.ndarray, spacing: Spacing, slope: float = 1.0, intercept: float = 0.0) -> bytes:
    image = nib.Nifti1Image(array, np.diag([*spacing[::-1], 1.0]), dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, intercept)
    return image.to_bytes()

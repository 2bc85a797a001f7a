"""NIfTI files: which of a header's frames counts, its unit, and masks that repeat the header of their image."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import HeaderDataError

from adaptmedseg.data.grid import Grid, NiftiFrame, checked_grid, corner_distance_mm, guarded
from adaptmedseg.errors import UserError

_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1e3, "micron": 1e-3}
_BELIEVABLE_MM = (1e-3, 100.0)
_MAX_GAP_IN_VOXELS = 0.1


def nifti_grid(image: nib.Nifti1Image, path: Path) -> tuple[Grid, tuple[str, ...]]:
    """The grid that a NIfTI header states, in mm, and notes on what is doubtful about it.

    As in nibabel, the sform counts where its code is set, else the qform, else voxel sizes alone round the centre.

    Raises:
        UserError: the header's unit makes voxels that no scan has, or the affine is unusable.
    """
    header = image.header
    scale = _scale_to_mm(header, path)
    in_mm = np.diag([scale, scale, scale, 1.0])
    grid = checked_grid(path, image.shape, in_mm @ np.asarray(image.affine, dtype=np.float64), NiftiFrame.of(header))
    notes = []
    if scale != 1:
        spacing = np.round(voxel_sizes(grid.affine), 4).tolist()
        notes.append(f"the header is in {header.get_xyzt_units()[0]}s; converted, voxels measure {spacing} mm")
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        notes.append("the header states no orientation, so that left and right are a guess")
    if int(header["sform_code"]) and int(header["qform_code"]):
        notes += _disagreement(header, grid, in_mm)
    if grid.sheared:
        notes.append("the axes are not at right angles; programs that cannot show this misplace or refuse the volume")
    return grid, tuple(notes)


def read_nifti(path: Path) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    """Voxels (x, y, z, ...) with slope and intercept applied, the grid, and notes."""
    image = guarded(path, lambda: nib.load(path))
    grid, notes = nifti_grid(image, path)
    return guarded(path, lambda: np.asanyarray(image.dataobj)), grid, notes


def save_nifti(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write an array (x, y, z) on a grid; where the grid came from a NIfTI file, with that file's own fields."""
    if grid.frame is not None:
        header = nib.Nifti1Header()
        header.set_data_dtype(array.dtype)
        header.set_data_shape(array.shape)
        grid.frame.write_to(header)
        nib.save(nib.Nifti1Image(array, None, header), path)  # without an affine, nibabel keeps the header's fields
        return
    image = nib.Nifti1Image(array, grid.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    # A qform is a rotation and cannot hold a shear. Programs that prefer it would show a sheared mask in the wrong
    # place, so it is left out there: they then say that they cannot open the file.
    image.set_qform(grid.affine, code=0 if grid.sheared else 1, strip_shears=True)
    nib.save(image, path)


def _scale_to_mm(header: nib.Nifti1Header, path: Path) -> float:
    """Millimetres per unit of the header; some writers state a unit that is not the one they used."""
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        raise UserError(f"{path} states a unit of length that NIfTI does not know; repair its header.") from None
    scale = _MM[unit]
    sizes = voxel_sizes(header.get_best_affine()) * scale
    if scale != 1 and not ((sizes >= _BELIEVABLE_MM[0]) & (sizes <= _BELIEVABLE_MM[1])).all():
        raise UserError(
            f"{path} states its unit as {unit}, which makes voxels of {[float(f'{s:.3g}') for s in sizes]} mm; "
            "correct the unit in its header (xyzt_units)."
        )
    return scale


def _disagreement(header: nib.Nifti1Header, grid: Grid, in_mm: np.ndarray) -> list[str]:
    """A note where sform and qform put the voxels in different places."""
    try:
        other = Grid(grid.shape, in_mm @ header.get_qform())
    except (ValueError, HeaderDataError):
        return ["the header's qform cannot be read; its sform is used"]
    gap = corner_distance_mm(grid, other)
    if gap <= _MAX_GAP_IN_VOXELS * float(voxel_sizes(grid.affine).min()):
        return []
    return [f"the header's sform and qform place the volume up to {gap:.1f} mm apart; the sform is used"]

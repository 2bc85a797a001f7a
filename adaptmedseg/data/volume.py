"""Reading and writing volumes: one canonical frame in memory, the scanner's grid on disk.

In memory every volume is *canonical*: array axes ``(d, h, w)`` are the RAS+ axes ``(z, y, x)``, so that the index grows
to Superior along d, to Anterior along h and to Right along w. Reading reorders and flips axes and never resamples, so
`to_grid` undoes it exactly. Affines follow nibabel: voxel ``(x, y, z)`` of the file to millimetres in RAS.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, ornt_transform

from adaptmedseg.data.dicom import read_dicom, series_grid
from adaptmedseg.data.grid import (
    LPS_TO_RAS,
    Grid,
    Volume,
    canonical_volume,
    checked_grid,
    checked_image,
    corner_distance_mm,
    guarded,
    spacing_dhw,
)
from adaptmedseg.data.nifti import nifti_grid, read_nifti
from adaptmedseg.data.nifti import save_nifti as _save_nifti
from adaptmedseg.data.source import voxel_file
from adaptmedseg.errors import UserError

__all__ = [
    "ITK_SUFFIXES",
    "NIFTI_SUFFIXES",
    "SUFFIXES",
    "Grid",
    "Volume",
    "read_grid",
    "read_image",
    "read_labels",
    "spacing_dhw",
    "to_grid",
    "volume_stem",
    "volume_suffix",
    "write_mask",
]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".mhd", ".mha", ".nrrd")
SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES
_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])


def volume_suffix(path: Path) -> str | None:
    """The readable suffix that `path` ends with (``.nii.gz`` counts as one), or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def volume_stem(path: Path) -> str:
    """The file's name without its volume suffix: ``case_1.nii.gz`` gives ``case_1``; a folder's name stays whole."""
    suffix = volume_suffix(path)
    if suffix is None and path.is_dir():
        return path.resolve().name
    return path.name[: -len(suffix)] if suffix else path.stem


def read_grid(path: str | Path, series: str | None = None) -> Grid:
    """The grid of a file, or of a folder with a DICOM series, from headers alone, without reading voxels.

    Raises:
        UserError: the file is missing, of another format, unreadable, not 3D, or has an unusable affine.
    """
    path = Path(path)
    if path.is_dir():
        return series_grid(path, series)
    _check_readable(path)
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        return nifti_grid(guarded(path, lambda: nib.load(path)), path)[0]
    return checked_grid(path, *_itk_header(_itk_reader(path)))


def read_image(path: str | Path, channel: int | None = None, series: str | None = None) -> Volume:
    """Read an image as float32, canonical.

    Args:
        path: NIfTI (.nii, .nii.gz), MetaImage (.mhd, .mha) or NRRD (.nrrd), or the folder of a DICOM series.
        channel: which volume of a 4D file, counted from 0; None for a 3D file.
        series: which DICOM series of a folder that holds several: number, UID or description.

    Raises:
        UserError: the file is missing, truncated or of another format; it is 4D and no channel is chosen, or the
            channel does not exist; voxels are NaN or infinite; all voxels are equal; the affine is unusable; or what
            `adaptmedseg.data.dicom.read_dicom` refuses.
    """
    path = Path(path)
    if path.is_dir():
        if channel:
            raise UserError(f"{path} is a DICOM series, which has no channel {channel}; choose with --series instead.")
        return read_dicom(path, series)
    array, grid, notes = _load(_check_readable(path))
    return checked_image(_pick_channel(path, array, channel), grid, path, notes)


def read_labels(path: str | Path) -> Volume:
    """Read an integer label map, canonical, in the smallest unsigned dtype that holds its values.

    Raises:
        UserError: as `read_image`, and for values that are negative or not integers (a probability map, for example).
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, and a label map is a file; its formats are {', '.join(SUFFIXES)}.")
    array, grid, notes = _load(_check_readable(path))
    if array.ndim == 4:
        if array.shape[3] != 1:
            raise UserError(
                f"{path} holds {array.shape[3]} channels where a label map has one; save one integer map per case."
            )
        array = array[..., 0]
    if not np.issubdtype(array.dtype, np.integer):
        array = _as_integers(path, array)
    if array.size and array.min() < 0:
        raise UserError(f"{path} holds the negative label {array.min()}; label values must be 0 or more.")
    return canonical_volume(array.astype(np.min_scalar_type(int(array.max()))), grid, path, notes)


def to_grid(array_dhw: np.ndarray, grid: Grid) -> np.ndarray:
    """Put a canonical array (d, h, w) back into the file's axis order and direction, (x, y, z).

    Exact inverse of what reading does; values are untouched.

    Raises:
        ValueError: the array's shape is not the canonical shape of `grid`.
    """
    expected = grid.canonical().shape[::-1]
    if tuple(array_dhw.shape) != expected:
        raise ValueError(f"array has shape {tuple(array_dhw.shape)}, the grid asks for {expected} (d, h, w)")
    back = ornt_transform(_CANONICAL, grid.orientation)
    return np.ascontiguousarray(apply_orientation(array_dhw.transpose(2, 1, 0), back))


def write_mask(path: str | Path, mask_dhw: np.ndarray, grid: Grid) -> None:
    """Write a canonical mask on the scanner's grid: same shape, affine and orientation letters as the source image.

    The file appears complete or not at all, and is read again and compared before it gets its name.

    Args:
        path: ends in .nii.gz, .nii, .mha or .nrrd.
        mask_dhw: (d, h, w), bool, uint8 or uint16.
        grid: the grid of the image that the mask belongs to.

    Raises:
        UserError: the suffix cannot be written, the disk is full, or the format cannot hold this grid.
    """
    path = Path(path)
    suffix = volume_suffix(path)
    if suffix is None or suffix == ".mhd":
        raise UserError(f"{path} has no format that masks are written in; use .nii.gz, .nii, .mha or .nrrd.")
    if mask_dhw.dtype == np.bool_:
        mask_dhw = mask_dhw.astype(np.uint8)
    if mask_dhw.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a mask is bool, uint8 or uint16, not {mask_dhw.dtype}")
    array = to_grid(mask_dhw, grid)
    write_checked(path, array, grid, _save_nifti if suffix in NIFTI_SUFFIXES else _save_itk)


def write_checked(path: Path, array: np.ndarray, grid: Grid, save: Callable[[Path, np.ndarray, Grid], None]) -> None:
    """Save an array (x, y, z) of the file's order under a temporary name, read it again, compare, and rename it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial{volume_suffix(path)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(partial, array, grid)
        verify_written(partial, path, array, grid)
        os.replace(partial, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path} could not be written because the disk is full; free some space and run again.")
    return UserError(f"{path} could not be written ({error.strerror or error}); check the folder and its permissions.")


def _check_readable(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path.")
    if volume_suffix(path) is None:
        raise UserError(
            f"{path} is not a readable volume; the formats are {', '.join(SUFFIXES)}, and for DICOM the folder of the "
            "series."
        )
    return path


def _load(path: Path) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    """Voxels as (x, y, z) or (x, y, z, channel) in the file's order, the grid, and notes on its geometry."""
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        array, grid, notes = read_nifti(path)
    else:
        voxel_file(path)  # says more of a data file that is missing or cut off than ITK does
        reader = _itk_reader(path)
        grid, notes = checked_grid(path, *_itk_header(reader)), ()
        array = _itk_array(guarded(path, reader.Execute))
    if array.dtype.fields is not None or np.iscomplexobj(array):
        raise UserError(f"{path} holds colour or complex voxels ({array.dtype}); export it as a plain scalar volume.")
    if array.ndim > 4:
        array = array.reshape(*array.shape[:3], -1)
    return array, grid, notes


def _itk_reader(path: Path) -> SimpleITK.ImageFileReader:
    """A reader that has read the header."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    guarded(path, reader.ReadImageInformation)
    return reader


def _itk_header(reader: SimpleITK.ImageFileReader) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (x, y, z, ...) and RAS affine of an ITK file; ITK's own frame is LPS."""
    shape, dims = tuple(reader.GetSize()), reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(dims, dims)
    rank = min(dims, 3)
    affine = np.eye(4)
    affine[:rank, :rank] = direction[:rank, :rank] * np.array(reader.GetSpacing())[:rank]
    affine[:rank, 3] = reader.GetOrigin()[:rank]
    return shape, LPS_TO_RAS @ affine


def _itk_array(image: SimpleITK.Image) -> np.ndarray:
    """(x, y, z) or (x, y, z, channel), whether the channels are a fourth axis or vector components."""
    array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        return array.transpose(2, 1, 0, 3) if array.ndim == 4 else array
    return array.transpose()


def _pick_channel(path: Path, array: np.ndarray, channel: int | None) -> np.ndarray:
    count = array.shape[3] if array.ndim == 4 else 1
    if channel is None and count > 1:
        raise UserError(f"{path} is 4D with {count} channels; choose one with --channel N, N from 0 to {count - 1}.")
    if channel is not None and not 0 <= channel < count:
        raise UserError(f"{path} has no channel {channel}; it holds {count}, counted from 0.")
    return array[..., channel or 0] if array.ndim == 4 else array


def _as_integers(path: Path, array: np.ndarray) -> np.ndarray:
    rounded = np.round(array)
    off = ~(np.abs(array - rounded) < 1e-3)  # written so that NaN counts as off
    if off.any():
        raise UserError(
            f"{path} is no label map: {int(off.sum())} voxels are not integers (for example {array[off][0]:g}); "
            "save hard labels, resampled by nearest neighbour."
        )
    return rounded.astype(np.int64)


def _save_itk(path: Path, array: np.ndarray, grid: Grid) -> None:
    affine = LPS_TO_RAS @ grid.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    try:
        image.SetSpacing(sizes.tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection((affine[:3, :3] / sizes).flatten().tolist())
        SimpleITK.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:  # ITK has no error codes, so a full disk is told by the file system
        stat = os.statvfs(path.parent) if hasattr(os, "statvfs") else None
        code = errno.ENOSPC if stat and stat.f_bavail * stat.f_frsize < array.nbytes else errno.EIO
        raise OSError(code, os.strerror(code)) from error


def verify_written(partial: Path, path: Path, array: np.ndarray, grid: Grid) -> None:
    """Read what was written and compare it, so that a wrong grid never reaches the user."""
    written, found, _ = _load(partial)
    tolerance = 1e-3 * float(voxel_sizes(grid.affine).min())
    if found.shape != grid.shape or not np.array_equal(written, array):
        raise UserError(f"{path} came back different after writing; check the disk and run again.")
    if found.codes != grid.codes or corner_distance_mm(found, grid) > tolerance:
        raise UserError(f"{path} cannot hold this oblique grid in that format; write .nii.gz instead.")

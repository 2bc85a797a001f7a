"""How large a volume is, from its header alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK

from adaptmedseg.data.grid import guarded
from adaptmedseg.data.volume import NIFTI_SUFFIXES, read_grid

_DICOM_BYTES = 4  # a series is read as float32
_COMPONENT_BYTES = {"8-bit": 1, "16-bit": 2, "32-bit": 4, "64-bit": 8}


@dataclass(frozen=True)
class VolumeSize:
    """`shape` (d, h, w) of one channel; `loaded_bytes`, what all channels take as reading first holds them."""

    shape: tuple[int, int, int]
    loaded_bytes: int

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)


def volume_size(path: Path, series: str | None = None) -> VolumeSize:
    """The size of a file, or of a folder with a DICOM series. UserError as `read_grid`."""
    w, h, d = read_grid(path, series).canonical().shape
    shape = (d, h, w)
    if path.is_dir():
        return VolumeSize(shape, _DICOM_BYTES * d * h * w)
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        image = guarded(path, lambda: nib.load(path))
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        scaled = (slope, intercept) != (1, 0)  # then voxels are computed, as float64
        item = 8 if scaled else np.dtype(image.get_data_dtype()).itemsize
        return VolumeSize(shape, item * math.prod(image.shape))
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    guarded(path, reader.ReadImageInformation)
    kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    item = next((size for word, size in _COMPONENT_BYTES.items() if word in kind), 8)
    return VolumeSize(shape, item * reader.GetNumberOfComponents() * math.prod(reader.GetSize()))

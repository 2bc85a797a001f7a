"""T2W prostate: T2 MRI with the prostate's two zones, as TIFF stacks without spacing or orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK
from adaptmedseg.preprocessing.case import CaseData, Cases, SourceCase
from adaptmedseg.preprocessing.reading import stack_case
from adaptmedseg.preprocessing.sets.finding import grouped, named, paired
from adaptmedseg.preprocessing.sets.model import DataSet, zenodo_record

from adaptmedseg.data.grid import guarded
from adaptmedseg.data.labels import LabelScheme
from adaptmedseg.errors import UserError

_ZONES = ("peripheral zone", "transition zone")


def find(root: Path, target: str) -> Cases:
    """One case a stack."""
    images = grouped(root, r"T2_IMAGES/P_(\d+)\.tiff?")
    labels = grouped(root, r"LABELS/P_(\d+)_SEG[^/]*\.tiff?")
    return paired(images, labels, named("P_{}", "T2 MRI"))


def read(case: SourceCase, scheme: LabelScheme) -> CaseData:
    """Read two stacks; what TIFF says of resolution is that of a printer and is not used.

    Slices are taken to run from the feet to the head, rows from front to back, columns from the patient's right.

    Raises:
        UserError: a stack cannot be read or has colours, the shapes differ, or a label value has no name in the set.
    """
    return stack_case(case, _stack(case.image), _stack(case.label), scheme)


def _stack(path: Path) -> np.ndarray:
    """The pages of a TIFF file, (x, y, z)."""
    image = guarded(path, lambda: SimpleITK.ReadImage(str(path), imageIO="TIFFImageIO"))
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise UserError(f"{path} has colours; export it as a plain grey stack.")
    array = SimpleITK.GetArrayFromImage(image)
    return np.atleast_3d(array.transpose()) if array.ndim == 2 else array.transpose(2, 1, 0)


SET = DataSet(
    name="t2w-prostate",
    title="T2-weighted MRI of the prostate with peripheral and transition zone",
    page="https://zenodo.org/records/7676958",
    layout="prostate_dataset/T2_IMAGES/P_NNN.tiff, prostate_dataset/LABELS/P_NNN_SEG.tiff",
    find=find,
    read=read,
    labels=dict(enumerate(_ZONES, start=1)),
    targets={"zones": (*_ZONES, "prostate"), "gland": ("prostate",)},
    record=zenodo_record(7676958),
    spacing_stated=False,
)

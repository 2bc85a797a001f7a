"""CHAOS: abdominal CT with the liver, and T1 (in and out of phase) and T2 MRI with four organs; DICOM and PNG."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK
from adaptmedseg.preprocessing.case import CaseData, Cases, SourceCase
from adaptmedseg.preprocessing.reading import labelled
from adaptmedseg.preprocessing.sets.finding import Grouped, Key, grouped, paired
from adaptmedseg.preprocessing.sets.model import DataSet, zenodo, zenodo_record

from adaptmedseg.data.dicom import read_stack
from adaptmedseg.data.grid import canonical_volume, guarded
from adaptmedseg.data.labels import LabelScheme
from adaptmedseg.data.volume import Volume
from adaptmedseg.errors import UserError

# The publisher's grey levels with the ranges that it gives for them: pictures that were scaled have levels between.
GREY_LEVELS = {1: (55, 70), 2: (110, 135), 3: (175, 200), 4: (240, 255)}
_CONTRASTS = {"ct": "CT", "t1in": "in-phase T1 MRI", "t1out": "out-phase T1 MRI", "t2spir": "T2 MRI"}
_FOLDERS = {
    "ct": r"CT/(\d+)/DICOM_anon/[^/]+",
    "t1in": r"MR/(\d+)/T1DUAL/DICOM_anon/InPhase/[^/]+",
    "t1out": r"MR/(\d+)/T1DUAL/DICOM_anon/OutPhase/[^/]+",
    "t2spir": r"MR/(\d+)/T2SPIR/DICOM_anon/[^/]+",
}
_GROUND = {"ct": r"CT/(\d+)/Ground/[^/]+", "t2spir": r"MR/(\d+)/T2SPIR/Ground/[^/]+"}
_GROUND |= dict.fromkeys(("t1in", "t1out"), r"MR/(\d+)/T1DUAL/Ground/[^/]+")


def find(root: Path, target: str) -> Cases:
    """One case a series. A patient's MR series belong together; in and out of phase share one annotation."""

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        number, contrast = key
        patient = f"{'CT' if contrast == 'ct' else 'MR'}{number}"
        return SourceCase(
            f"{patient}-{contrast}", image, label, patient, _CONTRASTS[contrast], site="DEU", contrast=contrast
        )

    images: Grouped = {}
    labels: Grouped = {}
    for contrast in _CONTRASTS:
        for table, patterns in ((images, _FOLDERS), (labels, _GROUND)):
            for (number,), files in grouped(root, patterns[contrast]).items():
                table[number, contrast] = sorted({path.parent for path in files})
    return paired(images, labels, make)


def read(case: SourceCase, scheme: LabelScheme) -> CaseData:
    """Read a series and its pictures, which belong to its slices by the order of the files' names.

    Raises:
        UserError: a file cannot be read, there are more or fewer pictures than slices, or a grey level is unknown.
    """
    image, files = read_stack(case.image)
    pictures = sorted((path for path in case.label.iterdir() if path.suffix.lower() == ".png"), key=_natural)
    if len(pictures) != len(files):
        raise UserError(f"{case.label} holds {len(pictures)} pictures for {len(files)} slices; get the case again.")
    picture_of = dict(zip(sorted(files, key=_natural), pictures, strict=True))
    levels = np.stack([_picture(picture_of[path]) for path in files], axis=2)
    if levels.shape != image.grid.shape:
        raise UserError(f"{case.label} has shape {levels.shape} and its slices {image.grid.shape}; get the case again.")
    values = _ct_values(levels) if case.contrast == "ct" else _mr_values(case.label, levels)
    volume: Volume = canonical_volume(values, image.grid, case.label)
    return labelled(case, image, volume.data, scheme)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Names in the order of the numbers in them, whether these have leading zeros or not."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())]


def _picture(path: Path) -> np.ndarray:
    """A PNG as (columns, rows); of a picture with colours the first counts, as all are equal in a grey one."""
    array = SimpleITK.GetArrayFromImage(guarded(path, lambda: SimpleITK.ReadImage(str(path), imageIO="PNGImageIO")))
    return (array[..., 0] if array.ndim == 3 else array).transpose()


def _ct_values(levels: np.ndarray) -> np.ndarray:
    return (levels > 0).astype(np.uint8)


def _mr_values(path: Path, levels: np.ndarray) -> np.ndarray:
    values = np.zeros(levels.shape, np.uint8)
    for value, (low, high) in GREY_LEVELS.items():
        values[(levels >= low) & (levels <= high)] = value
    unknown = np.unique(levels[(values == 0) & (levels > 0)]).tolist()
    if unknown:
        raise UserError(f"{path} holds the grey levels {unknown[:5]}, which stand for no organ; get the case again.")
    return values


SET = DataSet(
    name="chaos",
    title="CHAOS: abdominal CT (liver) and T1 and T2 MRI (liver, kidneys, spleen), training sets",
    page="https://zenodo.org/records/3431873",
    layout="Train_Sets/{CT/N/{DICOM_anon,Ground},MR/N/{T1DUAL,T2SPIR}/{DICOM_anon,Ground}}",
    find=find,
    read=read,
    labels={1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"},
    contrasts=tuple(_CONTRASTS),
    needs=r"(^|/)(CT|MR)/\d+/",
    downloads=zenodo(3431873, "CHAOS_Train_Sets.zip"),
    record=zenodo_record(3431873),
)

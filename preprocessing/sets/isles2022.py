"""ISLES 2022: stroke lesions in DWI, ADC and FLAIR MRI, as a BIDS tree. FLAIR lies on another grid."""

from __future__ import annotations

from pathlib import Path

import SimpleITK
from adaptmedseg.preprocessing.case import CaseData, Cases, SourceCase
from adaptmedseg.preprocessing.reading import labelled, read_pair
from adaptmedseg.preprocessing.sets.finding import NIFTI, Key, grouped, paired
from adaptmedseg.preprocessing.sets.model import DataSet, zenodo, zenodo_record

from adaptmedseg.data.grid import canonical_volume, guarded
from adaptmedseg.data.labels import LabelScheme
from adaptmedseg.data.volume import read_image

_CONTRASTS = {"dwi": "DWI MRI", "adc": "ADC MRI", "flair": "FLAIR MRI"}


def find(root: Path, target: str) -> Cases:
    """Three cases a patient, who stays in one split; the annotation lies under ``derivatives``."""

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        patient, contrast = f"sub-strokecase{key[0]}", key[1]
        return SourceCase(f"{patient}-{contrast}", image, label, patient, _CONTRASTS[contrast], contrast=contrast)

    images = grouped(root, r"sub-strokecase(\d+)[^/]*_(dwi|adc|flair)" + NIFTI, skip=r"(^|/)derivatives/")
    labels = grouped(root, r"sub-strokecase(\d+)[^/]*_msk" + NIFTI)
    return paired(images, labels, make, label_key=lambda key: key[:1])


def read(case: SourceCase, scheme: LabelScheme) -> CaseData:
    """Read an image and the lesion's mask, which for FLAIR is brought onto FLAIR's grid by nearest neighbour.

    Raises:
        UserError: a file cannot be read, the grids of DWI or ADC and mask differ, or a label value is unknown.
    """
    if case.contrast != "flair":
        return read_pair(case, scheme)
    image = read_image(case.image)
    target = guarded(case.image, lambda: SimpleITK.ReadImage(str(case.image)))
    mask = guarded(case.label, lambda: SimpleITK.ReadImage(str(case.label), SimpleITK.sitkUInt8))
    moved = SimpleITK.Resample(mask, target, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0)
    labels = canonical_volume(SimpleITK.GetArrayFromImage(moved).transpose(), image.grid, case.label)
    note = "the mask was drawn on the DWI grid and brought onto this one by nearest neighbour"
    return labelled(case, image, labels.data, scheme, notes=(note,))


SET = DataSet(
    name="isles2022",
    title="ISLES 2022: ischaemic stroke lesions in DWI, ADC and FLAIR MRI",
    page="https://zenodo.org/records/7960856",
    layout="sub-strokecaseNNNN/ses-0001/{dwi,anat}/*_{dwi,adc,FLAIR}.nii.gz, derivatives/.../*_msk.nii.gz",
    find=find,
    read=read,
    labels={1: "stroke lesion"},
    contrasts=tuple(_CONTRASTS),
    default_contrasts=("dwi", "adc"),
    needs=r"\.nii(\.gz)?$",
    downloads=zenodo(7960856, "ISLES-2022.zip"),
    record=zenodo_record(7960856),
    absent="empty",  # a scan without a visible lesion is annotated as such
)

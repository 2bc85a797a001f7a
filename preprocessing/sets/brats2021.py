"""BraTS 2021: four MRI contrasts a patient with brain tumours, on one grid and with one annotation."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases, SourceCase
from adaptmedseg.preprocessing.sets.finding import NIFTI, Key, grouped, paired
from adaptmedseg.preprocessing.sets.model import DataSet

_CONTRASTS = {"t1": "T1 MRI", "t1ce": "contrast-enhanced T1 MRI", "t2": "T2 MRI", "flair": "FLAIR MRI"}
_LABELS = {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}


def find(root: Path, target: str) -> Cases:
    """Four cases a patient, who stays in one split."""

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        patient, contrast = f"BraTS2021_{key[0]}", key[1]
        return SourceCase(f"{patient}-{contrast}", image, label, patient, _CONTRASTS[contrast], contrast=contrast)

    images = grouped(root, rf"BraTS2021_(\d+)_({'|'.join(_CONTRASTS)})" + NIFTI)
    labels = grouped(root, r"BraTS2021_(\d+)_seg[^/]*?" + NIFTI)
    return paired(images, labels, make, label_key=lambda key: key[:1])


SET = DataSet(
    name="brats2021",
    title="BraTS 2021: brain tumours in T1, contrast-enhanced T1, T2 and FLAIR MRI",
    page="https://www.synapse.org/brats2021",
    layout="BraTS2021_NNNNN/BraTS2021_NNNNN_{t1,t1ce,t2,flair,seg}.nii.gz",
    find=find,
    labels=_LABELS,
    targets={"all": (*_LABELS.values(), "tumour core", "whole tumour"), "whole": ("whole tumour",)},
    contrasts=tuple(_CONTRASTS),
    login="registration with the publisher",
    absent="empty",  # every case is annotated for every part; a tumour without enhancement has none
)

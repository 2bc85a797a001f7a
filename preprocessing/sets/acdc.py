"""ACDC: short-axis cine MRI of the heart, two frames a patient."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases, SourceCase
from adaptmedseg.preprocessing.sets.finding import NIFTI, Key, grouped, paired
from adaptmedseg.preprocessing.sets.model import DataSet


def find(root: Path, target: str) -> Cases:
    """One case a frame, under its patient; the folder ``testing`` is the publisher's test set."""

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        patient = f"patient{key[0]}"
        folders = {part.lower() for part in image.relative_to(root).parts[:-1]}
        split = "test" if "testing" in folders else "train" if "training" in folders else None
        return SourceCase(f"{patient}_frame{key[1]}", image, label, patient, "cine MRI", split=split)

    images = grouped(root, r"patient(\d+)_frame(\d+)" + NIFTI)
    return paired(images, grouped(root, r"patient(\d+)_frame(\d+)_gt[^/]*?" + NIFTI), make)


SET = DataSet(
    name="acdc",
    title="ACDC: cine MRI of the heart at two phases",
    page="https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html",
    layout="patientNNN/patientNNN_frameNN.nii.gz, patientNNN_frameNN_gt.nii.gz",
    find=find,
    labels={1: "right ventricle", 2: "myocardium", 3: "left ventricle"},
    needs=r"patient\d+_frame\d+(_gt)?\.nii",
    login="the publisher's own platform",
)

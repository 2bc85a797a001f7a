"""AMOS22: abdominal CT and MRI with fifteen organs. Its dataset.json says CT throughout; above number 500 it is MRI."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases, SourceCase
from adaptmedseg.preprocessing.sets.finding import NIFTI, Key, grouped, paired
from adaptmedseg.preprocessing.sets.model import DataSet, numbered, zenodo, zenodo_record

LAST_CT = 500
_ORGANS = """spleen; right kidney; left kidney; gallbladder; esophagus; liver; stomach; aorta; inferior vena cava;
pancreas; right adrenal gland; left adrenal gland; duodenum; bladder; prostate or uterus"""


def amos_modality(number: int) -> str:
    """The true modality of a case of AMOS by its number, whatever files say."""
    return "MRI" if number > LAST_CT else "CT"


def find(root: Path, target: str) -> Cases:
    """The training cases, and the validation cases where they are annotated."""

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        name = f"amos_{key[1]}"
        return SourceCase(name, image, label, name, amos_modality(int(key[1])))

    images = grouped(root, r"images(Tr|Va)/amos_(\d+)" + NIFTI)
    labels = grouped(root, r"labels(Tr|Va)/amos_(\d+)" + NIFTI)
    return paired(images, labels, make)


SET = DataSet(
    name="amos22",
    title="AMOS22: abdominal CT and MRI with 15 organs",
    page="https://zenodo.org/records/7262581",
    layout="amos22/{imagesTr,labelsTr}/amos_NNNN.nii.gz",
    find=find,
    labels=numbered(_ORGANS),
    needs=r"(images|labels)(Tr|Va)/",
    downloads=zenodo(7262581, "amos22.zip"),
    record=zenodo_record(7262581),
)

"""FLARE22: abdominal CT with thirteen organs (the 50 annotated cases)."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases
from adaptmedseg.preprocessing.sets.finding import NIFTI, grouped, named, paired
from adaptmedseg.preprocessing.sets.model import DataSet, numbered, zenodo, zenodo_record

_ORGANS = """liver; right kidney; spleen; pancreas; aorta; inferior vena cava; right adrenal gland; left adrenal gland;
gallbladder; esophagus; stomach; duodenum; left kidney"""


def find(root: Path, target: str) -> Cases:
    """Images end in a channel number, annotations do not."""
    images = grouped(root, r"FLARE22_Tr_(\d+)_0000" + NIFTI)
    return paired(images, grouped(root, r"FLARE22_Tr_(\d+)" + NIFTI), named("FLARE22_Tr_{}", "CT"))


SET = DataSet(
    name="flare22",
    title="FLARE22: 50 abdominal CT with 13 organs",
    page="https://zenodo.org/records/7860267",
    layout="FLARE22_Tr_NNNN_0000.nii.gz (image), FLARE22_Tr_NNNN.nii.gz (annotation)",
    find=find,
    labels=numbered(_ORGANS),
    needs=r"FLARE22_Tr_\d+(_0000)?\.nii",
    downloads=zenodo(7860267, "FLARE22Train.zip"),
    record=zenodo_record(7860267),
)

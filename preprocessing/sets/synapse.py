"""Synapse (BTCV): abdominal CT with thirteen organs."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases
from adaptmedseg.preprocessing.sets.finding import NIFTI, grouped, named, paired
from adaptmedseg.preprocessing.sets.model import DataSet, numbered

_ORGANS = """spleen; right kidney; left kidney; gallbladder; esophagus; liver; stomach; aorta; inferior vena cava;
portal vein and splenic vein; pancreas; right adrenal gland; left adrenal gland"""


def find(root: Path, target: str) -> Cases:
    """The training cases; test images have no annotation and are passed over."""
    test = r"(^|/)(testing|imagesTs)/"
    images = grouped(root, r"img(\d+)" + NIFTI, skip=test)
    return paired(images, grouped(root, r"label(\d+)" + NIFTI, skip=test), named("img{}", "CT"))


SET = DataSet(
    name="synapse",
    title="Synapse multi-organ (BTCV): 30 annotated abdominal CT with 13 organs",
    page="https://www.synapse.org/Synapse:syn3193805",
    layout="imgNNNN.nii.gz, labelNNNN.nii.gz",
    find=find,
    labels=numbered(_ORGANS),
    needs=r"(^|/)(img|label)\d+\.nii",
    login="registration with the publisher",
)

"""SAML: T2 MRI of the prostate from six sites, each in its own folder, with the whole gland."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases, SourceCase
from adaptmedseg.preprocessing.reading import read_nonzero_pair
from adaptmedseg.preprocessing.sets.finding import NIFTI, Key, grouped, paired
from adaptmedseg.preprocessing.sets.model import DataSet

# In the publisher's order, A to F. UCL, BIDMC and HK are patients of PROMISE12: see `adaptmedseg leaks`.
SITES = ("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK")
_SITE = rf"({'|'.join(SITES)})"


def find(root: Path, target: str) -> Cases:
    """Cases by site; their names repeat from site to site. Some annotations are named with a capital S."""

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        site, number = key[0].upper(), key[1]
        name = f"{site}-Case{number}"
        return SourceCase(name, image, label, name, "T2 MRI", site)

    images = grouped(root, rf"{_SITE}/Case(\d+)" + NIFTI)
    labels = grouped(root, rf"{_SITE}/Case(\d+)_seg[^/]*?" + NIFTI)
    return paired(images, labels, make)


SET = DataSet(
    name="saml",
    title="SAML: 116 T2 MRI of the prostate from six sites",
    page="https://liuquande.github.io/SAML/",
    layout="Processed_data_nii/{RUNMC,BMC,I2CVB,UCL,BIDMC,HK}/CaseNN.nii.gz, CaseNN_segmentation.nii.gz",
    find=find,
    labels={1: "prostate"},
    read=read_nonzero_pair,
    login="a shared drive that is opened in a browser",
)

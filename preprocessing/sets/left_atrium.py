"""MICCAI 2018 left atrium: late gadolinium enhanced MRI with the cavity of the left atrium."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases, SourceCase
from adaptmedseg.preprocessing.reading import read_nonzero_pair
from adaptmedseg.preprocessing.sets.finding import Key, grouped, paired
from adaptmedseg.preprocessing.sets.model import DataSet


def find(root: Path, target: str) -> Cases:
    """One case a folder; all files are named alike."""

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        name = image.parent.name
        folders = [part.lower() for part in image.relative_to(root).parts[:-2]]
        split = "test" if any("test" in part for part in folders) else None
        return SourceCase(name, image, label, name, "LGE MRI", split=split)

    return paired(grouped(root, r"([^/]+)/lgemri\.nrrd"), grouped(root, r"([^/]+)/laendo\.nrrd"), make)


SET = DataSet(
    name="left-atrium-2018",
    title="MICCAI 2018 atrial segmentation challenge: LGE MRI of the left atrium",
    page="https://www.cardiacatlas.org/atriaseg2018-challenge/",
    layout="NNN/{lgemri,laendo}.nrrd",
    find=find,
    labels={1: "left atrium"},
    read=read_nonzero_pair,  # 255 in some releases, 1 in others
    needs=r"(lgemri|laendo)\.nrrd$",
    login="the publisher's form",
)

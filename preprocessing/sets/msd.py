"""Any task in the layout of the Medical Segmentation Decathlon: 4D channels and labels in dataset.json."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases, SourceCase
from adaptmedseg.preprocessing.sets.described import channels, description, stated_licence
from adaptmedseg.preprocessing.sets.finding import NIFTI, Key, grouped, paired
from adaptmedseg.preprocessing.sets.model import DataSet
from adaptmedseg.preprocessing.split import patient_of

from adaptmedseg.data.volume import volume_stem


def find(root: Path, target: str) -> Cases:
    """One case a channel; the channels of a file are one patient."""
    folder, described = description(root)
    names = channels(described)
    numbers = {contrast: number for number, (contrast, _) in names.items()}
    stems = {volume_stem(path).lower(): volume_stem(path) for path in (folder / "imagesTr").glob("*")}

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        stem, number = stems[key[0]], numbers[key[1]]
        case = f"{stem}-{key[1]}" if len(names) > 1 else stem
        return SourceCase(case, image, label, patient_of(stem, None), names[number][1], contrast=key[1], channel=number)

    images = grouped(folder, r"imagesTr/([^/]+?)" + NIFTI)
    by_channel = {(stem, contrast): files for (stem,), files in images.items() for contrast in numbers}
    found = paired(by_channel, grouped(folder, r"labelsTr/([^/]+?)" + NIFTI), make, label_key=lambda key: key[:1])
    found.labels = described.get("labels")
    found.licence = stated_licence(described)
    return found


SET = DataSet(
    name="msd",
    title="a task in the layout of the Medical Segmentation Decathlon",
    page="http://medicaldecathlon.com",
    layout="TaskNN_Name/{imagesTr,labelsTr}/CASE.nii.gz, dataset.json",
    find=find,
    needs=r"imagesTr/|labelsTr/|dataset\.json$",
)

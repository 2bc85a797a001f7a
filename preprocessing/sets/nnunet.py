"""nnU-Net raw folders: one file a channel, labels, regions and an ignore label in dataset.json."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases, SourceCase
from adaptmedseg.preprocessing.sets.described import channels, description, stated_licence
from adaptmedseg.preprocessing.sets.finding import Key, grouped, paired
from adaptmedseg.preprocessing.sets.model import DataSet
from adaptmedseg.preprocessing.split import patient_of

_VOLUME = r"(?:\.nii(?:\.gz)?|\.nrrd|\.mha)"


def find(root: Path, target: str) -> Cases:
    """One case a channel; the channels of a case are one patient.

    A label named "ignore" is left without a name: cases that hold it are told of and left out, as it is neither a
    structure nor background.
    """
    folder, described = description(root)
    names = channels(described)
    stems = {path.name.lower(): path.name for path in (folder / "imagesTr").glob("*")}

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        number = int(key[1])
        contrast, modality = names.get(number, (f"channel{number}", "MRI"))
        stem = stems[image.name.lower()][: len(key[0])]
        case = f"{stem}-{contrast}" if len(names) > 1 else stem
        return SourceCase(case, image, label, patient_of(stem, None), modality, contrast=contrast)

    images = grouped(folder, rf"imagesTr/([^/]+)_(\d{{4}}){_VOLUME}")
    labels = grouped(folder, rf"labelsTr/([^/]+?){_VOLUME}")
    found = paired(images, labels, make, label_key=lambda key: key[:1])
    stated = described.get("labels")
    found.labels = {name: value for name, value in (stated or {}).items() if name.lower() != "ignore"}
    found.licence = stated_licence(described)
    return found


SET = DataSet(
    name="nnunet",
    title="a raw data set in nnU-Net's layout",
    page="its own dataset.json",
    layout="DatasetNNN_Name/{imagesTr/CASE_0000.nii.gz,labelsTr/CASE.nii.gz,dataset.json}",
    find=find,
    needs=r"imagesTr/|labelsTr/|dataset\.json$",
    licence="as its dataset.json or its publisher states",
    login="nothing: it is the user's own folder",
)

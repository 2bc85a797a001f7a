"""Medical Segmentation Decathlon, Task05: T2 and ADC MRI of the prostate in one 4D file, with its two zones."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases, SourceCase
from adaptmedseg.preprocessing.sets.described import read_json, stated_licence
from adaptmedseg.preprocessing.sets.finding import NIFTI, Key, grouped, paired, visible_files
from adaptmedseg.preprocessing.sets.model import DataSet, Download

from adaptmedseg.data.download import Checksum
from adaptmedseg.data.registry import default_registry
from adaptmedseg.errors import UserError

_CHANNELS = {"t2": "T2 MRI", "adc": "ADC MRI"}
_ZONES = ("peripheral zone", "transition zone")


def find(root: Path, target: str) -> Cases:
    """Two cases a file, one a channel; the order of channels is the dataset.json's where there is one."""
    description = _description(root)
    order = _channel_order(description)

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        patient, contrast = key
        return SourceCase(
            f"{patient}-{contrast}",
            image,
            label,
            patient,
            _CHANNELS[contrast],
            contrast=contrast,
            channel=order.index(contrast),
        )

    images = grouped(root, r"imagesTr/(prostate_\d+)" + NIFTI)
    by_channel = {(patient, contrast): files for (patient,), files in images.items() for contrast in _CHANNELS}
    labels = grouped(root, r"labelsTr/(prostate_\d+)" + NIFTI)
    found = paired(by_channel, labels, make, label_key=lambda key: key[:1])
    found.labels = description.get("labels")
    found.licence = stated_licence(description)
    return found


def _description(root: Path) -> dict:
    """The set's dataset.json, empty where there is none."""
    path = next((path for path in visible_files(root) if path.name == "dataset.json"), None)
    return read_json(path) if path else {}


def _channel_order(description: dict) -> list[str]:
    stated = description.get("modality")
    if not isinstance(stated, dict):
        return list(_CHANNELS)
    registry = default_registry()
    names = [registry.modality(str(stated[number])).name for number in sorted(stated, key=int)]
    by_name = {modality: contrast for contrast, modality in _CHANNELS.items()}
    if sorted(names) != sorted(by_name):
        raise UserError(f"dataset.json names the channels {names} where Task05 has {list(by_name)}; check the folder.")
    return [by_name[name] for name in names]


SET = DataSet(
    name="msd-prostate",
    title="Medical Segmentation Decathlon, Task05 Prostate: 32 annotated T2 and ADC MRI",
    page="http://medicaldecathlon.com",
    layout="Task05_Prostate/{imagesTr,labelsTr}/prostate_NN.nii.gz",
    find=find,
    labels=dict(enumerate(_ZONES, start=1)),
    targets={"zones": (*_ZONES, "prostate"), "gland": ("prostate",)},
    contrasts=tuple(_CHANNELS),
    default_contrasts=("t2",),
    needs=r"imagesTr/|labelsTr/|dataset\.json$",
    # Address and checksum are those of MONAI's DecathlonDataset, which mirrors the set.
    downloads=(
        Download(
            "Task05_Prostate.tar",
            "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task05_Prostate.tar",
            Checksum("md5", "35138f08b1efaef89d7424d2bcc928db"),
        ),
    ),
)

"""`adaptmedseg check`: the doctor, for a folder before it is prepared, and for a prepared data set."""

from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from adaptmedseg.cli.common import Device, bar, config_path, named_pairs
from adaptmedseg.cli.data_options import (
    AbsentMeans,
    Channel,
    Images,
    Label,
    LabelFolder,
    ModalityName,
    NewStructure,
    SkipUnlabelled,
    Source,
)
from adaptmedseg.data.check import check_folder
from adaptmedseg.data.labelled import Absent
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.data.prepared.manifest import is_prepared
from adaptmedseg.data.registry import modality as find_modality
from adaptmedseg.data.repair import repair_folder
from adaptmedseg.device import pick_device
from adaptmedseg.doctor.console import print_report
from adaptmedseg.doctor.examine import Gallery, write_examination
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.config_file import load_config

PROPOSAL_STARTS_FROM = "adapt"
Out = Annotated[Path | None, typer.Option(help="Folder for check.html, check.json and proposed.yaml; written anew.")]
Config = Annotated[
    str | None, typer.Option(help="With --out: try a few steps of this configuration and say what it costs.")
]
Repair = Annotated[Path | None, typer.Option(help="New folder for copies of all cases, repaired where that is safe.")]


def check(
    source: Source,
    modality: ModalityName = None,
    label: Label = [],  # noqa: B006
    images: Images = None,
    labels: LabelFolder = None,
    channel: Channel = None,
    new_structure: NewStructure = [],  # noqa: B006
    absent: AbsentMeans = "unannotated",
    skip_unlabelled: SkipUnlabelled = False,
    out: Out = None,
    config: Config = None,
    repair: Repair = None,
    device: Device = "auto",
) -> None:
    """Look at a folder of images and labels before preparing it, or at a prepared one; exit code 1 where errors are.

    With --out a page shows every case, worst first, with what the data mean for a model and a proposed configuration.
    With --repair copies are written in which headers that are off by less than a voxel, single fourth axes and labels
    stored as floating point are set right. Nothing is ever changed in place.

    \b
    Examples:
      adaptmedseg check my_mri --modality "T2 MRI" --label 1=prostate
      adaptmedseg check my_mri --modality "T2 MRI" --label 1=prostate --out runs/check --config adapt
      adaptmedseg check my_mri --repair my_mri_repaired
      adaptmedseg check prepared/mine          (every stored file against its hash)
    """
    if is_prepared(source):
        _check_prepared(source)
        return
    kind = find_modality(modality) if modality else None
    tried = load_config(config_path(config), TrainConfig) if config else None
    gallery = Gallery(kind.family if kind else None)
    with bar("checking") as progress:
        report = check_folder(
            source,
            modality=modality,
            labels=dict(named_pairs(label, "--label")),
            images=images,
            label_folder=labels,
            channel=channel,
            new_structures=new_structure,
            absent=cast(Absent, absent),  # check_folder refuses a wrong value itself
            skip_unlabelled=skip_unlabelled,
            progress=progress,
            on_case=gallery if out is not None else None,
        )
    print_report(report, Console())
    if out is not None:
        start = config_path(config or PROPOSAL_STARTS_FROM)
        for path in write_examination(out, source, report, gallery, start, kind, tried, pick_device(device)):
            print(path)
    if repair is not None:
        _repair(source, repair, images, labels, channel)
    raise typer.Exit(report.exit_code)


def _repair(source: Path, out: Path, images: Path | None, labels: Path | None, channel: int | None) -> None:
    with bar("repairing") as progress:
        repairs = repair_folder(source, out, images=images, label_folder=labels, channel=channel, progress=progress)
    print(f"{out}: {len(repairs.done)} cases, {repairs.repaired} of them repaired")
    for reason in repairs.left_out.values():
        print(f"left out: {reason}")


def _check_prepared(folder: Path) -> None:
    dataset = PreparedDataset.open(folder)
    damaged = dataset.damaged()
    for sentence in damaged:
        print(f"error: {sentence}")
    print(f"{folder}: {len(dataset.cases())} cases, {len(damaged)} damaged files")
    raise typer.Exit(1 if damaged else 0)

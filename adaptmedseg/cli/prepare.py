"""`adaptmedseg prepare`: from a user's folder to a prepared data set."""

from pathlib import Path
from typing import Annotated, cast

import typer

from adaptmedseg.cli.common import Seed, bar, named_pairs
from adaptmedseg.data.labelled import Absent
from adaptmedseg.preprocessing.folder import prepare_folder

Source = Annotated[Path, typer.Argument(help="Folder or .zip of images and labels (NIfTI, MetaImage, NRRD).")]
ModalityName = Annotated[str | None, typer.Option(help="'CT', 'T2 MRI', ...; dataset.json's where it has one.")]
Label = Annotated[
    list[str], typer.Option("--label", help="1=NAME or 1+2=NAME (a union); repeat it for every structure.")
]
Images = Annotated[Path | None, typer.Option(help="Folder of images, where images and labels lie in two folders.")]
LabelFolder = Annotated[Path | None, typer.Option("--labels", help="Folder of labels, beside --images.")]
Channel = Annotated[int | None, typer.Option(help="Channel of 4D images, from 0.", min=0)]
NewStructure = Annotated[list[str], typer.Option(help="A structure name of your own that is not in the registry yet.")]
AbsentMeans = Annotated[str, typer.Option(help="A structure without a voxel is 'unannotated' (unknown) or 'empty'.")]
SkipUnlabelled = Annotated[bool, typer.Option(help="Leave out images without labels instead of refusing them.")]


def prepare(
    source: Source,
    out: Annotated[Path, typer.Option(help="New folder for the prepared data set.")],
    name: Annotated[
        str | None, typer.Option(help="The data set's name in reports; the folder's name by default.")
    ] = None,
    modality: ModalityName = None,
    label: Label = [],  # noqa: B006 (typer copies it)
    images: Images = None,
    labels: LabelFolder = None,
    channel: Channel = None,
    site: Annotated[str | None, typer.Option(help="Site of all cases.")] = None,
    new_structure: NewStructure = [],  # noqa: B006
    absent: AbsentMeans = "unannotated",
    test_fraction: Annotated[float, typer.Option(help="Share of patients kept for testing.", min=0, max=1)] = 0.2,
    val_fraction: Annotated[float, typer.Option(help="Share of patients kept for validation.", min=0, max=1)] = 0.1,
    folds: Annotated[int | None, typer.Option(help="Cross-validation folds instead of the shares.", min=2)] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression for the patient in a case's name.")
    ] = None,
    skip_unlabelled: SkipUnlabelled = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a prepared data set in --out.")] = False,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    seed: Seed = 0,
) -> None:
    """Check, normalise and store a folder of images and labels for training and evaluation.

    \b
    Examples:
      adaptmedseg prepare my_mri --out prepared/my_mri --modality "T2 MRI" --label 1=prostate
      adaptmedseg prepare training_data.zip --out prepared/promise12 --modality "T2 MRI" --label 1=prostate --folds 5
      adaptmedseg prepare Task05_Prostate --out prepared/task05 --channel 0 --label 1+2=prostate
    """
    with bar("preparing") as progress:
        dataset = prepare_folder(
            source,
            out,
            name=name or source.stem,
            modality=modality,
            labels=dict(named_pairs(label, "--label")),
            images=images,
            label_folder=labels,
            channel=channel,
            site=site,
            new_structures=new_structure,
            absent=_absent(absent),
            test_fraction=test_fraction,
            val_fraction=val_fraction,
            folds=folds,
            seed=seed,
            patient_pattern=patient_pattern,
            skip_unlabelled=skip_unlabelled,
            overwrite=overwrite,
            workers=workers,
            progress=progress,
        )
    counts = {split: len(dataset.cases(split)) for split in ("train", "val", "test")}
    shares = f"{dataset.folds} folds" if dataset.folds else ", ".join(f"{n} {split}" for split, n in counts.items())
    print(f"{out}: {len(dataset.cases())} cases ({shares}); structures: {', '.join(dataset.structures)}")


def _absent(value: str) -> Absent:
    return cast(Absent, value)  # prepare_folder refuses a wrong value itself

"""`adaptmedseg export`: from a prepared data set back to files that other programs read."""

from pathlib import Path
from typing import Annotated

import typer

from adaptmedseg.cli.common import bar, split_names
from adaptmedseg.data.export import export_nifti, export_nnunet
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.errors import UserError

FORMS = ("nifti", "nnunet")


def export(
    prepared: Annotated[Path, typer.Argument(help="A prepared data set.")],
    out: Annotated[Path, typer.Option(help="New folder; for nnunet the folder that DatasetNNN_Name goes into.")],
    to: Annotated[str, typer.Option(help="nifti (images/ and labels/) or nnunet (nnU-Net's raw layout).")] = "nifti",
    structures: Annotated[str | None, typer.Option(help="Names separated by commas; all by default.")] = None,
    number: Annotated[int, typer.Option(help="nnU-Net's number of the data set.", min=1, max=999)] = 501,
) -> None:
    """Write images and labels as NIfTI on the scanner's grid; what preparing cropped away is filled with background.

    \b
    Examples:
      adaptmedseg export prepared/mine --out exported/mine
      adaptmedseg export prepared/mine --to nnunet --out nnUNet_raw --number 501
    """
    if to not in FORMS:
        raise UserError(f"--to {to}: choose {' or '.join(FORMS)}")
    dataset = PreparedDataset.open(prepared)
    wanted = split_names(structures)
    with bar("exporting") as progress:
        if to == "nifti":
            print(f"{out}: {export_nifti(dataset, out, wanted, progress)} cases")
            return
        folder, left_out = export_nnunet(dataset, out, number, wanted, progress)
    print(f"{folder}: {len(dataset.cases()) - len(left_out)} cases")
    if left_out:
        print(f"left out, for they do not annotate all structures: {', '.join(left_out)}")

"""Options of the commands that read a user's images and labels."""

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[Path, typer.Argument(help="Folder or archive of images and labels (NIfTI, MetaImage, NRRD).")]
NameOrFolder = Annotated[
    str, typer.Argument(help="A known set's name (see `adaptmedseg sets`), or a folder or archive of your own.")
]
ModalityName = Annotated[str | None, typer.Option(help="'CT', 'T2 MRI', ...; dataset.json's where it has one.")]
Label = Annotated[
    list[str], typer.Option("--label", help="1=NAME or 1+2=NAME (a union); repeat it for every structure.")
]
Images = Annotated[Path | None, typer.Option(help="Folder of images, where images and labels lie in two folders.")]
LabelFolder = Annotated[Path | None, typer.Option("--labels", help="Folder of labels, beside --images.")]
Channel = Annotated[int | None, typer.Option(help="Channel of 4D images, from 0.", min=0)]
NewStructure = Annotated[list[str], typer.Option(help="A structure name of your own that is not in the registry yet.")]
AbsentMeans = Annotated[str, typer.Option(help="A structure without a voxel is 'unannotated' (unknown) or 'empty'.")]
SkipUnlabelled = Annotated[bool, typer.Option(help="Leave out images without labels without telling of them.")]


Out = Annotated[Path, typer.Option(help="New folder for the prepared data set.")]
Files = Annotated[
    Path | None, typer.Option("--source", help="Folder or archive of a known set; with --download, where it goes.")
]
Download = Annotated[bool, typer.Option(help="Fetch a known set from its publisher first.")]
Target = Annotated[str | None, typer.Option(help="What of a known set to annotate, as zones or gland.")]
SpacingText = Annotated[
    str | None, typer.Option(help="Voxel sizes D,H,W in mm, for known sets whose files state none.")
]
Name = Annotated[str | None, typer.Option(help="The data set's name in reports; the folder's name by default.")]
Channels = Annotated[
    str | None,
    typer.Option("--channel", help="Channel of 4D images, from 0; of a known set by name, as t2,adc or all."),
]
Site = Annotated[str | None, typer.Option(help="Site of all cases.")]
AbsentChoice = Annotated[
    str | None, typer.Option(help="A structure without a voxel is 'unannotated' (unknown) or 'empty'.")
]
TestFraction = Annotated[float | None, typer.Option(help="Share of patients kept for testing (0.2).", min=0, max=1)]
ValFraction = Annotated[float | None, typer.Option(help="Share of patients kept for validation (0.1).", min=0, max=1)]
Folds = Annotated[str | None, typer.Option(help="Cross-validation folds instead of the shares: a number, or 'sites'.")]
LeaveSiteOut = Annotated[str | None, typer.Option(help="Test on this site, train on all others.")]
PatientPattern = Annotated[str | None, typer.Option(help="Regular expression for the patient in a case's name.")]
Overwrite = Annotated[bool, typer.Option(help="Replace a prepared data set in --out.")]
Workers = Annotated[int, typer.Option(help="Cases prepared side by side.", min=1)]
Seed = Annotated[int | None, typer.Option(help="Seed of splits and folds (0).", min=0)]

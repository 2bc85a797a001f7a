"""`adaptmedseg predict`: masks for a file or a folder, on the scanner's grid."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from adaptmedseg.cli.common import Device, bar, console, split_names
from adaptmedseg.data.registry import modality as find_modality
from adaptmedseg.data.volume import volume_stem
from adaptmedseg.errors import UserError
from adaptmedseg.inference.asking import automatic_prompts, check_prompts
from adaptmedseg.inference.case_note import Outcome
from adaptmedseg.inference.cases import CaseRunner, Products
from adaptmedseg.inference.naming import Case, find_cases
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.inference.prompt_file import PromptSet, read_prompts
from adaptmedseg.inference.prompt_options import BOX_FORM, POINT_FORM, prompts_from_options
from adaptmedseg.models.adapted import AdaptedSegVol


@dataclass(frozen=True)
class Question:
    """What the user asks, as the options have it."""

    structures: str | None
    prompts: Path | None
    points: list[str]
    boxes: list[str]
    space: str | None

    def check(self, cases: list[Case]) -> None:
        """UserError where options exclude each other or coordinates would be meant for several images."""
        options = {
            "--structures": self.structures,
            "--point": self.points,
            "--box": self.boxes,
            "--space": self.space,
        }
        beside = [name for name, given in options.items() if given]
        if self.prompts is not None and beside:
            raise UserError(f"--prompts {self.prompts}: names all that is asked; leave out {' and '.join(beside)}")
        if len(cases) > 1 and (self.points or self.boxes):
            raise UserError(
                f"--point and --box belong to one image, and there are {len(cases)}; give --prompts FOLDER with one "
                "NAME.json an image"
            )

    def common(self, predictor: Predictor, cases: list[Case]) -> PromptSet | None:
        """What is asked of every image; None for the automatic mode, and where each image has a file of its own."""
        if self.prompts is not None:
            if self.prompts.is_dir():
                return None
            prompts = read_prompts(self.prompts, predictor.name)
            if prompts.located and len(cases) > 1:
                raise UserError(
                    f"{self.prompts}: its points and boxes belong to one image, and there are {len(cases)}; give "
                    "--prompts FOLDER with one NAME.json an image"
                )
            return prompts
        names = [] if self.structures is None else predictor.names(split_names(self.structures) or [])
        if not names and not self.points and not self.boxes:
            return None
        return prompts_from_options(names, self.points, self.boxes, self.space or "world", predictor.name)

    def own(self, predictor: Predictor, case: Case) -> PromptSet | None:
        """The prompts of one image from a folder of files."""
        if self.prompts is None or not self.prompts.is_dir():
            return None
        path = self.file_of(case)
        if path is None:
            wanted = self.prompts / f"{case.name}.json"
            raise UserError(f"{wanted}: is missing; each image needs its file of prompts in this folder")
        return read_prompts(path, predictor.name)

    def file_of(self, case: Case) -> Path | None:
        """The file that holds an image's prompts; None where there is none."""
        if self.prompts is None or not self.prompts.is_dir():
            return self.prompts
        known = [self.prompts / f"{name}.json" for name in (case.name, Path(case.name).name, volume_stem(case.image))]
        return next((path for path in known if path.exists()), None)


def predict(
    image: Annotated[Path, typer.Argument(help="An image, a DICOM folder, or a folder of images (nnU-Net, BIDS).")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    modality: Annotated[str, typer.Option(help="'CT', 'T2 MRI', ...")],
    structures: Annotated[
        str | None, typer.Option(help="Names separated by commas; labels 1, 2, ... in this order.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON file of prompts (docs/prompts.md), or a folder with one an image.")
    ] = None,
    point: Annotated[list[str] | None, typer.Option(help=f"{POINT_FORM}; may be repeated.")] = None,
    box: Annotated[list[str] | None, typer.Option(help=f"{BOX_FORM}, opposite corners; may be repeated.")] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="What --point and --box count in: world (RAS mm, the default) or voxel (the file's indices)."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Known name, file or run folder.")] = "small",
    base: Annotated[str | None, typer.Option(help="Base of an adapter, where its file has moved.")] = None,
    channel: Annotated[int | None, typer.Option(help="Channel of 4D images or of nnU-Net's, from 0.", min=0)] = None,
    series: Annotated[str | None, typer.Option(help="DICOM series: number, UID or description.")] = None,
    zoom: Annotated[
        bool | None,
        typer.Option("--zoom/--no-zoom", help="Look again at full resolution; by default as the model was made for."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="One mask a structure too, overlaps kept.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="One map a structure too, float32.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace masks that exist.")] = False,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="The reference's own numbers: float32, and its windows when zooming in; slower."),
    ] = False,
    device: Device = "auto",
) -> None:
    """Segment images by the names of structures, points or boxes; no label is read.

    Without --structures, --prompts, --point and --box, an adapter segments all it has task tokens for. Each image gives
    one label map of its own name on its own grid, and a JSON beside it. Where structures overlap, the one named later
    wins. A bad image does not stop the rest; the exit code is 1 where one failed, 2 where nothing could be done.

    \b
    Examples:
      adaptmedseg predict scan.nii.gz --out masks --modality "T2 MRI" --structures prostate --model runs/my_mri
      adaptmedseg predict scans --out masks --modality CT --structures "liver,spleen,left kidney"
      adaptmedseg predict scan.nii.gz --out masks --modality CT --point "liver:40,12,130" --point "-liver:10,5,120"
      adaptmedseg predict dicom_folder --out masks --modality CT --prompts prompts.json --probabilities
    """
    kind = find_modality(modality)
    found = find_cases(image, kind, channel, series)
    products = Products(out, each, probabilities, overwrite)
    question = Question(structures, prompts, point or [], box or [], space)
    question.check(found.cases)
    for note in found.notes:
        _tell(note)
    predictor = Predictor.load(model, base, device, exact=exact)
    asked = question.common(predictor, found.cases)
    if asked is None and prompts is None:
        asked = automatic_prompts(predictor.loaded, kind.name)
        _tell(f"automatic mode: {', '.join(asked.structures)}")
    if asked is not None:
        check_prompts(predictor.loaded, kind.name, asked)
    _tell_of_gate(predictor, kind.name)
    for case in found.cases:
        products.check(case, question.file_of(case))
    runner = CaseRunner(predictor, kind.name, products, zoom=zoom, tell=_tell)
    _run(runner, question, asked, found.cases)


def _run(runner: CaseRunner, question: Question, asked: PromptSet | None, cases: list[Case]) -> None:
    """All cases, the failed ones told at the end with their reasons."""
    done: dict[str, Outcome] = {}
    failed: dict[str, str] = {}
    with bar("predicting") as progress:
        for count, case in enumerate(cases, 1):
            try:
                done[case.name] = runner.run(case, asked or question.own(runner.predictor, case))
                print(case.mask_path(runner.products.out), flush=True)
            except UserError as error:
                if len(cases) == 1:
                    raise
                failed[case.name] = str(error)
                console.print(
                    f"failed: {case.image}", style="red", markup=False, soft_wrap=True
                )  # the reason: at the end
            progress(count, len(cases))
    if len(cases) > 1:
        console.print(_summary(done))
        for reason in failed.values():
            console.print(f"left out: {reason}", style="red", markup=False, soft_wrap=True)
        console.print(f"{len(done)} of {len(cases)} images segmented, {len(failed)} left out")
    if failed:
        raise typer.Exit(1 if done else 2)


def _summary(done: dict[str, Outcome]) -> Table:
    table = Table("case", "result", "seconds", box=None, pad_edge=False)
    for name, note in done.items():
        volumes = ", ".join(f"{structure} {ml:g} ml" for structure, ml in note["volume_ml"].items())
        table.add_row(Text(name), Text(volumes), f"{sum(note['seconds'].values()):.1f}")
    return table


def _tell(sentence: str) -> None:
    console.print(f"note: {sentence}", style="yellow", markup=False, soft_wrap=True)


def _tell_of_gate(predictor: Predictor, modality: str) -> None:
    """Say when the adapter will not be used: with the gate on, other modalities than its own take the base's path."""
    model = predictor.loaded.model
    if isinstance(model, AdaptedSegVol) and not model.is_adapted(modality):
        _tell(f"the adapter is for {', '.join(model.modalities)}; {modality} is segmented by its base alone")

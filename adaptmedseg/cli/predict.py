"""`adaptmedseg predict`: masks for a file or a folder, on the scanner's grid or the picture's pixels."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from adaptmedseg.checkpoints.store import model_path
from adaptmedseg.cli.cases import run_cases, tell
from adaptmedseg.cli.common import Device
from adaptmedseg.cli.predict_pictures import predict_pictures, refuse_volume_options
from adaptmedseg.cli.question import Question
from adaptmedseg.cli.support import SupportCommand, predict_pictures_by_support, predict_volumes_by_support
from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.registry import modality as find_modality
from adaptmedseg.data.volume import volume_suffix
from adaptmedseg.errors import UserError
from adaptmedseg.inference.asking import automatic_prompts, check_prompts
from adaptmedseg.inference.calibration import Calibration, calibration_path, read_calibration
from adaptmedseg.inference.case_note import Outcome
from adaptmedseg.inference.cases import CaseRunner, Products
from adaptmedseg.inference.judging import review_csv
from adaptmedseg.inference.naming import Case, find_cases
from adaptmedseg.inference.picture_cases import holds_pictures
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.inference.prompt_options import BOX_FORM, POINT_FORM
from adaptmedseg.models.adapted import AdaptedSegVol

REVIEW = "review.csv"


def predict(
    image: Annotated[
        Path, typer.Argument(help="A volume, a DICOM folder, a picture, or a folder of images (nnU-Net, BIDS).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    modality: Annotated[str | None, typer.Option(help="Of volumes: 'CT', 'T2 MRI', ...")] = None,
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
            help="What --point and --box count in: world (RAS mm, the default) or voxel (the file's indices; of "
            "pictures, pixels)."
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
    support: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images of a new task: a set of slices, a folder of pictures with masks or prompts, or, for "
            "one volume, a label map in which a few slices are drawn."
        ),
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Draw so many of the supports, 1 to 64.", min=1, max=64)] = None,
    each: Annotated[bool, typer.Option("--each", help="One mask a structure too, overlaps kept.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="One map a structure too, float32.")] = False,
    confidence: Annotated[
        bool,
        typer.Option("--confidence", help="Ask each image again, changed a little; review.csv lists the worst first."),
    ] = False,
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
      adaptmedseg predict photo.png --out masks --model sam-b --point "lesion:120,96" --box "eye:10,5,300,280"
      adaptmedseg predict photos --out masks --model sam-b --support labelled --structures vessel
    """
    products = Products(out, each, probabilities, overwrite)
    question = Question(structures, prompts, point or [], box or [], space)
    for_volumes = {
        "--modality": modality,
        "--base": base,
        "--channel": channel,
        "--series": series,
        "--zoom": zoom,
        "--confidence": confidence or None,
    }
    if support is None and shots is not None:
        raise UserError("--shots: draws from a support set; give one, --support DIR")
    if support is not None:
        command = SupportCommand(support, model, products, structures, shots=shots, exact=exact, device=device)
        if holds_pictures(image):
            refuse_volume_options(image, for_volumes)
            predict_pictures_by_support(command, image, replace(question, structures=None, default_space="voxel"))
            return
        if prompts is not None or point or box or base is not None or zoom is not None or confidence:
            raise UserError(
                "--support segments volumes slice by slice, without prompts, --base, --zoom and --confidence; leave "
                "them out"
            )
        predict_volumes_by_support(command, find_cases(image, find_modality(modality or "MRI"), channel, series))
        return
    if holds_pictures(image):
        refuse_volume_options(image, for_volumes)
        predict_pictures(image, model, products, question, exact=exact, device=device)
        return
    if modality is None:
        if not image.exists():
            raise UserError(f"{image}: does not exist; check the path")
        pictures = (
            "" if volume_suffix(image) is not None else f"; {image} is or holds no picture, which would need none"
        )
        raise UserError(f"--modality is missing; say what the images are, such as --modality CT{pictures}")
    kind = find_modality(modality)
    found = find_cases(image, kind, channel, series)
    question.check(found.cases)
    for note in found.notes:
        tell(note)
    review = out / REVIEW
    if confidence and review.exists() and not overwrite:
        raise UserError(f"{review}: exists already; choose another --out or pass --overwrite")
    predictor = Predictor.load(model, base, device, exact=exact)
    asked = question.common(predictor, found.cases)
    if asked is None and prompts is None:
        asked = automatic_prompts(predictor.loaded, kind.name)
        tell(f"automatic mode: {', '.join(asked.structures)}")
    if asked is not None:
        check_prompts(predictor.loaded, kind.name, asked)
    _tell_of_gate(predictor, kind.name)
    for case in found.cases:
        products.check(case, question.file_of(case))
    runner = CaseRunner(
        predictor, kind.name, products, zoom=zoom, tell=tell,
        confidence=confidence, calibration=_calibration(predictor, model) if confidence else None,
    )  # fmt: skip
    done: dict[str, Outcome] = {}

    def run(case: Case) -> Outcome:
        done[case.name] = runner.run(case, asked or question.own(predictor, case))
        return done[case.name]

    try:
        run_cases(found.cases, products, run)
    finally:  # where some cases failed, those that did not are to be reviewed all the same
        if confidence and done:
            write_atomic(review, review_csv(done))
            print(review, flush=True)


def _calibration(predictor: Predictor, model: str) -> Calibration | None:
    """The model's own; where it has none, that is told."""
    found = read_calibration(calibration_path(model_path(model)), predictor.loaded.hashes)
    if found is None:
        tell("confidence ranks masks but estimates no Dice: run `adaptmedseg calibrate` on cases with truth first")
    return found


def _tell_of_gate(predictor: Predictor, modality: str) -> None:
    """Say when the adapter will not be used: with the gate on, other modalities than its own take the base's path."""
    model = predictor.loaded.model
    if isinstance(model, AdaptedSegVol) and not model.is_adapted(modality):
        tell(f"the adapter is for {', '.join(model.modalities)}; {modality} is segmented by its base alone")

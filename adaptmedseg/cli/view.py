"""`adaptmedseg view`: a local page to look at a case and to ask a model by clicks and boxes."""

import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from adaptmedseg.cli.common import Device, console
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset, whole_labels
from adaptmedseg.data.registry import modality as find_modality
from adaptmedseg.data.volume import read_labels, volume_stem
from adaptmedseg.errors import UserError
from adaptmedseg.inference.picture_cases import holds_pictures
from adaptmedseg.inference.pictures import PicturePredictor
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.models.unet import ReferenceUNet
from adaptmedseg.view.niivue import niivue_module
from adaptmedseg.view.picture_scene import PictureScene
from adaptmedseg.view.scene import Reference, Scene, VolumeScene
from adaptmedseg.view.server import ViewServer


def view(
    case: Annotated[str, typer.Argument(help="A volume, a DICOM folder or a picture; with --data, a case's name.")],
    model: Annotated[str, typer.Option(help="Known name, file or run folder.")] = "small",
    data: Annotated[Path | None, typer.Option(help="Prepared data set that the case is of.")] = None,
    modality: Annotated[str | None, typer.Option(help="Of volumes that are no prepared cases: 'CT', 'T2 MRI'.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Label map on the image's grid, to be shown beside the answers.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base of an adapter, where its file has moved.")] = None,
    channel: Annotated[int | None, typer.Option(help="Channel of 4D images, from 0.", min=0)] = None,
    series: Annotated[str | None, typer.Option(help="DICOM series: number, UID or description.")] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 for a free one.", min=0, max=65535)] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address, open no browser.")] = False,
    device: Device = "auto",
) -> None:
    """Look at a case in the browser, click points or drag boxes, and see the mask at once.

    The page is served to this machine alone, under an address with a random token, and loads nothing from elsewhere.
    Ctrl-C ends it.

    \b
    Examples:
      adaptmedseg view Case13 --data prepared/promise12 --model runs/my_mri
      adaptmedseg view scan.nii.gz --modality CT --mask masks/scan.nii.gz
      adaptmedseg view photo.png --model sam-b
    """
    niivue = niivue_module()
    if data is None and holds_pictures(Path(case)):
        given = {"--modality": modality, "--mask": mask, "--base": base, "--channel": channel, "--series": series}
        scene: Scene = _picture(Path(case), model, given, device)
    else:
        scene = _volume(case, model, data, modality, mask, base, channel, series, device)
    with ViewServer(scene, niivue, port) as server:
        print(server.url, flush=True)
        console.print("Ctrl-C ends it", style="dim")
        if not no_open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("closed", style="dim")


def _picture(path: Path, model: str, given: Mapping[str, object], device: str) -> PictureScene:
    if path.is_dir():
        raise UserError(f"{path}: is a folder of pictures; name one of them")
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{option}: is for volumes, and {path} is a picture; leave it out")
    predictor = PicturePredictor.load(model, device)
    predictor.set_image(path)
    return PictureScene(predictor, path)


def _volume(
    case: str,
    model: str,
    data: Path | None,
    modality: str | None,
    mask: Path | None,
    base: str | None,
    channel: int | None,
    series: str | None,
    device: str,
) -> VolumeScene:
    if data is None and modality is None:
        raise UserError("--modality is missing; say what the image is, such as --modality CT, or give --data")
    prepared = None if data is None else prepared_case(PreparedDataset.open(data), case)
    if prepared is not None:
        for option, value in {"--modality": modality, "--channel": channel, "--series": series}.items():
            if value is not None:
                raise UserError(f"{option}: is known of a prepared case; leave it out")
    predictor = Predictor.load(model, base, device)
    if isinstance(predictor.loaded.model, ReferenceUNet):
        raise UserError(f"--model {model}: a U-Net takes no clicks; give a base or an adapter")
    if prepared is not None:
        predictor.set_case(prepared)
        truth = Reference(*whole_labels(prepared), "the data set")
        kind, name = prepared.modality, prepared.id
    else:
        kind, name, truth = find_modality(str(modality)).name, volume_stem(Path(case)), None
        predictor.set_image(case, kind, channel, series)
    return VolumeScene(predictor, name, kind, truth if mask is None else reference_of(mask, predictor))


def prepared_case(dataset: PreparedDataset, name: str) -> PreparedCase:
    """A case by its name. UserError where there is none."""
    cases = {case.id: case for case in dataset.cases()}
    if name not in cases:
        raise UserError(f"{dataset.folder} has no case '{name}'; it has {', '.join(cases)}")
    return cases[name]


def reference_of(path: Path, predictor: Predictor) -> Reference:
    """A label map on the grid of the predictor's image. UserError where it lies on another one."""
    labels, volume = read_labels(path), predictor.volume
    same = labels.data.shape == volume.data.shape
    if not same or labels.grid.distance_mm(volume.grid) > min(volume.spacing) / 10:
        raise UserError(f"{path}: lies on another grid than {volume.path.name}; give a label map of this image")
    values = [int(value) for value in np.unique(labels.data) if value]
    return Reference(labels.data, {value: f"label {value}" for value in values}, path.name)

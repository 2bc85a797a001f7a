"""`adaptmedseg predict`: masks for a file or a folder, on the scanner's grid."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from adaptmedseg.cli.common import Device, bar, console, split_names
from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.registry import modality as find_modality
from adaptmedseg.data.volume import SUFFIXES, volume_stem, volume_suffix
from adaptmedseg.errors import UserError
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.models.adapted import AdaptedSegVol


def predict(
    image: Annotated[Path, typer.Argument(help="An image, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    modality: Annotated[str, typer.Option(help="'CT', 'T2 MRI', ...")],
    structures: Annotated[str, typer.Option(help="Names separated by commas; labels 1, 2, ... in this order.")],
    model: Annotated[str, typer.Option(help="Known name, file or run folder.")] = "small",
    base: Annotated[str | None, typer.Option(help="Base of an adapter, where its file has moved.")] = None,
    channel: Annotated[int | None, typer.Option(help="Channel of 4D images, from 0.", min=0)] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace masks that exist.")] = False,
    device: Device = "auto",
) -> None:
    """Segment images by the names of structures; no label is read.

    Each image gives one label map of its own name on its own grid, and a JSON beside it. Where structures overlap, the
    one named later wins. A bad image does not stop the rest; the exit code is 1 where one failed.

    \b
    Examples:
      adaptmedseg predict scan.nii.gz --out masks --modality "T2 MRI" --structures prostate --model runs/my_mri
      adaptmedseg predict scans --out masks --modality CT --structures "liver,spleen,left kidney"
    """
    images = find_images(image)
    targets = {path: out / f"{volume_stem(path)}.nii.gz" for path in images}
    for path, target in targets.items():
        check_target(path, target, overwrite)
    modality = find_modality(modality).name
    predictor = Predictor.load(model, base, device)
    names = predictor.names(split_names(structures) or [])
    _tell_of_gate(predictor, modality)
    failed = 0
    with bar("predicting") as progress:
        for done, (path, target) in enumerate(targets.items(), 1):
            try:
                _predict_one(predictor, path, target, modality, names, channel)
                print(target)
            except UserError as error:
                if len(images) == 1:
                    raise
                failed += 1
                console.print(f"left out: {error}", style="red", markup=False)
            progress(done, len(images))
    if failed:
        console.print(f"{len(images) - failed} of {len(images)} images segmented, {failed} left out")
        raise typer.Exit(1)


def _tell_of_gate(predictor: Predictor, modality: str) -> None:
    """Say when the adapter will not be used: with the gate on, other modalities than its own take the base's path."""
    model = predictor.loaded.model
    if isinstance(model, AdaptedSegVol) and not model.is_adapted(modality):
        console.print(
            f"note: the adapter is for {', '.join(model.modalities)}; {modality} is segmented by its base alone",
            style="yellow",
            markup=False,
        )


def note_path(target: Path) -> Path:
    """The JSON beside a mask."""
    return target.with_name(f"{volume_stem(target)}.json")


def check_target(image: Path, target: Path, overwrite: bool) -> None:
    """UserError where a mask would replace its own image, or, without `overwrite`, any file."""
    if target.resolve() == image.resolve():
        raise UserError(f"{target}: is the image itself, which the mask would replace; choose another --out")
    for path in (target, note_path(target)):
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists already; choose another --out or pass --overwrite")


def find_images(path: Path) -> list[Path]:
    """The image itself, or all readable volumes of a folder. UserError where there is none."""
    if not path.exists():
        raise UserError(f"{path}: does not exist; check the path")
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.is_file() and volume_suffix(p) and not p.name.startswith("."))
    if not found:
        raise UserError(f"{path}: holds no image; expected files ending in {', '.join(SUFFIXES)}")
    stems = [volume_stem(p) for p in found]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    if twice:
        raise UserError(f"{path}: two images are called '{min(twice)}', so their masks would be one file; rename one")
    return found


def _predict_one(
    predictor: Predictor, path: Path, target: Path, modality: str, names: list[str], channel: int | None
) -> None:
    started = time.perf_counter()
    predictor.set_image(path, modality, channel)
    encoded = time.perf_counter()
    prediction = predictor.predict(names)
    decoded = time.perf_counter()
    prediction.save(target)
    empty = [name for name, mask in prediction.masks.items() if not mask.any()]
    if empty:
        console.print(f"{path}: no voxel found of {', '.join(empty)}", style="yellow", markup=False)
    voxel_ml = float(prediction.volume.spacing[0] * prediction.volume.spacing[1] * prediction.volume.spacing[2]) / 1000
    note = {
        "image": path.name,
        "modality": modality,
        "labels": prediction.label_names(),
        "overlap": "the structure with the higher label wins",
        "prompts": dict.fromkeys(names, "text"),
        "volume_ml": {name: round(float(mask.sum()) * voxel_ml, 3) for name, mask in prediction.masks.items()},
        "model": predictor.loaded.lineage,
        "hashes": predictor.loaded.hashes,
        "seconds": {
            "read and encode": round(encoded - started, 3),
            "decode": round(decoded - encoded, 3),
            "write": round(time.perf_counter() - decoded, 3),
        },
    }
    try:
        write_atomic(note_path(target), json.dumps(note, indent=1))
    except OSError as error:
        target.unlink()  # a mask never stands without the note that says what its labels mean
        raise UserError(f"{note_path(target)}: {error.strerror}; free some space or choose another --out") from None

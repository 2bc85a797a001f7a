"""Reading the folder of a support set: a set of slices, or pictures with masks or with visual prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from adaptmedseg.cli.question import FreeNames
from adaptmedseg.data.pictures.dataset import Axis, SliceDataset
from adaptmedseg.data.pictures.read import is_picture, picture_stem, read_picture
from adaptmedseg.data.prepared.manifest import MANIFEST
from adaptmedseg.errors import UserError
from adaptmedseg.inference.picture_loading import LoadedPictureModel
from adaptmedseg.inference.picture_space import to_pixel_prompts
from adaptmedseg.inference.pictures import PicturePredictor
from adaptmedseg.inference.prompt_file import read_prompts
from adaptmedseg.inference.support.supports import Support, SupportSet
from adaptmedseg.preprocessing.picture_folder import IMAGES, MaskRule, find_pictures, read_pair
from adaptmedseg.preprocessing.slice_set import name_scheme
from adaptmedseg.preprocessing.split import patient_of


@dataclass(frozen=True)
class ReadSupports:
    """A support set, the structures that it is for, and the axis that its slices were cut across ("d" for pictures)."""

    supports: SupportSet
    structures: list[str]
    axis: Axis = "d"


def read_supports(
    path: Path, names: Sequence[str], loaded: LoadedPictureModel, device: torch.device, *, bf16: bool
) -> ReadSupports:
    """A set of slices (all its splits), or a folder of pictures: with masks as `adaptmedseg slices` reads them, or with
    a file of visual prompts NAME.json beside NAME.png, from which the model draws the support's mask.

    Black-and-white masks show the one of `names`; several names are those of the values 1, 2, ... of label maps, unless
    a dataset.json names them. UserError for whatever is wrong with any of it.
    """
    if not path.is_dir():
        raise UserError(f"--support {path}: is no folder; give a set of slices or a folder of pictures and masks")
    if (path / MANIFEST).is_file():
        return _of_slices(SliceDataset.open(path), path)
    prompted = _prompted(path)
    drawn = _drawn_by_model(prompted, loaded, device, bf16=bf16)
    masked = _masked(path, names, required=not prompted)
    twice = {support.name for support in drawn} & {support.name for support in masked}
    if twice:
        raise UserError(f"{path}: {min(twice)} has a mask and a file of prompts; keep one of them")
    found = SupportSet([*drawn, *masked], str(path))
    return ReadSupports(found, found.structures)


def _of_slices(dataset: SliceDataset, path: Path) -> ReadSupports:
    axes = {item.source.get("axis", "d") for item in dataset.items()}
    if len(axes) > 1:
        raise UserError(
            f"{path}: holds slices across {' and '.join(sorted(axes))}; make a set across one axis for support"
        )
    items = [item for item in dataset.items() if item.present()]
    supports = [Support(i.id, i.patient, i.image(), {name: i.mask(name) for name in i.present()}) for i in items]
    return ReadSupports(
        SupportSet(supports, str(path)), list(dataset.structures), cast(Axis, axes.pop() if axes else "d")
    )


def _masked(path: Path, names: Sequence[str], *, required: bool) -> list[Support]:
    """Pictures with masks; none where they are not `required` and there are none."""
    try:
        found = find_pictures(path)
    except UserError as error:
        if required:
            raise _with_options_of_slices(error) from None
        return []
    given = {str(value): name for value, name in enumerate(names, 1)} if len(names) > 1 else {}
    # Empty masks are let through here: a support set refuses an image without any in its own words.
    rule = MaskRule(name_scheme(given, found.labels), names[0] if names else "foreground", 0.5, "empty")
    supports = []
    for pair in found.pairs:
        try:
            sample = read_pair(pair, rule, patient_of(pair.id, None), "train", "picture")
        except UserError as error:
            raise _with_options_of_slices(error) from None
        supports.append(Support(pair.id, sample.patient, read_picture(pair.image).colours(), sample.masks))
    return supports


def _with_options_of_slices(error: UserError) -> UserError:
    """Readers of pictures name options that `predict` has not, but the command that makes sets for it."""
    if " --" not in str(error).replace("--support", ""):
        return error
    return UserError(f"{error} (options of 'adaptmedseg slices', whose sets --support takes)")


def _prompted(path: Path) -> list[Path]:
    """Pictures with a file of prompts beside them."""
    folder = next((path / name for name in IMAGES if (path / name).is_dir()), path)
    files = sorted(file for file in folder.iterdir() if file.is_file() and is_picture(file))
    return [file for file in files if _prompts_of(file).is_file()]


def _prompts_of(picture: Path) -> Path:
    return picture.with_name(f"{picture_stem(picture)}.json")


def _drawn_by_model(
    pictures: Sequence[Path], loaded: LoadedPictureModel, device: torch.device, *, bf16: bool
) -> list[Support]:
    """Supports whose masks the model draws by visual prompts."""
    predictor, known, supports = PicturePredictor(loaded, device, bf16=bf16), FreeNames(), []
    for path in pictures:
        predictor.set_image(path)
        prompts = read_prompts(_prompts_of(path), known.name)
        answers = predictor.predict(to_pixel_prompts(prompts, predictor.picture.shape, path.name))
        masks = {answer.structure: answer.mask for answer in answers}
        name = picture_stem(path)
        supports.append(Support(name, patient_of(name, None), predictor.picture.colours(), masks))
    return supports

"""Pictures and their masks in a folder: who belongs to whom, and reading each pair."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptmedseg.data.files import file_sha256
from adaptmedseg.data.labelled import Absent
from adaptmedseg.data.labels import LabelScheme
from adaptmedseg.data.pictures.dataset import Sample
from adaptmedseg.data.pictures.masks import SPARSE, read_binary_mask, read_label_map
from adaptmedseg.data.pictures.read import is_picture, picture_stem, read_picture
from adaptmedseg.data.prepared import Split
from adaptmedseg.errors import UserError

IMAGES = ("images", "image", "imgs", "img")
MASKS = ("masks", "mask", "labels", "label", "annotations")
LOOKED_AT = 1000  # names of pictures, where an ending is guessed
ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt")


@dataclass(frozen=True)
class PicturePair:
    """A picture and its mask."""

    id: str
    image: Path
    mask: Path


@dataclass
class PictureFolder:
    """What a folder holds: pairs, notes on what was passed over, labels that a dataset.json names, and where nothing
    pairs what masks' names seem to end in."""

    pairs: list[PicturePair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    labels: dict[str, str] | None = None
    likely_ending: str | None = None


@dataclass(frozen=True)
class MaskRule:
    """How masks are read: as a label map by `scheme`, or, without one, as black and white of one `structure`.

    `threshold` is the share of the brightest value from which on a pixel of the latter is inside. `absent`: what a
    structure without a pixel means, as in `labelled.annotated_structures`.
    """

    scheme: LabelScheme | None
    structure: str = "foreground"
    threshold: float = 0.5
    absent: Absent = "unannotated"


def find_pictures(root: Path, mask_ending: str | None = None) -> PictureFolder:
    """Pair pictures with masks.

    A dataset.json with a list `training` of image and label says it all. Else pictures lie in images/ (or image, imgs,
    img) and masks in masks/ (or mask, labels, label, annotations), or both in one folder; a mask has its picture's name
    and one of the usual endings (_mask, _label, _seg, _gt, ...), or `mask_ending`. UserError where nothing pairs.
    """
    if not root.is_dir():
        raise UserError(f"{root}: is no folder; give a prepared data set or a folder of pictures and masks")
    listed = root / "dataset.json"
    found = _listed(root, listed) if listed.is_file() and mask_ending is None else _paired(root, mask_ending)
    if not found.pairs:
        endings = ", ".join(ending for ending in ENDINGS if ending)
        likely = f"; here it seems to be --mask-ending={found.likely_ending}" if found.likely_ending else ""
        raise UserError(
            f"{root}: holds no picture with a mask; masks have their picture's name with {mask_ending or endings} at "
            f"its end, beside it or in masks/ (--mask-ending says another{likely})"
        )
    return found


def _listed(root: Path, listed: Path) -> PictureFolder:
    try:
        table = json.loads(listed.read_text(encoding="utf-8"))
        entries = [(root / entry["image"], root / entry["label"]) for entry in table["training"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{listed}: names no pairs under 'training' ({error}); mend it or remove it") from None
    labels = table.get("labels")
    if labels is not None and not isinstance(labels, dict):
        raise UserError(f'{listed}: names no labels under \'labels\'; write {{"1": "NAME"}}, or remove the key')
    here = [(image, mask) for image, mask in entries if image.is_file()]
    whole = [(image, mask) for image, mask in here if mask.is_file()]
    notes = _passed_over("listed pictures that are not here", [image for image, _ in entries if not image.is_file()])
    notes += _passed_over("pictures without a mask", [image for image, mask in here if not mask.is_file()])
    pairs = [PicturePair(_safe(picture_stem(image)), image, mask) for image, mask in whole]
    return PictureFolder(pairs, notes, labels)


def _paired(root: Path, ending: str | None) -> PictureFolder:
    inside = {folder.name.lower(): folder for folder in root.iterdir() if folder.is_dir()}
    image_folder = next((inside[name] for name in IMAGES if name in inside), root)
    mask_folder = next((inside[name] for name in MASKS if name in inside), root)
    masks: dict[str, list[Path]] = {}
    for path in _files(mask_folder):
        masks.setdefault(_stem(path), []).append(path)
    endings: tuple[str, ...] = (ending,) if ending is not None else ENDINGS
    if mask_folder == image_folder:
        endings = tuple(one for one in endings if one)
    pairs, alone = [], []
    pictures = [path for path in _files(image_folder) if is_picture(path)]
    stems = {_stem(path) for path in pictures}
    for image in pictures:
        stem = _stem(image)
        if mask_folder == image_folder and any(
            stem.endswith(one) and stem.removesuffix(one) in stems for one in endings
        ):
            continue  # a mask itself
        fitting = [path for one in endings for path in masks.get(stem + one, [])]
        if len(fitting) > 1:
            first, second = (path.relative_to(root) for path in fitting[:2])
            raise UserError(f"{image}: has two masks, {first} and {second}; move one away, or choose by --mask-ending")
        if fitting:
            pairs.append(PicturePair(_safe(stem), image, fitting[0]))
        else:
            alone.append(image)
    notes = _passed_over("pictures without a mask", alone)
    if mask_folder != image_folder:
        taken = {pair.mask for pair in pairs}
        notes += _passed_over("masks without a picture", [p for same in masks.values() for p in same if p not in taken])
    return PictureFolder(pairs, notes, likely_ending=None if pairs else _likely_ending(stems, masks))


def _likely_ending(stems: Iterable[str], masks: Iterable[str]) -> str | None:
    """What most names of masks have after a picture's name; the longest name counts where one begins another."""
    longest_first = sorted(stems, key=len, reverse=True)[:LOOKED_AT]
    rests = Counter(
        next((mask.removeprefix(stem) for stem in longest_first if mask.startswith(stem)), "") for mask in masks
    )
    del rests[""]
    return rests.most_common(1)[0][0] if rests else None


def _passed_over(what: str, paths: Sequence[Path]) -> list[str]:
    """A note that names three of them."""
    named = ", ".join([path.name for path in paths[:3]] + (["..."] if paths[3:] else []))
    return [f"{what} are passed over: {len(paths)} ({named})"] if paths else []


def _files(folder: Path) -> list[Path]:
    wanted = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in wanted if is_picture(path) or path.suffix.lower() == SPARSE)


def _stem(path: Path) -> str:
    return picture_stem(path) if is_picture(path) else path.stem


def _safe(stem: str) -> str:
    """A name that is safe as a file's."""
    return re.sub(r"[^\w.+-]+", "_", stem).strip(".") or "picture"


def read_pair(pair: PicturePair, rule: MaskRule, patient: str, split: Split, modality: str) -> Sample:
    """Read a picture with its mask. Raises UserError for whatever is wrong with either of them."""
    picture = read_picture(pair.image)
    if rule.scheme is not None:
        read = read_label_map(pair.mask, picture.shape, rule.scheme)
    else:
        read = read_binary_mask(pair.mask, picture.shape, rule.structure, rule.threshold)
    masks = {name: mask for name, mask in read.masks.items() if mask.any() or rule.absent == "empty"}
    if not masks:
        raise UserError(
            f"{pair.mask}: is empty, so that it annotates nothing; leave its picture out, or assert that empty means "
            "absent with --absent empty"
        )
    grey = picture.pixels.ndim == 2 and picture.palette is None
    colours = picture.colours()
    return Sample(
        id=pair.id,
        patient=patient,
        image=colours[..., 0] if grey else colours,
        masks=masks,
        split=split,
        modality=modality,
        spacing=None,
        source={part: _origin(path) for part, path in (("image", pair.image), ("mask", pair.mask))},
        notes=(*picture.notes, *read.notes),
    )


def _origin(path: Path) -> Mapping[str, Any]:
    return {"path": path.name, "sha256": file_sha256(path)}

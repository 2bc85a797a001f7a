"""A set of labelled slices or pictures, ready for training and evaluation: a folder of PNG files and one manifest.

DIR/manifest.json     what there is
DIR/images/ID.png     grey or RGB, 8 bits
DIR/masks/ID.png      bit masks, 8 or 16 bits: bit i is structures[i]
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adaptmedseg.data.files import file_sha256, write_atomic
from adaptmedseg.data.labels import bit_dtype
from adaptmedseg.data.pictures.read import Picture, read_picture
from adaptmedseg.data.pictures.write import write_png
from adaptmedseg.data.prepared import Split
from adaptmedseg.data.prepared.manifest import MANIFEST, stated_format
from adaptmedseg.data.staging import staged
from adaptmedseg.errors import UserError

FORMAT, VERSION = "adaptmedseg-slices", 1
MAX_STRUCTURES = 16  # bits of a PNG's grey value
Axis = Literal["d", "h", "w"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled image before it is stored.

    `image` (h, w) or (h, w, 3), uint8. `masks`: boolean (h, w) of every structure that is annotated; one that is
    annotated and nowhere to be seen is all False, one that is not in `masks` is unknown. `spacing`: mm a pixel along
    (h, w), None where nothing is known of it. `source`: file and SHA-256 of image and mask, and for a slice of a volume
    its case, axis and index.
    """

    id: str
    patient: str
    image: np.ndarray
    masks: Mapping[str, np.ndarray]
    split: Split
    modality: str
    spacing: tuple[float, float] | None
    source: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SliceItem:
    """One stored image; pixels stay on disk until asked for. `pixels` counts each annotated structure's."""

    id: str
    patient: str
    split: Split
    modality: str
    shape: tuple[int, int]
    spacing: tuple[float, float] | None
    annotated: tuple[str, ...]
    pixels: dict[str, int]
    source: dict[str, Any] = field(repr=False)
    files: dict[str, str] = field(repr=False)
    folder: Path
    structures: tuple[str, ...]

    @property
    def image_sha256(self) -> str:
        """The hash of the file that the image was made from: what tells whether a model has seen it."""
        return str(self.source["image"]["sha256"])

    def picture(self) -> Picture:
        """The image as it is stored. UserError where it cannot be read or has another size than the manifest says."""
        return self._read("images")

    def image(self) -> np.ndarray:
        """Colours (h, w, 3), uint8; UserError as `picture`."""
        return self.picture().colours()

    def bits(self) -> np.ndarray:
        """Bit masks (h, w); bit i is `structures[i]`. UserError as `picture`."""
        return self._read("masks").pixels

    def _read(self, part: str) -> Picture:
        found = read_picture(self.folder / part / f"{self.id}.png")
        if found.shape != self.shape:
            (h, w), (height, width) = found.shape, self.shape
            raise UserError(
                f"{found.path}: is {w}×{h} pixels, and was {width}×{height} when the set was made; copy the folder "
                "again, or make it again"
            )
        return found

    def mask(self, structure: str) -> np.ndarray:
        """The mask of one annotated structure, bool (h, w). ValueError where it is unknown rather than empty."""
        if structure not in self.annotated:
            known = ", ".join(self.annotated)
            raise ValueError(f"{self.id} does not annotate {structure!r}; it annotates {known}")
        return (self.bits() >> self.structures.index(structure)) & 1 == 1

    def present(self, least: int = 1) -> list[str]:
        """The annotated structures of which at least so many pixels are there."""
        return [name for name in self.annotated if self.pixels[name] >= least]


class SliceDataset:
    """A set of labelled slices, opened with `SliceDataset.open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self._items = [_item(entry, folder, tuple(manifest["structures"])) for entry in manifest["items"]]

    @classmethod
    def open(cls, path: str | Path) -> SliceDataset:
        """Open a folder. Raises UserError where it is none, is damaged, of another version, or lacks files."""
        folder = Path(path)
        try:
            dataset = cls(folder, read_slices(folder))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{folder / MANIFEST} is damaged (at {error}); run slices again.") from error
        for item in dataset._items:
            for part in ("images", "masks"):
                if not (folder / part / f"{item.id}.png").is_file():
                    raise UserError(f"{folder / part / item.id}.png is missing; copy the folder again.")
        return dataset

    @property
    def name(self) -> str:
        """The set's name as the user gave it."""
        return str(self.manifest["name"])

    @property
    def structures(self) -> tuple[str, ...]:
        """Names; the position is the bit in the masks."""
        return tuple(self.manifest["structures"])

    def items(self, split: Split | None = None, structures: Sequence[str] | None = None) -> list[SliceItem]:
        """Images in the manifest's order: of one split, and with pixels of at least one of some structures."""
        chosen = [item for item in self._items if split in (None, item.split)]
        return [item for item in chosen if structures is None or set(structures) & set(item.present())]

    def content_sha256(self) -> str:
        """A hash over structures, splits and files of images and masks: what tells two sets of one name apart."""
        files = sorted((*pair, item.split) for item in self._items for pair in item.files.items())
        return hashlib.sha256(json.dumps([self.structures, files]).encode()).hexdigest()

    def damaged(self) -> list[str]:
        """A sentence for every file whose bytes are not those that were written; reads everything."""
        return [
            f"{self.folder / name} is not what was written (SHA-256 differs); copy the folder or make it again."
            for entry in self.manifest["items"]
            for name, digest in entry["files"].items()
            if file_sha256(self.folder / name) != digest
        ]


def write_slices(out: Path, samples: Callable[[Path], dict[str, Any]], *, overwrite: bool = False) -> SliceDataset:
    """Write a set so that a half-written one never looks complete.

    `samples` is given the folder to write to, fills it with `store`, and returns the manifest (name, structures, items
    and what else is to be said). Raises UserError where `out` is in use or the disk is full.
    """
    with staged(out, MANIFEST, read_slices, overwrite=overwrite) as partial:
        manifest = {"format": FORMAT, "version": VERSION, **samples(partial)}
        write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return SliceDataset.open(out)


def store(folder: Path, sample: Sample, structures: Sequence[str]) -> dict[str, Any]:
    """Store one image with its masks; gives its entry in the manifest."""
    if len(structures) > MAX_STRUCTURES:
        raise UserError(
            f"{len(structures)} structures are more than a set of slices can hold ({MAX_STRUCTURES}); name fewer with "
            "--structures"
        )
    bits = np.zeros(sample.image.shape[:2], bit_dtype(max(len(structures), 1)))
    for name, mask in sample.masks.items():
        bits |= mask.astype(bits.dtype) << bits.dtype.type(structures.index(name))
    files = {}
    for part, array in (("images", sample.image), ("masks", bits)):
        path = folder / part / f"{sample.id}.png"
        write_png(path, array)
        files[f"{part}/{sample.id}.png"] = file_sha256(path)
    return {
        "id": sample.id,
        "patient": sample.patient,
        "split": sample.split,
        "modality": sample.modality,
        "shape": list(bits.shape),
        "spacing": None if sample.spacing is None else list(sample.spacing),
        "annotated": list(sample.masks),
        "pixels": {name: int(mask.sum()) for name, mask in sample.masks.items()},
        "source": sample.source,
        "files": files,
        **({"notes": list(sample.notes)} if sample.notes else {}),
    }


def read_slices(folder: Path) -> dict[str, Any]:
    """The manifest of a set of slices. UserError where there is none, or it is damaged or of another version."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is no set of slices (no {MANIFEST}); make one with 'adaptmedseg slices'.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); run slices again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        stated = stated_format(manifest)
        raise UserError(f"{path} is no manifest of a set of slices{stated}; make one with 'adaptmedseg slices'.")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path} has version {manifest.get('version')} and this release reads {VERSION}; make it again."
        )
    return manifest


def _item(entry: dict[str, Any], folder: Path, structures: tuple[str, ...]) -> SliceItem:
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", entry["id"]):
        raise UserError(f"{folder / MANIFEST} holds the unsafe id {entry['id']!r}; run slices again.")
    h, w = entry["shape"]
    spacing = entry["spacing"]
    return SliceItem(
        entry["id"],
        entry["patient"],
        entry["split"],
        entry["modality"],
        (h, w),
        None if spacing is None else (float(spacing[0]), float(spacing[1])),
        tuple(entry["annotated"]),
        {name: int(count) for name, count in entry["pixels"].items()},
        entry["source"],
        dict(entry["files"]),
        folder,
        structures,
    )

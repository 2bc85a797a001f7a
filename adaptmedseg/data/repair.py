"""Repairs that cannot lose anything, written as copies: nothing of the user's is ever changed in place.

Repaired are labels whose header places them within a voxel of their image (the image's header is copied), volumes with
a fourth axis of one channel, and label maps of whole numbers stored as floating point. Everything else that is wrong
needs a person.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from adaptmedseg.data.archive import opened_source
from adaptmedseg.data.discover import Pair, find_pairs
from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.grid import Volume, guarded
from adaptmedseg.data.nifti import save_nifti
from adaptmedseg.data.volume import NIFTI_SUFFIXES, read_image, read_labels, to_grid, write_checked, write_mask
from adaptmedseg.errors import UserError

REPAIRS = "repairs.json"
SAFE_GAP_IN_VOXELS = 1.0  # a header that is off by more may belong to another image
_SAME_IN_VOXELS = 1e-3


@dataclass
class Repairs:
    """What was done: case id to sentences (empty where the case was good), and the cases that could not be repaired."""

    done: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def repaired(self) -> int:
        """Cases that were changed."""
        return sum(bool(sentences) for sentences in self.done.values())


def repair_folder(
    source: Path,
    out: Path,
    *,
    images: Path | None = None,
    label_folder: Path | None = None,
    channel: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Repairs:
    """Write all cases of a folder, repaired where that is safe, to `out`: images/, labels/ and repairs.json.

    Args:
        source, images, label_folder, channel: as `prepare` takes them.
        out: a new folder.
        progress: called with (cases done, cases in all).

    Raises:
        UserError: `out` holds files, or the folder as a whole cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds files already; choose a new folder for --repair")
    repairs = Repairs()
    with opened_source(source) as opened:
        found = find_pairs(opened, images=images, labels=label_folder, channel=channel, skip_unlabelled=True)
        for done, pair in enumerate(found.pairs, 1):
            try:
                repairs.done[pair.id] = _repair(pair, out)
            except UserError as error:
                repairs.left_out[pair.id] = str(error).replace(str(opened), str(source))
            if progress is not None:
                progress(done, len(found.pairs))
        if (found.root / "dataset.json").is_file() and repairs.done:
            shutil.copyfile(found.root / "dataset.json", out / "dataset.json")
    write_atomic(out / REPAIRS, json.dumps(vars(repairs), indent=1) + "\n")
    return repairs


def _repair(pair: Pair, out: Path) -> list[str]:
    """Write one case; gives what was repaired."""
    image, labels = read_image(pair.image, pair.channel), read_labels(pair.label)
    sentences = [f"{path.name}: {text}" for path in (pair.image, pair.label) for text in _stored_oddly(path, pair)]
    sentences += _moved(pair, image, labels)
    if labels.data.dtype.itemsize > 2:
        raise UserError(f"{pair.label} holds the value {labels.data.max()}, above 65535; number its labels anew.")
    whole = np.rint(image.data)
    limits = np.iinfo(np.int16)
    fits = limits.min <= whole.min() and whole.max() <= limits.max and np.array_equal(whole, image.data)
    voxels = whole.astype(np.int16) if fits else image.data
    target = out / "images" / f"{pair.id}.nii.gz"
    write_checked(target, to_grid(voxels, image.grid), image.grid, save_nifti)
    try:
        write_mask(out / "labels" / f"{pair.id}.nii.gz", labels.data, image.grid)
    except BaseException:
        target.unlink()  # both files of a case or none
        raise
    return sentences


def _moved(pair: Pair, image: Volume, labels: Volume) -> list[str]:
    """Whether the labels' header is off by so little that the image's can stand for it."""
    if image.data.shape != labels.data.shape:
        raise UserError(
            f"{pair.label} has shape {labels.grid.shape} and its image {pair.image.name} has {image.grid.shape}; "
            "resample the labels onto the image's grid by nearest neighbour."
        )
    gap, voxel = image.grid.distance_mm(labels.grid), min(image.spacing)
    if gap > SAFE_GAP_IN_VOXELS * voxel:
        raise UserError(
            f"{pair.label} lies up to {gap:.2f} mm away from its image {pair.image.name}, more than a voxel; "
            "look at both and copy the image's header to the labels if only the header is wrong."
        )
    return [f"{pair.label.name}: lay {gap:.2f} mm off its image; has the image's header now"] * (
        gap > _SAME_IN_VOXELS * voxel
    )


def _stored_oddly(path: Path, pair: Pair) -> list[str]:
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        return []
    header = guarded(path, lambda: nib.load(path)).header
    sentences = []
    if len(header.get_data_shape()) > 3 and (path == pair.label or pair.channel is None):
        sentences.append("had a fourth axis of one channel; has three axes now")
    if path == pair.label and not np.issubdtype(header.get_data_dtype(), np.integer):
        sentences.append(f"held labels as {header.get_data_dtype()}; holds whole numbers now")
    return sentences

"""Reading one case of a published set: its files checked against each other and against the set's labels."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from adaptmedseg.preprocessing.case import CaseData, SourceCase

from adaptmedseg.data.discover import Pair
from adaptmedseg.data.grid import Grid, canonical_volume, checked_image
from adaptmedseg.data.labelled import read_labelled
from adaptmedseg.data.labels import LabelScheme, value_counts
from adaptmedseg.data.prepared import file_sha256
from adaptmedseg.data.volume import Volume
from adaptmedseg.errors import UserError


def read_pair(case: SourceCase, scheme: LabelScheme) -> CaseData:
    """Read an image and its label map, both volumes on one grid.

    Raises:
        UserError: a file cannot be read, the grids differ, or a label value has no name in the set.
    """
    read = read_labelled(Pair(case.id, case.image, case.label, case.site, case.channel), None, "empty")
    return labelled(case, read.image, read.labels.data, scheme, counts=read.counts)


def read_nonzero_pair(case: SourceCase, scheme: LabelScheme) -> CaseData:
    """As `read_pair` where every value but 0 means the one structure of the set."""
    read = read_labelled(Pair(case.id, case.image, case.label, case.site, case.channel), None, "empty")
    return labelled(case, read.image, (read.labels.data > 0).astype(np.uint8), scheme)


def labelled(
    case: SourceCase,
    image: Volume,
    labels: np.ndarray,
    scheme: LabelScheme,
    *,
    counts: dict[int, int] | None = None,
    spacing_stated: bool = True,
    notes: tuple[str, ...] = (),
) -> CaseData:
    """Join a canonical image with its label map (d, h, w).

    `counts` are the voxels of every value, where they are known already.

    Raises:
        UserError: the map holds a value that the set's labels do not have.
    """
    counts = value_counts(labels) if counts is None else counts
    unknown = scheme.unknown(counts)
    if unknown:
        known = ", ".join(str(value) for value in sorted(scheme.known_values))
        raise UserError(
            f"{case.label} holds the label values {unknown} where the set has {known}; repair the file or leave it out."
        )
    return CaseData(image, scheme.bit_mask(labels), counts, spacing_stated, notes)


def unplaced_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float] | None, codes: str) -> Grid:
    """The grid of a picture stack that states no geometry.

    Args:
        shape: (x, y, z).
        spacing: (d, h, w) in mm; None makes it one unit a voxel.
        codes: the direction in which each file axis is taken to run, as "LPS".
    """
    d, h, w = spacing or (1.0, 1.0, 1.0)
    signs = [1.0 if code in "RAS" else -1.0 for code in codes]
    return Grid(shape, np.diag([signs[0] * w, signs[1] * h, signs[2] * d, 1.0]))


def stack_case(case: SourceCase, image_xyz: np.ndarray, labels_xyz: np.ndarray, scheme: LabelScheme) -> CaseData:
    """A case of arrays (x, y, z) without geometry, as pictures store them: columns to the left, rows to the back.

    Raises:
        UserError: the shapes differ, the image is constant, or a label value has no name in the set.
    """
    if image_xyz.shape != labels_xyz.shape:
        raise UserError(
            f"{case.label} has shape {labels_xyz.shape} and its image {case.image.name} has {image_xyz.shape}; "
            "leave the case out or repair it."
        )
    if not (labels_xyz == labels_xyz.astype(np.uint16)).all():
        raise UserError(f"{case.label} is no label map: its values are not whole numbers from 0; get it again.")
    labels_xyz = labels_xyz.astype(np.uint16)
    x, y, z = image_xyz.shape
    grid = unplaced_grid((x, y, z), case.spacing, "LPS")
    image = checked_image(image_xyz, grid, case.image)
    labels = canonical_volume(labels_xyz, grid, case.label).data
    return labelled(case, image, labels, scheme, spacing_stated=case.spacing is not None)


def source_record(path: Path, root: Path) -> dict[str, Any]:
    """A source relative to the source folder, and the SHA-256 of what holds its voxels.

    For a MetaImage header that is the data file it names; for a folder all its files, by name.

    Raises:
        UserError: a header names a data file that is not there.
    """
    relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.parent.name, path.name)
    return {"path": relative.as_posix(), "sha256": _content_hash(path)}


def _content_hash(path: Path) -> str:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listed = "".join(f"{file.relative_to(path).as_posix()} {file_sha256(file)}\n" for file in files)
        return hashlib.sha256(listed.encode()).hexdigest()
    return file_sha256(voxel_file(path))


def voxel_file(path: Path) -> Path:
    """The file that holds a volume's voxels: a MetaImage header's data file, or the file itself.

    Raises:
        UserError: the header names no single file, a file elsewhere, or one that is not there or too short.
    """
    if path.suffix.lower() != ".mhd" or not path.is_file():
        return path
    header = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", path.read_bytes().decode("latin-1"), re.MULTILINE))
    name = header.get("ElementDataFile", "")
    if name.upper() == "LOCAL":
        return path
    if not name or Path(name).name != name:
        raise UserError(f"{path} names the data file {name!r}, which is no single file beside it; convert it to .mha.")
    data = path.with_name(name)
    if not data.is_file():
        raise UserError(f"{path} names the data file {name}, which is missing; copy both files.")
    return data

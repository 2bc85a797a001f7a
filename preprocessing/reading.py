"""Reading one case of a published set: its files checked against each other and against the set's labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from adaptmedseg.preprocessing.case import CaseData, SourceCase

from adaptmedseg.data.discover import Pair
from adaptmedseg.data.grid import Grid, canonical_volume, checked_image
from adaptmedseg.data.labelled import read_labelled
from adaptmedseg.data.labels import LabelScheme, value_counts
from adaptmedseg.data.source import source_sha256
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
    """A source relative to the source folder, and its SHA-256 as `adaptmedseg.data.source.source_sha256` has it.

    Raises:
        UserError: a header names a data file that is not there.
    """
    relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.parent.name, path.name)
    return {"path": relative.as_posix(), "sha256": source_sha256(path)}

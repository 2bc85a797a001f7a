"""One prepared case: what the manifest says of it, and its voxels, whole or in part."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adaptmedseg.data.grid import Grid
from adaptmedseg.data.intensity import IntensityStatistics
from adaptmedseg.data.normalise import SEGVOL, Crop, Normalisation
from adaptmedseg.data.prepared.arrays import IMAGE, LABELS, WHOLE, Scale, Slices, open_image, read_labels

Size = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One prepared case; arrays stay on disk until asked for.

    `spacing` (mm), `crop` (start, stop per axis in the full canonical volume) and `shape` (of the stored arrays) are in
    the order d, h, w; `grid` is the scanner's grid of the source image. `statistics` are those of the full volume.
    `annotated` are the structures that the case annotates: any other structure is unknown here, not absent. `voxels`
    counts each structure in the full volume, `voxels_in_crop` inside the crop. `fold` is None unless the set was
    prepared with folds. `files` gives size and SHA-256 of each stored file. Without `spacing_stated` the source says
    nothing about the size of its voxels, and `spacing` holds ones.
    """

    id: str
    patient: str
    site: str
    modality: str
    spacing: tuple[float, float, float]
    grid: Grid
    crop: Crop
    shape: Size
    scale: Scale
    statistics: IntensityStatistics
    annotated: tuple[str, ...]
    voxels: dict[str, int]
    voxels_in_crop: dict[str, int]
    split: Literal["train", "val", "test"]
    fold: int | None
    folder: Path
    structures: tuple[str, ...]
    sources: dict[str, dict[str, str]] = field(repr=False)
    files: dict[str, dict[str, Any]] = field(repr=False)
    spacing_stated: bool = True

    def intensities(self, slices: Slices = WHOLE) -> np.ndarray:
        """The crop, or a part of it, float32 (d, h, w) in the scanner's unit."""
        return self.scale.to_units(open_image(self.folder / IMAGE, self.shape)[slices])

    def image(self, normalisation: Normalisation = SEGVOL) -> np.ndarray:
        """The whole crop as a model with this rule sees it, float32 (d, h, w) in [0, 1]."""
        return normalisation.apply(self.intensities(), self.statistics, self.spacing)

    def labels(self, slices: Slices = WHOLE) -> np.ndarray:
        """Bit masks (d, h, w) of the crop, or of a part of it; bit i is ``structures[i]``."""
        return read_labels(self.folder / LABELS, self.shape, slices)

    def mask(self, structure: str) -> np.ndarray:
        """The mask of one annotated structure (canonical name), bool (d, h, w).

        Raises:
            ValueError: the case does not annotate the structure, so that its mask is unknown rather than empty.
        """
        if structure not in self.annotated:
            known = ", ".join(self.annotated)
            raise ValueError(f"case {self.id} does not annotate {structure!r}; it annotates {known}")
        labels = self.labels()
        return (labels & labels.dtype.type(1 << self.structures.index(structure))) != 0

    def window(self, corner: Size, size: Size, normalisation: Normalisation = SEGVOL) -> tuple[np.ndarray, np.ndarray]:
        """A box of the crop, read without the rest of it.

        Args:
            corner: lowest voxel (d, h, w) of the box; the box may reach out of the crop on any side.
            size: (d, h, w) of the box.
            normalisation: a rule without `n4`, which needs the whole crop.

        Returns:
            The image, float32 in [0, 1], and the bit masks, both of `size`, with zeros outside of the crop.
        """
        if normalisation.n4:
            raise ValueError("bias correction needs the whole crop, so that no window can be read by itself")
        inside, place = _overlap(corner, size, self.shape)
        labels = self.labels(inside)
        image = normalisation.curve(self.statistics)(self.intensities(inside))
        if image.shape == size:
            return image, labels
        padded, padded_labels = np.zeros(size, np.float32), np.zeros(size, labels.dtype)
        padded[place], padded_labels[place] = image, labels
        return padded, padded_labels


def _overlap(corner: Size, size: Size, shape: Size) -> tuple[Slices, Slices]:
    """The part of a box that lies in an array of `shape`: as slices of the array, and as slices of the box."""
    inside, place = [], []
    for start, length, limit in zip(corner, size, shape, strict=True):
        low, high = min(max(start, 0), limit), min(max(start + length, 0), limit)
        inside.append(slice(low, high))
        place.append(slice(low - start, high - start) if high > low else slice(0, 0))
    return (inside[0], inside[1], inside[2]), (place[0], place[1], place[2])

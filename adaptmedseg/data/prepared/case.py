"""One prepared case: what the manifest says of it, and its voxels, whole or in part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adaptmedseg.data.grid import Grid
from adaptmedseg.data.intensity import IntensityStatistics
from adaptmedseg.data.normalise import SEGVOL, Crop, Normalisation, crop_slices
from adaptmedseg.data.prepared.arrays import IMAGE, MASKS, Scale, Size, Slices, open_image, open_masks
from adaptmedseg.data.prepared.masks import Place, merge_masks, unpack_masks
from adaptmedseg.errors import UserError

UNKNOWN_SITE = "unknown"


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One prepared case; arrays stay on disk until asked for.

    `spacing` (mm), `crop` (start, stop per axis in the full canonical volume) and `shape` (of the stored crop) are in
    the order d, h, w; `grid` is the scanner's grid of the source image. `statistics` are those of the full volume.
    `annotated` are the structures that the case annotates: any other structure is unknown here, not absent. `voxels`
    counts each structure in the full volume, `voxels_in_crop` inside the crop. `fold` is None unless the set was
    prepared with folds. `places` says where the masks lie in their file. `files` gives size and SHA-256 of each stored
    file. Without `spacing_stated` the source says nothing about the size of its voxels, and `spacing` holds ones.
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
    places: dict[str, Place] = field(repr=False)
    sources: dict[str, dict[str, str]] = field(repr=False)
    files: dict[str, dict[str, Any]] = field(repr=False)
    spacing_stated: bool = True

    def intensities(self) -> np.ndarray:
        """The whole crop, float32 (d, h, w) in the scanner's unit."""
        return self.scale.to_units(open_image(self.folder / IMAGE, self.shape))

    def image(self, normalisation: Normalisation = SEGVOL) -> np.ndarray:
        """The whole crop as a model with this rule sees it, float32 (d, h, w) in [0, 1]."""
        return normalisation.apply(self.intensities(), self.statistics, self.spacing)

    def masks(self, structures: Sequence[str]) -> np.ndarray:
        """The masks of annotated structures (canonical names), bool (k, d, h, w).

        Raises:
            ValueError: the case does not annotate a structure, so that its mask is unknown rather than empty.
        """
        return self._masks(structures, crop_slices(((0, self.shape[0]), (0, self.shape[1]), (0, self.shape[2]))))

    def mask(self, structure: str) -> np.ndarray:
        """The mask of one annotated structure, bool (d, h, w). ValueError as `masks`."""
        mask: np.ndarray = self.masks([structure])[0]
        return mask

    def labels(self, structures: Sequence[str] | None = None) -> np.ndarray:
        """Masks as bits of one array (d, h, w): bit i is ``structures[i]`` (by default all of the data set's).

        The bit of a structure that is not annotated is 0 everywhere and means nothing.
        """
        names = self.structures if structures is None else structures
        return self._read_masks(merge_masks, names, self.shape)

    def window(
        self, corner: Size, size: Size, structures: Sequence[str], normalisation: Normalisation = SEGVOL
    ) -> tuple[np.ndarray, np.ndarray]:
        """A box of the crop, read without the rest of it.

        Args:
            corner: lowest voxel (d, h, w) of the box; the box may reach out of the crop on any side.
            size: (d, h, w) of the box.
            structures: canonical names of annotated structures.
            normalisation: a rule without `n4`, which needs the whole crop.

        Returns:
            The image, float32 in [0, 1] of `size`, and the masks, bool (k, *size), with zeros outside of the crop.

        Raises:
            ValueError: the rule needs the whole crop, or the case does not annotate a structure.
        """
        if normalisation.n4:
            raise ValueError("bias correction needs the whole crop, so that no window can be read by itself")
        inside, place = _overlap(corner, size, self.shape)
        masks = self._masks(structures, inside)
        image = self.scale.to_units(open_image(self.folder / IMAGE, self.shape)[inside])
        normalisation.curve(self.statistics)(image, out=image)
        if image.shape == size:
            return image, masks
        padded, padded_masks = np.zeros(size, np.float32), np.zeros((len(masks), *size), bool)
        padded[place], padded_masks[:, *place] = image, masks
        return padded, padded_masks

    def _masks(self, structures: Sequence[str], region: Slices) -> np.ndarray:
        unknown = [name for name in structures if name not in self.annotated]
        if unknown:
            known = ", ".join(self.annotated)
            raise ValueError(f"case {self.id} does not annotate {unknown[0]!r}; it annotates {known}")
        return self._read_masks(unpack_masks, structures, region)

    def _read_masks(
        self, read: Callable[..., np.ndarray], structures: Sequence[str], where: Slices | Size
    ) -> np.ndarray:
        path = self.folder / MASKS
        try:
            return read(open_masks(path), self.places, structures, where)
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); run prepare again.") from error


def _overlap(corner: Size, size: Size, shape: Size) -> tuple[Slices, Slices]:
    """The part of a box that lies in an array of `shape`: as slices of the array, and as slices of the box."""
    inside, place = [], []
    for start, length, limit in zip(corner, size, shape, strict=True):
        low, high = min(max(start, 0), limit), min(max(start + length, 0), limit)
        inside.append(slice(low, high))
        place.append(slice(low - start, high - start) if high > low else slice(0, 0))
    return (inside[0], inside[1], inside[2]), (place[0], place[1], place[2])

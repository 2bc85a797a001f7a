"""From prompts on the scanner's grid to prompts on the crop that models see."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from adaptmedseg.data.normalise import Crop
from adaptmedseg.data.volume import Grid
from adaptmedseg.errors import UserError
from adaptmedseg.inference.prompt_file import PromptSet, StructurePrompts
from adaptmedseg.models.prompts import StructurePrompt

_ROUNDING = 1e-4  # voxels by which millimetres may miss the image's rim


def to_structure_prompts(prompts: PromptSet, grid: Grid, crop: Crop, image: str) -> list[StructurePrompt]:
    """Prompts in voxels (d, h, w) of the crop.

    A point must lie in the image; one outside of the crop is left out when it is negative (there is never a mask) and
    refused when it is positive. A box must lie in the image and is cut to the crop's voxels. In millimetres on an
    oblique grid a box becomes the tightest voxel box round its eight corners, cut to the image, and must lie in the
    image's extent along x, y and z.

    Args:
        prompts: in either space.
        grid: the image's grid, as the file has it.
        crop: (start, stop) along (d, h, w) of the canonical volume.
        image: the image's name, for messages.

    Raises:
        UserError: a prompt lies outside of the image or of what the model sees of it, or has another number of axes.
    """
    return [_Placed(prompts, index, grid, crop, image).prompt() for index in range(len(prompts.prompts))]


class _Placed:
    """One entry on one grid."""

    def __init__(self, prompts: PromptSet, index: int, grid: Grid, crop: Crop, image: str):
        self.prompts, self.index, self.grid, self.image = prompts, index, grid, image
        self.start = np.array([low for low, _ in crop], dtype=np.float64)
        self.last = np.array([high - 1 - low for low, high in crop], dtype=np.float64)

    @property
    def entry(self) -> StructurePrompts:
        return self.prompts.prompts[self.index]

    def prompt(self) -> StructurePrompt:
        points, labels = self._points()
        box = self._box()
        return StructurePrompt(
            self.entry.structure,
            self.entry.text,
            torch.tensor(np.array(points), dtype=torch.float32) if points else None,
            torch.tensor(labels) if points else None,
            None if box is None else torch.tensor(box, dtype=torch.float32),
        )

    def _points(self) -> tuple[list[np.ndarray], list[int]]:
        points, labels = [], []
        for i, point in enumerate(self.entry.points):
            voxel = self._voxels(self._position(f"points[{i}].position", point.position)[None])[0]
            if not self._inside(voxel):
                raise self._outside(f"points[{i}]", point.position, "lies outside the image")
            local = self._on_crop(voxel[None])[0]
            seen = ((local >= -0.5) & (local <= self.last + 0.5)).all()
            if not seen and point.label == "positive":
                raise self._outside(f"points[{i}]", point.position, "lies in the image's empty margin, not on tissue,")
            if seen:
                points.append(local)
                labels.append(int(point.label == "positive"))
        return points, labels

    def _box(self) -> np.ndarray | None:
        """Lower and upper corner (2, 3) on the crop."""
        box = self.entry.box
        if box is None:
            return None
        given = np.stack([self._position("box.min", box.min), self._position("box.max", box.max)])
        corners = np.array(list(product(*given.T)))
        extent = self._extent()
        off = (given < extent[0] - _ROUNDING) | (given > extent[1] + _ROUNDING)
        voxels = self._voxels(corners)
        low, high = voxels.min(axis=0), voxels.max(axis=0)
        apart = (high < -0.5 - _ROUNDING) | (low > np.array(self.grid.shape) - 0.5 + _ROUNDING)
        if off.any() or apart.any():
            raise self._outside("box", [*box.min, *box.max], "reaches outside the image")
        local = np.sort(self._on_crop(np.stack([low, high])), axis=0)
        if (local[1] < -0.5).any() or (local[0] > self.last + 0.5).any():
            raise self._outside("box", [*box.min, *box.max], "lies in the image's empty margin, not on tissue,")
        return np.clip(local, 0, self.last)

    def _position(self, part: str, numbers: list[float]) -> np.ndarray:
        """Three coordinates; an image of one slice may be asked with two."""
        if len(numbers) == 2 and self.grid.shape[2] == 1:
            return np.array([*numbers, 0.0])
        if len(numbers) != 3:
            place = f"{self.prompts.place(self.index)}: {part}"
            raise UserError(f"{place} has {len(numbers)} numbers, but {self.image} has three axes; give x, y and z")
        return np.array(numbers)

    def _voxels(self, positions: np.ndarray) -> np.ndarray:
        """Positions (n, 3) to voxels (x, y, z) of the file."""
        if self.prompts.space == "voxel":
            return positions
        return _apply(np.linalg.inv(self.grid.affine), positions)

    def _on_crop(self, voxels: np.ndarray) -> np.ndarray:
        """Voxels (n, 3) of the file's axes to (d, h, w) of the crop."""
        # From the file's to the canonical voxels: a permutation of axes, flips and shifts by whole voxels.
        turn = np.rint(np.linalg.inv(self.grid.canonical().affine) @ self.grid.affine)
        return _apply(turn, voxels)[:, ::-1] - self.start

    def _inside(self, voxel: np.ndarray) -> bool:
        rim = np.array(self.grid.shape) - 0.5
        return bool(((voxel >= -0.5 - _ROUNDING) & (voxel <= rim + _ROUNDING)).all())

    def _extent(self) -> np.ndarray:
        """Lowest and highest coordinates (2, 3) of the image's corners, in the prompts' space."""
        corners = np.array(list(product(*[(-0.5, n - 0.5) for n in self.grid.shape])))
        if self.prompts.space == "world_mm":
            corners = _apply(self.grid.affine, corners)
        return np.stack([corners.min(axis=0), corners.max(axis=0)])

    def _outside(self, part: str, numbers: list[float], what: str) -> UserError:
        low, high = (row.round(1).tolist() for row in self._extent())
        spans = ", ".join(f"{axis} {a} to {b}" for axis, a, b in zip("xyz", low, high, strict=True))
        unit = "RAS mm" if self.prompts.space == "world_mm" else "voxels"
        return UserError(
            f"{self.prompts.place(self.index)}: {part} at {[round(n, 1) for n in numbers]} {what} {self.image} "
            f"({spans}, {unit}); check the space and the order of the axes"
        )


def _apply(affine: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return positions @ affine[:3, :3].T + affine[:3, 3]

"""Slices of canonical volumes as pictures, and back: head or front above, the patient's right on the left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from adaptmedseg.data.pictures.dataset import Axis
from adaptmedseg.data.views import resize_image, resize_labels

AXES: tuple[Axis, ...] = ("d", "h", "w")


@dataclass(frozen=True)
class Planes:
    """The slices of a volume of `shape` across an axis, with square pixels of `step` mm.

    By default a pixel is as large as the finer of the two spacings in the plane, so that nothing is lost.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    axis: Axis = "d"
    pixel: float | None = None

    @property
    def number(self) -> int:
        """The axis that is cut across, as a number."""
        return AXES.index(self.axis)

    @property
    def step(self) -> float:
        """mm a pixel, the same both ways."""
        return self.pixel or min(self._in_plane(self.spacing))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a picture."""
        pairs = zip(self._in_plane(self.shape), self._in_plane(self.spacing), strict=True)
        h, w = (max(1, round(n * s / self.step)) for n, s in pairs)
        return h, w

    def __len__(self) -> int:
        return self.shape[self.number]

    def _in_plane(self, values: tuple) -> tuple:
        return tuple(value for axis, value in enumerate(values) if axis != self.number)

    def grey(self, volume: np.ndarray, index: int) -> np.ndarray:
        """A slice of intensities in [0, 1] (d, h, w) as grey values (h, w), uint8: averaged where it shrinks, linear
        where it grows."""
        turned = torch.from_numpy(_turned(np.take(volume, index, axis=self.number)))[None, None, None]
        grey = resize_image(turned, (1, *self.size), "smooth")[0, 0, 0]
        return np.rint(grey.clamp(0, 1).numpy() * 255).astype(np.uint8)

    def labels(self, volume: np.ndarray, index: int) -> np.ndarray:
        """A slice of labels, bit masks or booleans (d, h, w) as a picture (h, w), picked by nearest neighbour."""
        turned = _turned(np.take(volume, index, axis=self.number))
        stored = torch.from_numpy(turned.astype(np.int64))[None, None, None]
        return resize_labels(stored, (1, *self.size))[0, 0, 0].numpy().astype(volume.dtype)

    def stack(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Values (h, w), float32, of all slices in their order, back on the volume's voxels (d, h, w)."""
        h, w = self._in_plane(self.shape)
        stacked = torch.from_numpy(np.stack(pictures))[:, None, None]
        slices = resize_image(stacked, (1, h, w), "smooth")[:, 0, 0].numpy()
        return np.ascontiguousarray(np.moveaxis(slices[:, ::-1, ::-1], 0, self.number))


def _turned(plane: np.ndarray) -> np.ndarray:
    """Rows of a canonical volume grow to the head or front, columns to the right or front, and pictures show them the
    other way round."""
    return np.ascontiguousarray(plane[::-1, ::-1])

"""Volumes as stacks of slices: supports among a volume's own slices, and masks of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaptmedseg.data.normalise import Crop, crop_slices, normalised_crop
from adaptmedseg.data.pictures.dataset import Axis
from adaptmedseg.data.pictures.planes import AXES, Planes
from adaptmedseg.data.volume import Volume, read_labels
from adaptmedseg.errors import UserError
from adaptmedseg.inference.support.segmenter import SupportSegmenter
from adaptmedseg.inference.support.supports import Support, SupportSet


@dataclass(frozen=True, eq=False)
class SlicedVolume:
    """A volume's foreground, normalised to [0, 1] (d, h, w), where it lies, and how it is cut into pictures."""

    volume: Volume
    inside: np.ndarray
    crop: Crop
    planes: Planes

    @classmethod
    def of(cls, volume: Volume, axis: Axis = "d") -> SlicedVolume:
        """UserError as `normalised_crop`."""
        inside, crop = normalised_crop(volume)
        shape = (inside.shape[0], inside.shape[1], inside.shape[2])
        return cls(volume, inside, crop, Planes(shape, volume.spacing, axis))

    def picture(self, index: int) -> np.ndarray:
        """Colours (h, w, 3) of a slice."""
        return np.repeat(self.planes.grey(self.inside, index)[..., None], 3, axis=2)


@dataclass(frozen=True, eq=False)
class DrawnSlices:
    """Slices that somebody drew in a volume: `labels` on its crop (d, h, w), and which `slices` hold any."""

    labels: np.ndarray
    slices: list[int]
    axis: Axis


def drawn_slices(path: Path, volume: Volume, crop: Crop) -> DrawnSlices:
    """Read a label map in which a few slices are drawn; they lie across the axis along which they are fewest.

    UserError for another grid than the volume's, and where nothing is drawn.
    """
    drawn = read_labels(path)
    if drawn.data.shape != volume.data.shape or drawn.grid.distance_mm(volume.grid) > 0.1 * min(volume.spacing):
        raise UserError(
            f"{path}: lies on another grid ({drawn.grid.shape}) than {volume.path.name} ({volume.grid.shape}); draw "
            "its slices on the image itself"
        )
    labels = drawn.data[crop_slices(crop)]
    if not labels.any():
        raise UserError(f"{path}: no slice of {volume.path.name} is drawn; draw one or more, or give another --support")
    found = {
        axis: np.flatnonzero(labels.any(axis=tuple(other for other in range(3) if other != number)))
        for number, axis in enumerate(AXES)
    }
    axis = min(AXES, key=lambda name: len(found[name]) / labels.shape[AXES.index(name)])
    return DrawnSlices(labels, found[axis].tolist(), axis)


def own_supports(path: Path, sliced: SlicedVolume, drawn: DrawnSlices, names: Sequence[str]) -> SupportSet:
    """The drawn slices as a support set; label value i is the i-th of `names`, without names 'label i'.

    UserError for a value without a name, and as `SupportSet`.
    """
    values = [int(value) for value in np.unique(drawn.labels) if value]
    if names and max(values) > len(names):
        raise UserError(
            f"{path}: holds the value {max(values)}, and --structures names {len(names)}; name the values 1, 2, ... in "
            "their order"
        )
    called = {value: names[value - 1] if names else f"label {value}" for value in values}
    supports = []
    for index in drawn.slices:
        labels = sliced.planes.labels(drawn.labels, index)
        masks = {name: labels == value for value, name in called.items()}
        supports.append(Support(f"slice {index}", f"slice {index}", sliced.picture(index), masks))
    return SupportSet(supports, str(path))


def segment_volume(segmenter: SupportSegmenter, sliced: SlicedVolume) -> dict[str, np.ndarray]:
    """Logits (d, h, w), float32, of every structure on the voxels of the volume's crop."""
    answers = segmenter.segment_stack([sliced.picture(index) for index in range(len(sliced.planes))])
    return {
        name: sliced.planes.stack([of_slice[number].logits for of_slice in answers])
        for number, name in enumerate(segmenter.tasks)
    }


def keep_drawn(logits: dict[str, np.ndarray], drawn: DrawnSlices, names: Sequence[str], axis: int) -> None:
    """Put the drawn slices, which are certain, in the place of what was found there; in place. `names` are the values'
    1, 2, ... in their order."""
    for name, values in logits.items():
        certain = np.where(drawn.labels == names.index(name) + 1, np.float32(10), np.float32(-10))
        for index in drawn.slices:
            place = tuple(index if number == axis else slice(None) for number in range(3))
            values[place] = certain[place]

"""The masks of a prepared case: for every structure the bits of its own bounding box.

Most structures fill a small part of a volume, so that boxes of single bits take little room as they are: nothing has to
be decompressed, and a crop reads the bits that lie in it. Structures may overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmedseg.data.labels import bit_dtype
from adaptmedseg.data.normalise import Crop, crop_slices
from adaptmedseg.data.prepared.arrays import Size, Slices

_BITS = 8


@dataclass(frozen=True)
class Place:
    """Where the bits of one structure lie: its `box` in the stored crop (start, stop of d, h, w), and from which byte
    of the file they run. Every row along w takes whole bytes, the lowest bit first."""

    box: Crop
    start: int

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Place:
        """Undo `to_json`. KeyError, TypeError or ValueError for anything else."""
        d, h, w = (_pair(pair) for pair in table["box"])
        return cls((d, h, w), int(table["start"]))

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"box": [list(pair) for pair in self.box], "start": self.start}

    @property
    def packed_shape(self) -> Size:
        """Slices, rows, and bytes a row."""
        (d0, d1), (h0, h1), (w0, w1) = self.box
        return d1 - d0, h1 - h0, -(-(w1 - w0) // _BITS)

    def bits(self, packed: np.ndarray) -> np.ndarray:
        """The structure's bytes (d, h, bytes of w), a view of the file's. ValueError where they are not all there."""
        d, h, w = self.packed_shape
        return packed[self.start : self.start + d * h * w].reshape(d, h, w)


def pack_masks(bits: np.ndarray, structures: Sequence[str]) -> tuple[np.ndarray, dict[str, Place], dict[str, int]]:
    """Bit masks (d, h, w), bit i for ``structures[i]``, as the bytes to store.

    Returns:
        The bytes, where each structure's lie (structures without a voxel have none), and the voxels of every structure.
    """
    boxes = _boxes(bits, len(structures))
    parts, places, voxels = [np.zeros(0, np.uint8)], {}, {}
    start = 0
    for bit, name in enumerate(structures):
        box = boxes[bit]
        voxels[name] = 0
        if box is None:
            continue
        mask = (bits[crop_slices(box)] & bits.dtype.type(1 << bit)) != 0
        voxels[name] = int(np.count_nonzero(mask))
        places[name] = Place(box, start)
        parts.append(np.packbits(mask, axis=-1, bitorder="little").ravel())
        start += parts[-1].size
    return np.concatenate(parts), places, voxels


def unpack_masks(packed: np.ndarray, places: Mapping[str, Place], names: Sequence[str], region: Slices) -> np.ndarray:
    """A part of the masks of some structures.

    Args:
        packed: the stored bytes.
        places: of all structures that have a voxel.
        names: the structures wanted.
        region: the part of the stored crop: start and stop of every axis.

    Returns:
        bool (k, d, h, w).

    Raises:
        ValueError: there are fewer bytes than the places say.
    """
    size = [part.stop - part.start for part in region]
    masks = np.zeros((len(names), *size), np.uint8)
    for mask, name in zip(masks, names, strict=True):
        if name in places:
            _unpack(packed, places[name], region, mask)
    return masks.view(bool)


def merge_masks(packed: np.ndarray, places: Mapping[str, Place], names: Sequence[str], shape: Size) -> np.ndarray:
    """The masks of some structures as bit masks (d, h, w): bit i is set where ``names[i]`` is.

    Raises:
        ValueError: there are fewer bytes than the places say.
    """
    bits = np.zeros(shape, bit_dtype(len(names)))
    for bit, name in enumerate(names):
        if name in places:
            box = places[name].box
            rows = np.unpackbits(places[name].bits(packed), axis=-1, count=box[2][1] - box[2][0], bitorder="little")
            bits[crop_slices(box)] |= rows.astype(bits.dtype) << bits.dtype.type(bit)
    return bits


def _unpack(packed: np.ndarray, place: Place, region: Slices, mask: np.ndarray) -> None:
    """Write what lies of a structure within `region` into `mask`, which is zero and of the region's size."""
    source, target = [], []
    for (low, high), part in zip(place.box, region, strict=True):
        first, last = max(low, part.start), min(high, part.stop)
        if first >= last:
            return
        source.append(slice(first - low, last - low))
        target.append(slice(first - part.start, last - part.start))
    d, h, w = source
    whole = slice(w.start // _BITS, -(-w.stop // _BITS))
    rows = np.unpackbits(place.bits(packed)[d, h, whole], axis=-1, bitorder="little")
    skipped = w.start - whole.start * _BITS
    mask[tuple(target)] = rows[..., skipped : skipped + w.stop - w.start]


def _boxes(bits: np.ndarray, count: int) -> list[Crop | None]:
    """The bounding box of every bit, None where it is nowhere set: the bits that occur in every slice, row, column."""
    plane = np.bitwise_or.reduce(bits, axis=0)
    profiles = (
        np.bitwise_or.reduce(np.bitwise_or.reduce(bits, axis=2), axis=1),
        np.bitwise_or.reduce(plane, axis=1),
        np.bitwise_or.reduce(plane, axis=0),
    )
    boxes: list[Crop | None] = []
    for bit in range(count):
        hits = [np.flatnonzero(profile & bits.dtype.type(1 << bit)) for profile in profiles]
        d, h, w = ((int(hit[0]), int(hit[-1]) + 1) if hit.size else (0, 0) for hit in hits)
        boxes.append((d, h, w) if hits[0].size else None)
    return boxes


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    low, high = values
    return int(low), int(high)

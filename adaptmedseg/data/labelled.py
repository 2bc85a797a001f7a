"""One image with its label map, read and checked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from adaptmedseg.data.discover import Pair
from adaptmedseg.data.labels import LabelScheme, value_counts
from adaptmedseg.data.registry import Modality, Registry
from adaptmedseg.data.volume import Grid, Volume, read_image, read_labels
from adaptmedseg.errors import UserError

Absent = Literal["unannotated", "empty"]
_MAX_GAP_IN_VOXELS = 0.1


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """A checked image and label map on one grid, both canonical, and the voxels of every label value."""

    image: Volume
    labels: Volume
    counts: dict[int, int]


def read_labelled(pair: Pair, scheme: LabelScheme | None, absent: Absent) -> LabelledVolume:
    """Read a pair and check that the labels belong to the image.

    Args:
        pair: the two files.
        scheme: the values that labels may hold; None accepts any.
        absent: see `annotated_structures`.

    Raises:
        UserError: a file cannot be read; the grids differ; a label value has no name; or, where absent structures count
            as not annotated, the label map is empty.
    """
    image = read_image(pair.image, pair.channel)
    labels = read_labels(pair.label)
    _check_grids(pair, image, labels)
    table = value_counts(labels.data)
    unknown = scheme.unknown(table) if scheme else []
    if unknown:
        raise UserError(
            f"{pair.label} holds the label values {unknown} that have no name; name each (--label {unknown[0]}=NAME) "
            f"or drop it (--label {unknown[0]}=background)."
        )
    voxels = scheme.voxels(table) if scheme else {value: count for value, count in table.items() if value}
    if absent == "unannotated" and not any(voxels.values()):
        raise UserError(
            f"{pair.label} is empty, so that the case annotates nothing; leave it out, or assert that empty means "
            "absent with --absent empty."
        )
    return LabelledVolume(image, labels, table)


def annotated_structures(voxels: Mapping[str, int], absent: Absent) -> tuple[str, ...]:
    """The structures that a case annotates.

    Args:
        voxels: voxels of every structure in the full volume.
        absent: 'unannotated' takes a structure without a voxel as not annotated, so that an absent annotation is never
            an empty mask (a union counts as annotated as soon as one of its values occurs); 'empty' is the user's
            assertion that the set annotates every structure in every case.
    """
    return tuple(name for name, count in voxels.items() if count or absent == "empty")


def modality_of(given: str | None, description: Mapping[str, Any], channel: int | None, registry: Registry) -> Modality:
    """The user's modality, else that of the chosen channel in a dataset.json (MSD or nnU-Net).

    Raises:
        UserError: neither names one, or the name is unknown.
    """
    if given is not None:
        return registry.modality(given)
    channels = description.get("channel_names") or description.get("modality") or {}
    if isinstance(channels, str):
        return registry.modality(channels)
    name = channels.get(str(channel or 0)) if isinstance(channels, Mapping) else None
    if name is None:
        raise UserError('The modality is not known; give it, for example --modality "T2 MRI".')
    return registry.modality(str(name))


def _check_grids(pair: Pair, image: Volume, labels: Volume) -> None:
    if image.data.shape != labels.data.shape:
        raise UserError(
            f"{pair.label} has shape {labels.grid.shape} and its image {pair.image.name} has {image.grid.shape}; "
            "resample the labels onto the image's grid by nearest neighbour."
        )
    gap = image.grid.distance_mm(labels.grid)
    if gap > _MAX_GAP_IN_VOXELS * min(image.spacing):
        raise UserError(
            f"{pair.label} lies up to {gap:.2f} mm away from its image {pair.image.name} "
            f"({_difference(image.grid, labels.grid)}); "
            "copy the image's header to the labels if only the header is wrong, else resample the labels."
        )


def _difference(image: Grid, labels: Grid) -> str:
    """In which part of the affine two grids differ, in words."""
    first, second = image.canonical().affine, labels.canonical().affine
    sizes = [np.linalg.norm(affine[:3, :3], axis=0).round(3).tolist() for affine in (first, second)]
    if sizes[0] != sizes[1]:
        return f"voxel sizes {sizes[1]} against {sizes[0]} mm"
    origins = [affine[:3, 3].round(2).tolist() for affine in (first, second)]
    return f"origin {origins[1]} against {origins[0]} mm" if origins[0] != origins[1] else "the axes' directions differ"

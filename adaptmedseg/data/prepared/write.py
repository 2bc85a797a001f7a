"""Writing prepared data sets so that a half-written one never looks complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptmedseg.data.files import file_sha256, write_atomic
from adaptmedseg.data.intensity import intensity_statistics
from adaptmedseg.data.normalise import SEGVOL, crop_slices, foreground_of
from adaptmedseg.data.prepared.arrays import IMAGE, LABELS, encode_intensities, write_labels
from adaptmedseg.data.prepared.dataset import PreparedDataset
from adaptmedseg.data.prepared.manifest import FORMAT, MANIFEST, VERSION, read_manifest
from adaptmedseg.data.staging import staged
from adaptmedseg.data.volume import Volume


def write_case(folder: Path, image: Volume, bits: np.ndarray, structures: Sequence[str]) -> dict[str, Any]:
    """Crop to the foreground and store one case.

    Args:
        folder: the case's own folder, made here.
        image: the canonical image in its own units.
        bits: bit masks (d, h, w) on the image's grid.
        structures: names in bit order.

    Returns:
        The part of the case's manifest entry that its voxels give: grid, spacing, crop, shape, intensity, voxels inside
        the crop, and the stored files with their sizes and hashes.

    Raises:
        UserError: the image has no contrast.
    """
    stats, crop = foreground_of(image, intensity_statistics)
    slices = crop_slices(crop)
    cropped = np.ascontiguousarray(bits[slices])
    low, high = SEGVOL.curve(stats).x
    stored, scale = encode_intensities(image.data[slices], high - low)
    folder.mkdir(parents=True)
    np.save(folder / IMAGE, np.ascontiguousarray(stored))
    write_labels(folder / LABELS, cropped)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in (IMAGE, LABELS)
    }
    return {
        "grid": {"shape": list(image.grid.shape), "affine": image.grid.affine.tolist()},
        "spacing": list(image.spacing),
        "crop": [list(pair) for pair in crop],
        "shape": list(cropped.shape),
        "intensity": {"slope": scale.slope, "intercept": scale.intercept, "statistics": stats.to_json()},
        "voxels_in_crop": _voxels(cropped, structures),
        "files": files,
    }


def _voxels(bits: np.ndarray, structures: Sequence[str]) -> dict[str, int]:
    """Voxels of every structure, from how often every combination of bits occurs."""
    values, counts = np.unique(bits, return_counts=True)
    return {name: int(counts[values & values.dtype.type(1 << i) != 0].sum()) for i, name in enumerate(structures)}


def write_prepared(
    out: str | Path, write_cases: Callable[[Path], dict[str, Any]], *, overwrite: bool = False
) -> PreparedDataset:
    """Write a prepared data set so that a half-written one never looks complete.

    Args:
        out: the new folder. Everything is written to ``OUT.partial`` beside it, which is renamed at the end.
        write_cases: is given the folder to write to, fills ``cases/`` with `write_case`, and returns the manifest
            (without format and version).
        overwrite: replace `out` where it holds a prepared data set.

    Raises:
        UserError: `out` is in use, or the disk is full.
    """
    out = Path(out)
    with staged(out, MANIFEST, read_manifest, overwrite=overwrite) as partial:
        manifest = {"format": FORMAT, "version": VERSION, **write_cases(partial)}
        write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return PreparedDataset.open(out)

"""Writing prepared data sets so that a half-written one never looks complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from adaptmedseg.data.files import file_sha256, write_atomic
from adaptmedseg.data.intensity import intensity_statistics
from adaptmedseg.data.normalise import SEGVOL, crop_slices, foreground_of
from adaptmedseg.data.prepared.arrays import IMAGE, MASKS, encode_intensities
from adaptmedseg.data.prepared.dataset import PreparedDataset
from adaptmedseg.data.prepared.manifest import FORMAT, MANIFEST, VERSION, read_manifest
from adaptmedseg.data.prepared.masks import pack_masks
from adaptmedseg.data.volume import Volume
from adaptmedseg.errors import UserError

_OWNER = ".writing"


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
    low, high = SEGVOL.curve(stats).x
    stored, scale = encode_intensities(image.data[slices], high - low)
    packed, places, voxels = pack_masks(bits[slices], structures)
    folder.mkdir(parents=True)
    np.save(folder / IMAGE, np.ascontiguousarray(stored))
    np.save(folder / MASKS, packed)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in (IMAGE, MASKS)
    }
    return {
        "grid": {"shape": list(image.grid.shape), "affine": image.grid.affine.tolist()},
        "spacing": list(image.spacing),
        "crop": [list(pair) for pair in crop],
        "shape": list(stored.shape),
        "intensity": {"slope": scale.slope, "intercept": scale.intercept, "statistics": stats.to_json()},
        "voxels_in_crop": voxels,
        "masks": {name: place.to_json() for name, place in places.items()},
        "files": files,
    }


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
    try:
        with _staged(out, overwrite) as partial:
            manifest = {"format": FORMAT, "version": VERSION, **write_cases(partial)}
            write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"{out} could not be written because the disk is full; free some space.") from error
        place = error.filename or out
        raise UserError(f"{out} could not be made ({place}: {error.strerror}); check paths and permissions.") from error
    return PreparedDataset.open(out)


@contextmanager
def _staged(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give ``OUT.partial`` to write to; rename it to `out` on success, remove it on failure."""
    _check_free(out, overwrite)
    partial = out.with_name(out.name + ".partial")
    _clear_leftover(partial)
    partial.mkdir(parents=True)
    (partial / _OWNER).write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
    try:
        yield partial
        (partial / _OWNER).unlink()
        replaced = out.with_name(out.name + ".replaced")
        if out.exists():
            os.replace(out, replaced)  # what was there stays whole until the new set has its name
        os.replace(partial, out)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; choose a new folder for the prepared data.")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out} holds other files; choose a new or empty folder for the prepared data.")
    read_manifest(out)
    if not overwrite:
        raise UserError(f"{out} already holds a prepared data set; choose another folder or pass --overwrite.")


def _clear_leftover(partial: Path) -> None:
    """Remove what a killed run left; refuse while that run lives or where the folder is not ours."""
    if not partial.exists():
        return
    owner = partial / _OWNER
    if not owner.is_file():
        raise UserError(f"{partial} is in the way; move it or choose another output folder.")
    host, _, pid = owner.read_text(encoding="utf-8").partition(" ")
    if host == socket.gethostname() and pid.isdigit() and _alive(int(pid)):
        raise UserError(f"{partial} is being written by process {pid}; wait for it or choose another output folder.")
    shutil.rmtree(partial)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""Prepared data sets on disk: normalised, cropped, memory-mappable cases and one manifest that people can read.

Layout::

    DIR/manifest.json           format, name, structures (position = bit), every case's origin, geometry and counts
    DIR/cases/ID/image.npy      float16 (d, h, w) in [0, 1], normalised and cropped
    DIR/cases/ID/labels.npy     bit masks (d, h, w): bit i is structures[i]; structures may overlap
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.normalise import Crop, crop_slices, normalise_volume
from adaptmedseg.data.registry import Registry, default_registry
from adaptmedseg.data.volume import Grid, Volume
from adaptmedseg.errors import UserError

FORMAT = "adaptmedseg-prepared"
VERSION = 1
MANIFEST = "manifest.json"
Split = Literal["train", "val", "test"]
_OWNER = ".writing"


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One prepared case; arrays stay on disk until asked for.

    `spacing` (mm), `crop` (start, stop per axis in the full canonical volume) and `shape` (of the stored arrays) are in
    the order d, h, w; `grid` is the scanner's grid of the source image. `annotated` are the structures that the case
    annotates: any other structure is unknown here, not absent. `voxels` counts each structure in the full volume,
    `voxels_in_crop` inside the crop. `fold` is None unless the set was prepared with folds.
    """

    id: str
    patient: str
    site: str
    modality: str
    spacing: tuple[float, float, float]
    grid: Grid
    crop: Crop
    shape: tuple[int, int, int]
    annotated: tuple[str, ...]
    voxels: dict[str, int]
    voxels_in_crop: dict[str, int]
    split: Split
    fold: int | None
    folder: Path
    structures: tuple[str, ...]
    sources: dict[str, dict[str, str]] = field(repr=False)

    def image(self) -> np.ndarray:
        """The normalised, cropped image, float32 (d, h, w) in [0, 1]."""
        return np.asarray(self.image_map(), dtype=np.float32)

    def image_map(self) -> np.ndarray:
        """The stored float16 image as a read-only memory map: a crop costs what the crop costs."""
        return _open_array(self.folder / "image.npy", self.shape)

    def labels(self) -> np.ndarray:
        """The stored bit masks (d, h, w) as a read-only memory map; bit i is ``structures[i]``."""
        return _open_array(self.folder / "labels.npy", self.shape)

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


class PreparedDataset:
    """A prepared data set, opened with `PreparedDataset.open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._cases = [_case(entry, folder, tuple(manifest["structures"])) for entry in manifest["cases"]]

    @classmethod
    def open(cls, path: str | Path) -> PreparedDataset:
        """Open a prepared folder.

        Raises:
            UserError: the folder is no prepared data set, is of another version, or lacks files of a case.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        try:
            dataset = cls(folder, manifest)
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(f"{folder / MANIFEST} is damaged (at {error}); run prepare again.") from error
        for case in dataset._cases:
            for name in ("image.npy", "labels.npy"):
                if not (case.folder / name).is_file():
                    raise UserError(f"{case.folder / name} is missing; copy the folder again or run prepare again.")
        return dataset

    @property
    def name(self) -> str:
        """The data set's name as the user gave it."""
        return str(self.manifest["name"])

    @property
    def structures(self) -> tuple[str, ...]:
        """Canonical structure names; the position is the bit in the label masks."""
        return tuple(self.manifest["structures"])

    @property
    def modalities(self) -> tuple[str, ...]:
        """Canonical names of the modalities of all cases."""
        return tuple(self.manifest["modalities"])

    @property
    def folds(self) -> int | None:
        """The number of folds that the set was prepared with, or None."""
        return self.manifest.get("folds")

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of all cases, sorted."""
        return tuple(sorted({case.site for case in self._cases}))

    @property
    def registry(self) -> Registry:
        """The shipped registry together with the set's own structures."""
        return default_registry().extended(self.manifest.get("extra_structures", {}))

    def cases(self, split: Split | None = None, structures: Sequence[str] | None = None) -> list[PreparedCase]:
        """Cases in the manifest's order.

        Args:
            split: keep one split; None keeps all.
            structures: keep cases that annotate at least one of these names or synonyms; None keeps all.
        """
        if split not in (None, "train", "val", "test"):
            raise ValueError(f"split is {split!r}; choose 'train', 'val' or 'test'")
        chosen = [case for case in self._cases if split in (None, case.split)]
        if structures is None:
            return chosen
        wanted = {self.registry.structure(name).name for name in structures}
        return [case for case in chosen if wanted.intersection(case.annotated)]

    def fold(self, k: int) -> tuple[list[PreparedCase], list[PreparedCase]]:
        """Training and test cases of fold `k`; no patient is in both.

        Raises:
            UserError: the set was prepared without folds or has no fold `k`.
        """
        if self.folds is None or not 0 <= k < self.folds:
            raise UserError(f"{self.folder} has {self.folds or 'no'} folds, so no fold {k}; prepare it with --folds.")
        return [case for case in self._cases if case.fold != k], [case for case in self._cases if case.fold == k]

    def leave_site_out(self, site: str) -> tuple[list[PreparedCase], list[PreparedCase]]:
        """Cases of all other sites without the left-out site's patients, and the cases of `site`.

        Raises:
            UserError: no case is from `site`.
        """
        test = [case for case in self._cases if case.site == site]
        if not test:
            raise UserError(f"{self.folder} has no site {site!r}; its sites are {', '.join(self.sites)}.")
        patients = {case.patient for case in test}
        return [case for case in self._cases if case.patient not in patients], test


def write_case(folder: Path, image: Volume, bits: np.ndarray, structures: Sequence[str]) -> dict[str, Any]:
    """Normalise, crop and store one case.

    Args:
        folder: the case's own folder, made here.
        image: the canonical image in its own units.
        bits: bit masks (d, h, w) on the image's grid.
        structures: names in bit order.

    Returns:
        The geometry part of the case's manifest entry: grid, spacing, crop, shape and voxels inside the crop.

    Raises:
        UserError: the image has no contrast.
    """
    normalised, crop = normalise_volume(image)
    slices = crop_slices(crop)
    cropped = np.ascontiguousarray(bits[slices])
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", normalised[slices].astype(np.float16))
    np.save(folder / "labels.npy", cropped)
    inside = {name: int(np.count_nonzero(cropped & bits.dtype.type(1 << i))) for i, name in enumerate(structures)}
    return {
        "grid": {"shape": list(image.grid.shape), "affine": image.grid.affine.tolist()},
        "spacing": list(image.spacing),
        "crop": [list(pair) for pair in crop],
        "shape": list(cropped.shape),
        "voxels_in_crop": inside,
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


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        if out.exists():
            shutil.rmtree(out)
        os.replace(partial, out)
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
    _read_manifest(out)
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


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is no prepared data set (no {MANIFEST}); make one with 'adaptmedseg prepare'.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run prepare again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is no manifest of a prepared data set; make one with 'adaptmedseg prepare'.")
    if manifest.get("version") != VERSION:
        version = manifest.get("version")
        raise UserError(f"{path} has version {version} and this release reads {VERSION}; run prepare again.")
    return manifest


def _case(entry: dict[str, Any], folder: Path, structures: tuple[str, ...]) -> PreparedCase:
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", entry["id"]):
        raise UserError(f"{folder / MANIFEST} holds the unsafe case id {entry['id']!r}; run prepare again.")
    return PreparedCase(
        id=entry["id"],
        patient=entry["patient"],
        site=entry["site"],
        modality=entry["modality"],
        spacing=_triple(entry["spacing"]),
        grid=Grid(_triple(entry["grid"]["shape"]), np.array(entry["grid"]["affine"], dtype=np.float64)),
        crop=cast(Crop, _triple([tuple(pair) for pair in entry["crop"]])),
        shape=_triple(entry["shape"]),
        annotated=tuple(entry["annotated"]),
        voxels=dict(entry["voxels"]),
        voxels_in_crop=dict(entry["voxels_in_crop"]),
        split=entry["split"],
        fold=entry["fold"],
        folder=folder / "cases" / entry["id"],
        structures=structures,
        sources=entry["sources"],
    )


def _triple(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third


def _open_array(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); run prepare again.") from error
    if array.shape != shape:
        raise UserError(f"{path} has shape {array.shape} where the manifest says {shape}; run prepare again.")
    return array

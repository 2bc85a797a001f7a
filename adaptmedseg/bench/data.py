"""What data cost: preparing, random crops and disk, against the plain way.

The plain way is SegVol's own: every case is read, normalised and saved by itself as one float32 .npy of the volume and
one compressed sparse row per structure; a crop loads both whole and cuts.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import sub
from pathlib import Path
from statistics import median

import numpy as np
from scipy import sparse

from adaptmedseg.data.discover import find_pairs
from adaptmedseg.data.grid import Grid
from adaptmedseg.data.labels import LabelNames, label_scheme
from adaptmedseg.data.nifti import save_nifti
from adaptmedseg.data.normalise import bounding_box, crop_slices, min_max, standardise
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.data.registry import default_registry
from adaptmedseg.data.volume import read_image, read_labels
from adaptmedseg.preprocessing.folder import prepare_folder

Size3 = tuple[int, int, int]
CROP: Size3 = (32, 128, 128)
SECONDS = 4.0  # how long crops are timed
TURNS = 3
ORGANS = (
    "liver", "spleen", "left kidney", "right kidney", "stomach", "gallbladder", "esophagus", "pancreas", "aorta",
    "inferior vena cava", "left adrenal gland", "right adrenal gland", "duodenum",
)  # fmt: skip


@dataclass(frozen=True)
class DataFigures:
    """Seconds to prepare (None where no source was given; `plain_read` is the plain way without saving), seconds a
    crop, bytes on disk: plain and ours; and the largest difference between a voxel of the two. Seconds are medians of
    runs that took turns."""

    cases: int
    shape: Size3
    structures: int
    plain_prepare: float | None
    plain_read: float | None
    our_prepare: float | None
    plain_crop: float
    our_crop: float
    plain_bytes: int
    our_bytes: int
    difference: float


@dataclass
class _Preparing:
    """Seconds of each turn."""

    ours: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    saving: list[float] = field(default_factory=list)


def bench_source(source: Path, modality: str, labels: LabelNames, workers: int) -> DataFigures:
    """All figures for a user's folder or archive."""
    spent = _Preparing()
    with tempfile.TemporaryDirectory() as name:
        for turn in range(TURNS):
            place = Path(name) / str(turn)
            started = time.perf_counter()
            dataset = _prepare(source, place / "ours", modality, labels, workers)
            spent.ours.append(time.perf_counter() - started)
            started = time.perf_counter()
            ids, saving = _prepare_plainly(_unpacked_plainly(source, place / "unpacked"), place / "plain", labels)
            spent.plain.append(time.perf_counter() - started)
            spent.saving.append(saving)
        return _compare(dataset, place / "plain", ids, spent)


def bench_generated(shape: Size3, structures: int) -> DataFigures:
    """Crops and disk for one generated volume of `shape` (d, h, w) with some of the abdomen's organs."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        labels = dict(enumerate(ORGANS[:structures], 1))
        _write_generated(place / "source", shape, structures)
        dataset = _prepare(place / "source", place / "ours", "CT", labels, 1)
        ids, _ = _prepare_plainly(place / "source", place / "plain", labels)
        return _compare(dataset, place / "plain", ids, None)


def _prepare(source: Path, out: Path, modality: str, labels: LabelNames, workers: int) -> PreparedDataset:
    return prepare_folder(
        source, out, name="bench", modality=modality, labels=labels, test_fraction=0, val_fraction=0, workers=workers
    )


def _unpacked_plainly(source: Path, out: Path) -> Path:
    """The folder of the source; an archive is unpacked by the standard library."""
    if source.is_dir():
        return source
    shutil.unpack_archive(source, out, filter=None if source.suffix == ".zip" else "data")
    return out


def _prepare_plainly(source: Path, out: Path, labels: LabelNames) -> tuple[list[str], float]:
    """The reference's steps, case by case: read, clip to the foreground's percentiles, standardise, scale to [0, 1],
    crop, save. Gives the ids and the seconds of saving. Cropped as ours is, so that voxels can be compared."""
    scheme = label_scheme(labels, None, default_registry())
    pairs = find_pairs(source).pairs
    out.mkdir(parents=True)
    saving = 0.0
    for pair in pairs:
        image, values = read_image(pair.image).data, read_labels(pair.label).data
        normalised = min_max(standardise(image))
        box = crop_slices(bounding_box(normalised > 0))
        started = time.perf_counter()
        np.save(out / f"{pair.id}.npy", normalised[box][None])
        masks = np.stack([np.isin(values[box], wanted) for wanted in scheme.values.values()])
        rows = sparse.csr_matrix(masks.reshape(len(masks), -1).astype(np.uint8))
        sparse.save_npz(out / f"{pair.id}.npz", rows)
        saving += time.perf_counter() - started
    return [pair.id for pair in pairs], saving


def _compare(dataset: PreparedDataset, plain: Path, ids: list[str], preparing: _Preparing | None) -> DataFigures:
    cases = {case.id: case for case in dataset.cases()}
    difference = max(float(np.abs(np.load(plain / f"{i}.npy")[0] - cases[i].image()).max()) for i in ids)
    order = list(cases.values())
    plain_seconds, our_seconds = _turns(
        lambda rng: plain_crop(plain, ids[rng.integers(len(ids))], rng),
        lambda rng: our_crop(order[rng.integers(len(order))], rng),
    )
    return DataFigures(
        cases=len(ids),
        shape=order[0].shape,
        structures=len(dataset.structures),
        plain_prepare=median(preparing.plain) if preparing else None,
        plain_read=median(map(sub, preparing.plain, preparing.saving)) if preparing else None,
        our_prepare=median(preparing.ours) if preparing else None,
        plain_crop=plain_seconds,
        our_crop=our_seconds,
        plain_bytes=sum(path.stat().st_size for path in plain.iterdir()),
        our_bytes=sum(path.stat().st_size for path in dataset.folder.rglob("*") if path.is_file()),
        difference=difference,
    )


def plain_crop(folder: Path, case_id: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random crop and its masks (k, d, h, w): everything is read, then cut."""
    image = np.load(folder / f"{case_id}.npy")[0]
    masks = sparse.load_npz(folder / f"{case_id}.npz").toarray().reshape(-1, *image.shape)
    box = tuple(slice(low, low + size) for low, size in zip(*_place(image.shape, rng), strict=True))
    return image[box].copy(), masks[(slice(None), *box)].astype(bool)


def our_crop(case: PreparedCase, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same from a prepared case."""
    corner, size = _place(case.shape, rng)
    return case.window(corner, size, case.annotated)


def _place(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Size3, Size3]:
    """Lowest voxel and size of a random crop, no larger than the volume."""
    d, h, w = (min(size, n) for size, n in zip(CROP, shape, strict=True))
    a, b, c = (int(rng.integers(n - size + 1)) for size, n in zip((d, h, w), shape, strict=True))
    return (a, b, c), (d, h, w)


def _turns(*ways: Callable[[np.random.Generator], object]) -> list[float]:
    """Median seconds a call of each way, after a few that warm up. They take turns, so that whatever else the machine
    does disturbs all alike; each has an equal share of the time."""
    spent: list[list[float]] = [[] for _ in ways]
    sources = [np.random.default_rng(0) for _ in ways]
    for way, rng in zip(ways, sources, strict=True):
        for _ in range(3):
            way(rng)
    while sum(map(sum, spent)) < SECONDS or min(map(len, spent)) < 3:
        turn = min(range(len(ways)), key=lambda number: sum(spent[number]))
        started = time.perf_counter()
        ways[turn](sources[turn])
        spent[turn].append(time.perf_counter() - started)
    return [median(times) for times in spent]


def _write_generated(root: Path, shape: Size3, structures: int) -> None:
    """A CT-like volume: noise of 12 HU on steps of tissue, with ellipsoids as organs."""
    rng = np.random.default_rng(0)
    image = rng.normal(0, 12, shape).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    for value in range(1, structures + 1):
        centre, radius = rng.uniform(0.2, 0.8, 3) * shape, rng.uniform(0.06, 0.18, 3) * shape
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radius, strict=True)) < 1
        labels[inside], image[inside] = value, image[inside] + 30 + 10 * value
    for kind, array in (("images", np.rint(image).astype(np.int16)), ("labels", labels)):
        (root / kind).mkdir(parents=True)
        save_nifti(root / kind / "case.nii", array.transpose(2, 1, 0), Grid(shape[::-1], np.diag([0.8, 0.8, 2.5, 1.0])))

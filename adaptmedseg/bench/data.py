"""What data cost: preparing, random crops and disk, against the plain way.

The plain way is SegVol's own: every case is read, normalised and saved by itself as one float32 .npy of the volume and
one compressed sparse row per structure; a crop loads both whole and cuts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from adaptmedseg.data.archive import opened_source
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
SECONDS = 2.0  # how long each way of cropping is timed
ORGANS = (
    "liver", "spleen", "left kidney", "right kidney", "stomach", "gallbladder", "esophagus", "pancreas", "aorta",
    "inferior vena cava", "left adrenal gland", "right adrenal gland", "duodenum",
)  # fmt: skip


@dataclass(frozen=True)
class DataFigures:
    """Seconds to prepare (None where no archive was given), seconds a crop, bytes on disk: plain and ours; and the
    largest difference between a voxel of the two."""

    cases: int
    shape: Size3
    structures: int
    plain_prepare: float | None
    our_prepare: float | None
    plain_crop: float
    our_crop: float
    plain_bytes: int
    our_bytes: int
    difference: float


def bench_source(source: Path, modality: str, labels: LabelNames, workers: int) -> DataFigures:
    """All figures for a user's folder or archive."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        started = time.perf_counter()
        dataset = _prepare(source, place / "ours", modality, labels, workers)
        ours = time.perf_counter() - started
        started = time.perf_counter()
        with opened_source(source) as opened:
            ids = _prepare_plainly(opened, place / "plain", labels)
        plain = time.perf_counter() - started
        return _compare(dataset, place / "plain", ids, plain, ours)


def bench_generated(shape: Size3, structures: int) -> DataFigures:
    """Crops and disk for one generated volume of `shape` (d, h, w) with some of the abdomen's organs."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        labels = dict(enumerate(ORGANS[:structures], 1))
        _write_generated(place / "source", shape, structures)
        dataset = _prepare(place / "source", place / "ours", "CT", labels, 1)
        ids = _prepare_plainly(place / "source", place / "plain", labels)
        return _compare(dataset, place / "plain", ids, None, None)


def _prepare(source: Path, out: Path, modality: str, labels: LabelNames, workers: int) -> PreparedDataset:
    return prepare_folder(
        source, out, name="bench", modality=modality, labels=labels, test_fraction=0, val_fraction=0, workers=workers
    )


def _prepare_plainly(source: Path, out: Path, labels: LabelNames) -> list[str]:
    """The reference's steps, case by case; gives the ids. Cropped as ours is, so that voxels can be compared."""
    scheme = label_scheme(labels, None, default_registry())
    pairs = find_pairs(source).pairs
    out.mkdir(parents=True)
    for pair in pairs:
        image, values = read_image(pair.image).data, read_labels(pair.label).data
        normalised = min_max(standardise(image))
        box = crop_slices(bounding_box(normalised > 0))
        np.save(out / f"{pair.id}.npy", normalised[box][None])
        masks = np.stack([np.isin(values[box], wanted) for wanted in scheme.values.values()])
        rows = sparse.csr_matrix(masks.reshape(len(masks), -1).astype(np.uint8))
        sparse.save_npz(out / f"{pair.id}.npz", rows)
    return [pair.id for pair in pairs]


def _compare(
    dataset: PreparedDataset, plain: Path, ids: list[str], plain_seconds: float | None, our_seconds: float | None
) -> DataFigures:
    cases = {case.id: case for case in dataset.cases()}
    difference = max(float(np.abs(np.load(plain / f"{i}.npy")[0] - cases[i].image()).max()) for i in ids)
    order = list(cases.values())
    return DataFigures(
        cases=len(ids),
        shape=order[0].shape,
        structures=len(dataset.structures),
        plain_prepare=plain_seconds,
        our_prepare=our_seconds,
        plain_crop=_seconds(lambda rng: plain_crop(plain, ids[rng.integers(len(ids))], rng)),
        our_crop=_seconds(lambda rng: our_crop(order[rng.integers(len(order))], rng)),
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
    image, bits = case.window(corner, size)
    flags = np.unpackbits(bits[..., None].view(np.uint8), axis=-1, count=len(case.structures), bitorder="little")
    return image, np.moveaxis(flags.view(bool), -1, 0)


def _place(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Size3, Size3]:
    """Lowest voxel and size of a random crop, no larger than the volume."""
    d, h, w = (min(size, n) for size, n in zip(CROP, shape, strict=True))
    a, b, c = (int(rng.integers(n - size + 1)) for size, n in zip((d, h, w), shape, strict=True))
    return (a, b, c), (d, h, w)


def _seconds(crop: Callable[[np.random.Generator], object]) -> float:
    """Seconds a crop, after a few that warm up."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        crop(rng)
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < SECONDS or count < 3:
        crop(rng)
        count += 1
    return spent / max(count, 1)


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

"""Phantom cases: one random body, one random field of view, one random acquisition; written as an MSD-style folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import openers, orientations
from scipy.spatial.transform import Rotation

from adaptmedseg.errors import UserError

from .abdomen import abdomen_items
from .acquisition import Sampler, Shape3, ct_artefacts, mr_artefacts, paint, smooth_noise
from .anatomy import LABELS, Body, FloatArray, Warp
from .pelvis import pelvis_items
from .tissues import ct_contrast, mr_contrast

MODALITIES = ("CT", "T2 MRI", "T1 MRI")
REGIONS = ("pelvis", "abdomen")


@dataclass(frozen=True)
class PhantomCase:
    """`image` int16 and `labels` uint8, both (x, y, z) as on disk; `affine`: voxel to RAS mm; `names`: label values."""

    image: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]
    names: dict[int, str]
    modality: str
    region: str
    seed: int


def build_body(seed: int, region: str) -> Body:
    """The anatomy of a seed: the same for every modality and field of view."""
    rng = np.random.default_rng([seed, REGIONS.index(region), 0])
    items, centre = pelvis_items(rng) if region == "pelvis" else abdomen_items(rng)
    rotation = Rotation.from_euler("xyz", rng.uniform(-1, 1, 3) * (7, 4, 5), degrees=True).as_matrix()
    warp = Warp.random(rng, ((75.0, 6.0), (28.0, 2.2)))
    return Body(
        region, tuple(items), np.asarray(rotation) * rng.uniform(0.92, 1.08), rng.uniform(-30, 30, 3), warp, centre
    )


def _grid(rng: np.random.Generator, body: Body, family: str) -> tuple[npt.NDArray[np.float64], Shape3]:
    """Affine of a right-anterior-superior grid around the body's centre, and its shape (nz, ny, nx)."""
    close = body.region == "pelvis" and rng.random() < (0.7 if family == "MR" else 0.3)
    if body.region == "abdomen":
        fov, thickness, count = rng.uniform(310, 400), rng.uniform(3.5, 5.0), rng.integers(34, 45)
    elif close:
        fov, thickness, count = rng.uniform(160, 260), rng.uniform(3.0, 4.0), rng.integers(24, 38)
    else:
        fov, thickness, count = rng.uniform(280, 400), rng.uniform(3.0, 4.5), rng.integers(32, 45)
    if family == "CT" and not close:
        thickness = rng.uniform(2.5, 5.0) if body.region == "pelvis" else rng.uniform(4.0, 5.0)
    n = int(rng.integers(144, 193))
    rows = int(n * rng.uniform(0.75, 0.9)) if body.region == "abdomen" or not close else n
    tilt = 15.0 if family == "MR" else 1.0
    angles = np.clip(rng.standard_normal(3), -2, 2) / 2 * tilt * (1.0, 0.5, 0.5)
    spacing = np.asarray((fov / n, fov / n, thickness))
    axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    shift = rng.uniform(-1, 1, 3) * ((12, 12, 10) if close else (15, 10, 20))
    centre = body.rotation @ np.asarray(body.centre) + body.translation + shift
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = centre - axes @ ((np.asarray((n, rows, count)) - 1) / 2)
    return affine, (int(count), rows, n)


def _store_order(
    rng: np.random.Generator, image: FloatArray, labels: npt.NDArray[np.uint8], affine: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Turn (z, y, x) arrays into (x, y, z) ones in a random order of storage (RAS, LPS, LAS, ...)."""
    flips = [(1, -1)[int(rng.random() < p)] for p in (0.6, 0.5, 0.15)]
    axes = [1, 0, 2] if rng.random() < 0.1 else [0, 1, 2]
    order = np.asarray([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
    whole = np.rint(image).astype(np.int16).transpose(2, 1, 0)
    stored = orientations.apply_orientation(whole, order)
    stored_labels = orientations.apply_orientation(labels.transpose(2, 1, 0), order)
    turned = affine @ orientations.inv_ornt_aff(order, whole.shape)
    return np.asarray(stored), np.asarray(stored_labels), np.asarray(turned)


def generate_case(seed: int, modality: str, region: str) -> PhantomCase:
    """Generate one case; a seed fixes the anatomy of a region, and with the modality also grid, contrast and noise.

    Raises `UserError` for an unknown modality or region.
    """
    if modality not in MODALITIES:
        raise UserError(f"Phantom modality '{modality}' is unknown: choose one of {', '.join(MODALITIES)}.")
    if region not in REGIONS:
        raise UserError(f"Phantom region '{region}' is unknown: choose one of {', '.join(REGIONS)}.")
    body = build_body(seed, region)
    rng = np.random.default_rng([seed, REGIONS.index(region), 1 + MODALITIES.index(modality)])
    family = "CT" if modality == "CT" else "MR"
    affine, shape = _grid(rng, body, family)
    sampler = Sampler.lay(body, affine, shape)
    sz, sy, sx = sampler.spacing
    textures = tuple(smooth_noise(rng, shape, (scale / sz, scale / sy, scale / sx)) for scale in (4.5, 9.0))
    contrast = ct_contrast(rng) if family == "CT" else mr_contrast(rng, modality[:2])
    clean, labels = paint(body, sampler, contrast, (textures[0], textures[1]), family)
    image = ct_artefacts(clean, rng) if family == "CT" else mr_artefacts(clean, rng)
    stored, stored_labels, turned = _store_order(rng, image, labels, affine)
    names = {value: name for value, name in LABELS.items() if (value < 7) == (region == "pelvis")}
    return PhantomCase(stored, stored_labels, turned, names, modality, region, seed)


def case_seed(seed: int, index: int) -> int:
    """Seed of one case; sets written with different seeds share no case."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


def slug(modality: str) -> str:
    return modality.lower().replace(" ", "-")


def _save(array: npt.NDArray[np.generic], affine: npt.NDArray[np.float64], path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    partial = path.with_name("." + path.name)
    nib.save(image, partial)
    os.replace(partial, path)


def _write_case(job: tuple[str, int, int, str, str]) -> str:
    out, index, seed, modality, region = job
    openers.Opener.default_compresslevel = 1
    case = generate_case(seed, modality, region)
    name = f"phantom_{slug(modality)}_{index:04d}.nii.gz"
    _save(case.labels, case.affine, Path(out, "labels", name))
    _save(case.image, case.affine, Path(out, "images", name))
    return name


def write_phantoms(
    out: Path | str,
    *,
    count: int,
    modality: str,
    seed: int,
    regions: Sequence[str] = REGIONS,
    workers: int = 1,
    first_index: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `count` cases, regions in turn, to `out`/images and `out`/labels with an MSD-style dataset.json.

    The same (seed, index, region) gives the same anatomy in every modality. `progress` is called with (done, count).
    Raises `UserError` for a count below one, or an unknown modality or region.
    """
    if count < 1:
        raise UserError(f"Cannot write {count} phantoms: give a count of one or more.")
    for given, known, what in (((modality,), MODALITIES, "modality"), (tuple(regions), REGIONS, "region")):
        for name in given or ("",):
            if name not in known:
                raise UserError(f"Phantom {what} '{name}' is unknown: choose one of {', '.join(known)}.")
    out = Path(out)
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    jobs = [
        (str(out), index, case_seed(seed, index), modality, regions[index % len(regions)])
        for index in range(first_index, first_index + count)
    ]
    names = []
    if workers > 1:
        # spawned, not forked: a fork of a process that runs threads (PyTorch) may hang
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for name in pool.map(_write_case, jobs):
                names.append(name)
                _tell(progress, len(names), count)
    else:
        for job in jobs:
            names.append(_write_case(job))
            _tell(progress, len(names), count)
    _write_description(out, modality, names, seed)
    return out


def _tell(progress: Callable[[int, int], None] | None, done: int, count: int) -> None:
    if progress is not None:
        progress(done, count)


def _write_description(out: Path, modality: str, names: Sequence[str], seed: int) -> None:
    description = {
        "name": f"phantoms {modality}",
        "description": "Generated phantoms, not patients: random bodies with a simulated scanner.",
        "reference": "adaptmedseg.phantoms",
        "release": f"seed {seed}",
        "modality": {"0": modality},
        "labels": {"0": "background", **{str(value): name for value, name in LABELS.items()}},
        "numTraining": len(names),
        "numTest": 0,
        "training": [{"image": f"./images/{name}", "label": f"./labels/{name}"} for name in names],
        "test": [],
    }
    partial = out / ".dataset.json.partial"
    partial.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, out / "dataset.json")

"""Small cases on disk, and the command line called within the test's own process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

from adaptmedseg.cli.main import run

SHAPE = (24, 20, 8)  # (x, y, z)
AFFINE = np.eye(4)  # oblique; x runs to the left, y to the back
AFFINE[:3, :3] = Rotation.from_euler("xyz", (4, -3, 6), degrees=True).as_matrix() * (-1.5, -1.5, 4.0)
AFFINE[:3, 3] = (20.0, 30.0, -9.0)
MODALITY = "T2 MRI"


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit code and what it printed."""

    code: int
    out: str
    err: str


def call(*arguments: str | Path) -> Outcome:
    """Run `adaptmedseg ARGUMENTS...` here, through the program's own entry point."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["adaptmedseg", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            run()
        except SystemExit as stop:
            code = stop.code
        else:
            code = 0
    assert isinstance(code, int), code
    return Outcome(code, out.getvalue(), err.getvalue())


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def small_image(seed: int) -> np.ndarray:
    """Noise with two bright blocks, int16 (x, y, z)."""
    labels = small_labels(seed)
    image = np.random.default_rng(seed).integers(1, 300, SHAPE)
    return (image + 400 * (labels == 1) + 900 * (labels == 2)).astype(np.int16)


def small_labels(seed: int) -> np.ndarray:
    """1 and 2 are two blocks whose place depends on the seed, uint8 (x, y, z)."""
    labels = np.zeros(SHAPE, np.uint8)
    shift = seed % 4
    labels[3 + shift : 11 + shift, 4:12, 1:5] = 1
    labels[13 + shift : 20 + shift, 6:14, 3:7] = 2
    return labels


def small_folder(root: Path, count: int, first_seed: int = 0) -> Path:
    """images/ and labels/ of `count` cases."""
    for seed in range(first_seed, first_seed + count):
        save(root / "images" / f"case_{seed}.nii.gz", small_image(seed))
        save(root / "labels" / f"case_{seed}.nii.gz", small_labels(seed))
    return root

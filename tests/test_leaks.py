"""Patients that are in two data sets: found although their images were changed, and put on one side."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from adaptmedseg.preprocessing.folder import prepare_folder
from archives import nifti
from scipy import ndimage
from small_cases import call

from adaptmedseg.data import near_duplicates
from adaptmedseg.data.leaks import align, find_leaks, refuse_leaks
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.data.similarity import (
    BLOCK,
    NARROW_THRESHOLD,
    THRESHOLD,
    WINDOW,
    Signature,
    signature,
    similarities,
    twins,
)
from adaptmedseg.data.volume import read_image
from adaptmedseg.errors import UserError

DATA = Path(os.environ.get("ADAPTMEDSEG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SPACING = (3.5, 0.9, 0.9)
SHAPE = (24, 180, 170)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTMEDSEG_CACHE", str(tmp_path_factory.mktemp("cache")))


def similarity(first: Signature, second: Signature) -> float:
    return float(similarities([first, second])[0, 1])


def scan(seed: int) -> np.ndarray:
    """Tissue of several scales, (d, h, w): as unlike from seed to seed as one body from the next."""
    rng = np.random.default_rng(seed)
    coarse = (24, 45, 43)  # 3.5 mm in all directions
    textures = [ndimage.gaussian_filter(rng.standard_normal(coarse), scale / 3.5) for scale in (3, 8, 20)]
    small = sum(texture / texture.std() for texture in textures)
    return 300 + 60 * ndimage.zoom(small, np.divide(SHAPE, coarse), order=1)


def changed(image: np.ndarray, kind: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    if kind == "rescaled":
        return 0.01 * image - 5, SPACING
    if kind == "cropped":
        return image[2:-1, 15:-10, 8:-20], SPACING
    if kind == "resampled":
        return ndimage.zoom(image, (1, 1.3, 1.3), order=1), (3.5, 0.9 / 1.3, 0.9 / 1.3)
    if kind == "clipped":
        return np.clip(image, *np.percentile(image, (2, 98))), SPACING
    if kind == "biased":
        return image * np.linspace(0.7, 1.4, image.shape[2]), SPACING
    return image + np.random.default_rng(0).normal(0, 0.2 * image.std(), image.shape), SPACING


@pytest.fixture(scope="module")
def first() -> np.ndarray:
    return scan(0)


@pytest.mark.parametrize("kind", ["rescaled", "cropped", "resampled", "clipped", "biased", "noisy"])
def test_a_changed_copy_is_known_again(first: np.ndarray, kind: str) -> None:
    assert similarity(signature(first, SPACING), signature(*changed(first, kind))) >= THRESHOLD


def test_different_scans_are_far_apart_and_the_measure_is_symmetric(first: np.ndarray) -> None:
    one, other = signature(first, SPACING), signature(scan(1), SPACING)
    assert similarity(one, other) == similarity(other, one) < 0.6
    assert similarity(one, one) == pytest.approx(1, abs=1e-3)


def test_flat_and_tiny_images_have_no_false_twin() -> None:
    flat = np.zeros((3, 8, 8))
    flat[1, 4, 4] = 1
    assert np.isfinite(similarity(signature(flat, (1, 1, 1)), signature(np.zeros((2, 5, 5)), (1, 1, 1))))


def write(root: Path, seeds: dict[str, int], kind: str | None = None) -> Path:
    for name, seed in seeds.items():
        image, spacing = changed(scan(seed), kind) if kind else (scan(seed), SPACING)
        affine = np.diag([spacing[2], spacing[1], spacing[0], 1.0])
        labels = np.zeros(image.shape, np.uint8)
        labels[8:12, 60:80, 60:80] = 1
        nifti(root / f"images/{name}.nii.gz", image.transpose(2, 1, 0).astype(np.float32), affine)
        nifti(root / f"labels/{name}.nii.gz", labels.transpose(2, 1, 0), affine)
    return root


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two prepared sets; a1 of the first is b2 of the second, cut and rescaled."""
    root = tmp_path_factory.mktemp("sets")
    common = {"modality": "T2", "labels": {1: "prostate"}, "val_fraction": 0}
    prepare_folder(write(root / "a", {"a0": 10, "a1": 11}), root / "one", name="one", test_fraction=1, **common)
    second = write(root / "b", {"b2": 11, "b3": 13, "b4": 14}, "cropped")
    prepare_folder(second, root / "two", name="two", test_fraction=0, **common)
    return root / "one", root / "two"


def test_a_patient_in_two_sets_is_found_told_and_moved(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = pair
    outcome = call("leaks", one, two, "--out", tmp_path / "leaks.json")
    assert outcome.code == 1, outcome
    assert "one/a1 and two/b2: near duplicate" in outcome.out
    assert "1 pairs of one patient, 1 of them on different sides" in outcome.out
    told = json.loads((tmp_path / "leaks.json").read_text(encoding="utf-8"))
    assert [(leak["first"], leak["second"], leak["sides"]) for leak in told] == [
        ("one/a1", "two/b2", ["test", "train"])
    ]
    moved = call("leaks", one, two, "--align")
    assert (moved.code, "1 cases moved" in moved.out) == (0, True), moved
    assert {case.id: case.split for case in PreparedDataset.open(two).cases()} == {
        "b2": "test",
        "b3": "train",
        "b4": "train",
    }
    assert call("leaks", one, two).code == 0
    with pytest.raises(UserError, match="called 'one'"):
        align([PreparedDataset.open(one), PreparedDataset.open(one)], [])


def test_a_copied_file_is_a_leak_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        source = write(tmp_path / name, {"x": 20, f"{name}1": 21 if name == "a" else 22})
        options = {"modality": "T2", "labels": {1: "prostate"}, "val_fraction": 0, "test_fraction": float(name == "b")}
        prepare_folder(source, tmp_path / f"out_{name}", name=name, **options)
    sets = [PreparedDataset.open(tmp_path / f"out_{name}") for name in "ab"]
    (leak,) = find_leaks(sets)
    assert (leak.kind, leak.crosses) == ("same file", True)
    assert align(sets, [leak]) == 1
    assert not find_leaks([PreparedDataset.open(s.folder) for s in sets])[0].crosses


def test_training_refuses_a_patient_of_a_left_out_fold_whatever_the_numbers_of_folds(tmp_path: Path) -> None:
    """Fold 1 of the one set is left out; the same patient is in a fold of the other that is trained on."""
    common = {"modality": "T2", "labels": {1: "prostate"}}
    sets = [
        prepare_folder(write(tmp_path / name, seeds), tmp_path / f"out_{name}", name=name, folds=len(seeds), **common)
        for name, seeds in (("a", {"a0": 30, "a1": 31}), ("b", {"b0": 31, "b1": 32, "b2": 33}))
    ]
    folds = [{case.id: case.fold for case in dataset.cases()} for dataset in sets]
    for left_out in range(2):
        leaks = (folds[0]["a1"] == left_out) != (folds[1]["b0"] == left_out)
        with pytest.raises(UserError, match="one patient on two sides") if leaks else nullcontext():
            refuse_leaks(sets, left_out)
    with pytest.raises(UserError, match=r"2 and .* has 3 folds, which cannot be aligned"):
        align(sets, find_leaks(sets))


def test_many_scans_at_once_are_as_two_by_two(first: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [signature(first, SPACING), signature(scan(1), SPACING), signature(*changed(first, "cropped"))]
    monkeypatch.setattr("adaptmedseg.data.similarity._AT_ONCE", 2)
    table = similarities(looks)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert table[i, j] == table[j, i] == pytest.approx(similarity(looks[i], looks[j]), abs=1e-5)
    assert [pair[:2] for pair in twins(looks)] == [(0, 2)]


def test_the_measure_is_the_highest_correlation_by_hand(first: np.ndarray) -> None:
    """Against a loop over places with numpy's own correlation coefficient."""
    one, other = signature(first, SPACING), signature(*changed(first, "noisy"))
    start = [(w - b) // 2 for w, b in zip(WINDOW, BLOCK, strict=True)]

    def best(block_of: Signature, window_of: Signature) -> float:
        detail = [np.fft.irfftn(look.window, WINDOW, axes=(0, 1, 2)) for look in (block_of, window_of)]
        block = detail[0][tuple(slice(s, s + b) for s, b in zip(start, BLOCK, strict=True))]
        place = (start[0], slice(start[1] - 1, start[1] + 2), slice(start[2] - 1, start[2] + 2))
        around = [(start[0], h, w) for h in range(*place[1].indices(99)) for w in range(*place[2].indices(99))]
        cut = [detail[1][tuple(slice(s, s + b) for s, b in zip(corner, BLOCK, strict=True))] for corner in around]
        return max(float(np.corrcoef(block.ravel(), part.ravel())[0, 1]) for part in cut)

    assert similarity(one, other) == pytest.approx(max(best(one, other), best(other, one)), abs=2e-3)


def test_cut_out_organs_count_as_one_only_where_they_are_unchanged(first: np.ndarray) -> None:
    organ = first[:9, 40:80, 40:80]  # 32 x 36 x 36 mm
    looks = [signature(image, SPACING) for image in (organ, 2 * organ + 1, organ + 140 * (scan(1)[:9, :40, :40] > 300))]
    assert all(look.narrow for look in looks)
    assert [pair[:2] for pair in twins(looks)] == [(0, 1)]
    assert THRESHOLD < similarity(looks[0], looks[2]) < NARROW_THRESHOLD


def test_what_was_compared_is_not_compared_again(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [PreparedDataset.open(path) for path in pair]
    found = find_leaks(sets)
    assert found
    monkeypatch.setattr(near_duplicates, "twins", lambda *a: pytest.fail("compared again"))
    assert find_leaks(sets) == found
    monkeypatch.undo()
    monkeypatch.setenv("ADAPTMEDSEG_CACHE", "/proc/nowhere")  # cannot be written
    assert find_leaks(sets) == found


@pytest.mark.realdata
def test_prostate_scans_of_ten_people_are_ten(tmp_path: Path) -> None:
    import zipfile

    if not (DATA / "promise12").exists():
        pytest.skip(f"no real data at {DATA / 'promise12'}")
    with zipfile.ZipFile(DATA / "promise12/training_data.zip") as file:
        file.extractall(tmp_path)
    scans = [read_image(path) for path in sorted(tmp_path.rglob("Case??.mhd"))]
    looks = [signature(volume.data, volume.spacing) for volume in scans]
    between = [similarity(a, b) for i, a in enumerate(looks) for b in looks[:i]]
    assert max(between) < THRESHOLD - 0.1
    for volume, look in zip(scans, looks, strict=True):
        d, h, w = (size // 12 for size in volume.data.shape)
        copy = np.clip(volume.data, 0, np.percentile(volume.data, 99))[d:, h : -h or None, w : -2 * w or None]
        assert similarity(look, signature(copy, volume.spacing)) >= THRESHOLD

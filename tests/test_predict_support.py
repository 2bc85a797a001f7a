"""`adaptmedseg predict --support`: a new task from labelled pictures, visual prompts, or drawn slices of a volume."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from sam_cases import TINY_SAM
from small_cases import call
from test_support import disc

from adaptmedseg.checkpoints.sam import save_sam
from adaptmedseg.data.overlap import dice
from adaptmedseg.models.sam import Sam


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("model") / "sam.safetensors"
    save_sam(path, Sam(TINY_SAM), {"name": "tiny"})
    return path


def write_pictures(folder: Path, seeds: range, *, masks: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        image, mask = disc(seed)
        Image.fromarray(image).save(folder / f"p{seed}.png")
        if masks:
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"p{seed}_mask.png")
    return folder


def predict(image: Path, out: Path, model: Path, support: Path, *more: object):
    return call("predict", image, "--out", out, "--model", model, "--support", support, "--exact", "--device", "cpu",
                *more)  # fmt: skip


def test_pictures_by_a_folder_of_supports(model: Path, tmp_path: Path) -> None:
    support, queries = (
        write_pictures(tmp_path / "s", range(4)),
        write_pictures(tmp_path / "q", range(50, 52), masks=False),
    )
    outcome = predict(queries, tmp_path / "out", model, support, "--structures", "disc", "--each")
    assert outcome.code == 0, outcome.err
    assert "disc: 4 supports, expected Dice" in outcome.err
    for seed in (50, 51):
        labels = np.array(Image.open(tmp_path / "out" / f"p{seed}.png"))
        assert dice(labels == 1, disc(seed)[1]) > 0.6
        assert (tmp_path / "out" / f"p{seed}" / "disc.png").is_file()
    note = json.loads((tmp_path / "out" / "p50.json").read_text(encoding="utf-8"))
    assert note["labels"] == {"1": "disc"}
    assert note["supports"] == {"disc": ["p0", "p1", "p2", "p3"]}
    assert 0 < note["expected_dice"]["disc"] <= 1


def test_a_set_of_slices_is_drawn_from(model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "raw", range(5))
    made = call("slices", tmp_path / "raw", "--out", tmp_path / "set", "--structures", "disc")
    assert made.code == 0, made.err
    query = write_pictures(tmp_path / "q", range(60, 61), masks=False) / "p60.png"
    outcome = predict(query, tmp_path / "out", model, tmp_path / "set", "--shots", "2", "--box", "disc:5,5,40,40")
    assert outcome.code == 0, outcome.err
    note = json.loads((tmp_path / "out" / "p60.json").read_text(encoding="utf-8"))
    assert len(note["supports"]["disc"]) == 2
    assert note["prompted"] == ["disc"]


def test_a_support_may_be_shown_by_visual_prompts(model: Path, tmp_path: Path) -> None:
    support = write_pictures(tmp_path / "s", range(1), masks=False)
    box = {"structure": "disc", "box": {"min": [4, 4], "max": [60, 44]}}
    (support / "p0.json").write_text(json.dumps({"version": 1, "space": "voxel", "prompts": [box]}), encoding="utf-8")
    query = write_pictures(tmp_path / "q", range(60, 61), masks=False) / "p60.png"
    outcome = predict(query, tmp_path / "out", model, support)
    # An untrained decoder draws what it draws: a mask, or nothing, which is told.
    assert outcome.code == 0 or "the mask of support p0 is empty" in outcome.err


def volume(folder: Path) -> tuple[Path, np.ndarray]:
    """A bright ball in a noisy volume of 12 slices, an oblique NIfTI, and its mask (x, y, z)."""
    x, y, z = np.mgrid[:40, :36, :12]
    rng = np.random.default_rng(0)
    mask = (x - 20) ** 2 + (y - 16) ** 2 + (2.5 * (z - 6)) ** 2 < 10**2
    image = rng.normal(200, 20, mask.shape) + 150 * mask
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (1, 1, 2.5)
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), folder / "scan.nii.gz")
    drawn = np.where(np.isin(z, (4, 7)), mask, False)
    nib.save(nib.Nifti1Image(drawn.astype(np.uint8), affine), folder / "drawn.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), affine), folder / "blank.nii.gz")
    nib.save(nib.Nifti1Image(drawn[:20].astype(np.uint8), affine), folder / "half.nii.gz")
    return folder / "scan.nii.gz", mask


def test_a_volume_from_two_of_its_own_slices(model: Path, tmp_path: Path) -> None:
    scan, mask = volume(tmp_path)
    outcome = predict(scan, tmp_path / "out", model, tmp_path / "drawn.nii.gz", "--structures", "ball",
                      "--probabilities", "--each")  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = nib.load(tmp_path / "out" / "scan.nii.gz")
    np.testing.assert_allclose(found.affine, nib.load(scan).affine, atol=1e-5)
    labels = np.asarray(found.dataobj)
    assert dice(labels == 1, mask) > 0.75
    assert "ball: 2 supports, expected Dice 0." in outcome.err
    np.testing.assert_array_equal(labels[..., 4] == 1, mask[..., 4])  # what was drawn stays as it was drawn
    note = json.loads((tmp_path / "out" / "scan.json").read_text(encoding="utf-8"))
    assert note["drawn_slices"] == [4, 7]
    assert (note["axis"], note["slices"]) == ("d", 12)
    assert (tmp_path / "out" / note["files"]["ball"]["probabilities"]).is_file()


def test_a_volume_by_a_set_of_slices(model: Path, tmp_path: Path) -> None:
    scan, mask = volume(tmp_path)
    prepared, cut = tmp_path / "prepared", tmp_path / "cut"
    (tmp_path / "set").mkdir()
    nib.save(nib.load(scan), tmp_path / "set" / "a_image.nii.gz")
    affine = nib.load(scan).affine
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), tmp_path / "set" / "a_label.nii.gz")
    made = call("prepare", tmp_path / "set", "--out", prepared, "--name", "ball", "--modality", "MRI", "--label",
                "1=prostate", "--test-fraction", "0", "--val-fraction", "0")  # fmt: skip
    assert made.code == 0, made.err
    assert call("slices", prepared, "--out", cut, "--every", "2").code == 0
    outcome = predict(scan, tmp_path / "out", model, cut)
    assert outcome.code == 0, outcome.err
    labels = np.asarray(nib.load(tmp_path / "out" / "scan.nii.gz").dataobj)
    assert dice(labels == 1, mask) > 0.75


WRONG = {
    "no folder": ("nowhere", [], "is no folder"),
    "no pair": ("q", [], "holds no picture with a mask"),
    "empty": ("empty", [], "the mask of support p0 is empty, so that it shows no task; draw it or leave the image out"),
    "dark": ("dark", [], "(options of 'adaptmedseg slices', whose sets --support takes)"),
    "size": ("size", [], "is 20×20 pixels and its picture 64×48"),
    "not shown": ("s", ["--structures", "disc", "--shots", "9"], "9 supports are asked for, and there are 3"),
    "mask and prompts": ("both", ["--structures", "disc"], "p0 has a mask and a file of prompts; keep one of them"),
    "a point elsewhere": (
        "s",
        ["--structures", "disc", "--point", "nose:5,5"],
        "'nose' is none of the structures looked for, disc; name one of these",
    ),
    "volume option": ("s", ["--modality", "CT"], "--modality: is for volumes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_supports_are_told_in_a_sentence(model: Path, tmp_path: Path, case: str) -> None:
    name, more, message = WRONG[case]
    write_pictures(tmp_path / "s", range(3))
    query = write_pictures(tmp_path / "q", range(60, 61), masks=False)
    write_pictures(tmp_path / "both", range(2))
    prompts = {"version": 1, "space": "voxel", "prompts": [{"structure": "disc", "points": [{"position": [9, 9]}]}]}
    (tmp_path / "both" / "p0.json").write_text(json.dumps(prompts), encoding="utf-8")
    blank = np.zeros((48, 64), np.uint8)
    for folder, mask in (("empty", blank), ("size", np.full((20, 20), 255, np.uint8)), ("dark", blank + 90)):
        write_pictures(tmp_path / folder, range(1), masks=False)
        Image.fromarray(mask).save(tmp_path / folder / "p0_mask.png")
    outcome = predict(query, tmp_path / "out", model, tmp_path / name, *more)
    assert outcome.code == 2, outcome.out
    assert message in outcome.err
    assert not (tmp_path / "out").exists()


def test_drawn_slices_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    scan, _ = volume(tmp_path)
    for name, message in (("blank", "no slice of scan.nii.gz is drawn"), ("half", "lies on another grid")):
        outcome = predict(scan, tmp_path / "out", model, tmp_path / f"{name}.nii.gz")
        assert outcome.code == 2
        assert message in outcome.err
    drawn = predict(scan, tmp_path / "out", model, tmp_path / "drawn.nii.gz", "--shots", "1")
    assert drawn.code == 2
    assert "--shots 1: draws from a folder of supports, and" in drawn.err
    alone = call("predict", scan, "--out", tmp_path / "out", "--model", model, "--shots", "3")
    assert "--shots: draws from a support set" in alone.err

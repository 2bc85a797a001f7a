"""SegVol's preprocessing: properties, and parity with the reference's numbers where those are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from adaptmedseg.data.intensity import intensity_statistics
from adaptmedseg.data.normalise import bounding_box, crop_slices, segvol_normalise, standardise
from adaptmedseg.data.views import resize_image, resize_labels

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = Path(os.environ.get("ADAPTMEDSEG_GOLDEN", SHARED / "golden"))
DATA = Path(os.environ.get("ADAPTMEDSEG_DATA", SHARED / "data"))


@pytest.fixture(params=["ct", "mr"])
def reference(request: pytest.FixtureRequest) -> dict[str, object]:
    """The reference's numbers and the volume they were made from, in the file's own axis order."""
    table, arrays = GOLDEN / f"preprocess-{request.param}.json", GOLDEN / f"preprocess-{request.param}.npz"
    if not table.is_file() or not (DATA / "ct-mr").is_dir():
        pytest.skip(f"no reference numbers in {GOLDEN} or no volumes in {DATA}")
    config = json.loads(table.read_text(encoding="utf-8"))
    image = nib.load(DATA / "ct-mr" / config["image"]).get_fdata(dtype=np.float32).T
    labels = np.asarray(nib.load(DATA / "ct-mr" / config["label"]).dataobj).T
    return {"config": config, "image": image, "labels": labels, **np.load(arrays)}


@pytest.mark.golden
@pytest.mark.realdata
def test_normalisation_and_crop_agree_with_the_reference(reference: dict) -> None:
    standard = standardise(reference["image"])
    found = [standard.mean(), standard.std(), standard.min(), standard.max()]
    np.testing.assert_allclose(found, reference["normalised_mean_std_min_max"], atol=1e-4)
    normalised, crop = segvol_normalise(reference["image"])
    assert [pair[0] for pair in crop] == reference["foreground_start"].tolist()
    assert [pair[1] for pair in crop] == reference["foreground_end"].tolist()
    cropped = normalised[crop_slices(crop)]
    np.testing.assert_allclose(cropped[::3, ::5, ::5], reference["image_sample"][0], atol=1e-5)


@pytest.mark.golden
@pytest.mark.realdata
def test_zoom_out_view_agrees_with_the_reference(reference: dict) -> None:
    config, size = reference["config"], tuple(reference["config"]["zoom_out_size"])
    normalised, crop = segvol_normalise(reference["image"])
    view = resize_image(torch.from_numpy(normalised[crop_slices(crop)].copy())[None, None], size, "nearest-exact")
    np.testing.assert_allclose(view[0].numpy(), reference["zoom_out_image"], atol=1e-5)
    for row, value in enumerate(config["classes"].values()):
        mask = (reference["labels"] == value)[crop_slices(crop)]
        assert mask.sum() == reference["label_voxels"][row]
        small = resize_labels(torch.from_numpy(mask.copy())[None, None], size)[0, 0].numpy()
        np.testing.assert_array_equal(small, reference["zoom_out_label"][row].astype(bool))


def test_statistics_by_hand() -> None:
    image = np.zeros((1, 1, 8), np.float32)
    image[0, 0, :4] = [10, 20, 30, 40]  # the mean is 12.5, so that 20, 30 and 40 are the foreground
    stats = intensity_statistics(image)
    assert stats.mean == pytest.approx(30)
    assert stats.std == pytest.approx(np.sqrt(200 / 3))
    assert (stats.foreground[0.05], stats.foreground[99.95]) == (pytest.approx(20.01), pytest.approx(39.99))


def test_result_spans_zero_to_one_and_ignores_scale_and_offset() -> None:
    image = np.random.default_rng(0).gamma(2.0, size=(6, 7, 8)).astype(np.float32)
    first, crop = segvol_normalise(image)
    second, _ = segvol_normalise(image * 100 - 1000)
    assert first.dtype == np.float32
    assert (first.min(), first.max()) == (0, 1)
    assert (first[crop_slices(crop)] > 0).any()
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_crop_is_the_box_of_the_foreground() -> None:
    image = np.zeros((6, 7, 8), np.float32)
    image[2:4, 1:6, 3:8] = np.random.default_rng(0).uniform(5, 10, (2, 5, 5))
    assert segvol_normalise(image)[1][1:] == ((1, 6), (3, 8))
    assert bounding_box(image > 0) == ((2, 4), (1, 6), (3, 8))
    with pytest.raises(ValueError, match="constant"):
        segvol_normalise(np.ones((2, 2, 2), np.float32))
    with pytest.raises(ValueError, match="empty"):
        bounding_box(np.zeros((2, 2, 2), bool))


def test_smooth_resizing_keeps_the_mean_and_thin_structures() -> None:
    x = torch.zeros(1, 1, 8, 16, 16)
    x[..., 5] = 1  # one voxel thin: nearest neighbour to a quarter of the size may miss it
    smooth = resize_image(x, (16, 4, 4), "smooth")
    assert smooth.shape == (1, 1, 16, 4, 4)
    torch.testing.assert_close(smooth.mean(), x.mean())
    assert smooth.max() > 0
    torch.testing.assert_close(resize_image(x, (8, 16, 16), "smooth"), x)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
def test_labels_keep_dtype_and_values(dtype: torch.dtype) -> None:
    x = (torch.arange(2 * 4 * 4).reshape(1, 1, 2, 4, 4) % 3).to(dtype)
    resized = resize_labels(x, (4, 6, 2))
    assert resized.dtype == dtype
    assert set(resized.unique().tolist()) <= set(x.unique().tolist())


def test_resizing_refuses_other_ranks_and_modes() -> None:
    with pytest.raises(ValueError, match="expected"):
        resize_image(torch.zeros(2, 2, 2), (2, 2, 2), "smooth")
    with pytest.raises(ValueError, match="unknown resize mode"):
        resize_image(torch.zeros(1, 1, 2, 2, 2), (2, 2, 2), "cubic")  # type: ignore[arg-type]

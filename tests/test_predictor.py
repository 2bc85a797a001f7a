"""Prediction from Python: the scanner's grid, prompts in world millimetres, and one encoding for many questions."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from small_cases import AFFINE, MODALITY, save, small_image
from torch import Tensor

from adaptmedseg.data.volume import Volume, read_grid, read_image, to_grid
from adaptmedseg.errors import UserError
from adaptmedseg.inference.loading import LoadedModel
from adaptmedseg.inference.predictor import Prediction, Predictor
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.segvol import SegVol

ORIENTATIONS = ["RAS", "LPS", "LAS", "SPL", "AIR", "PIR"]
NAMES = ["prostate", "liver"]


@pytest.fixture
def predictor(tiny_base: SegVol) -> Predictor:
    size, resize = tiny_base.config.spatial_size, tiny_base.config.resize
    loaded = LoadedModel(tiny_base, size, resize, [], frozenset(), {}, "tiny")
    return Predictor(loaded, torch.device("cpu"), bf16=False)


class Bright(SegVol):
    """Finds the bright voxels of the view, so that the right mask is known."""

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        return image

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        return 200 * (embedding[prompts.image_index, 0] - 0.5)


def bright_predictor(base: SegVol, size: tuple[int, int, int]) -> Predictor:
    model = Bright(base.config).eval()
    return Predictor(LoadedModel(model, size, "smooth", [], frozenset(), {}, "bright"), torch.device("cpu"), bf16=False)


def stored(path: Path, image: np.ndarray, affine: np.ndarray, codes: str) -> Path:
    """Write one and the same volume with its axes stored in another order and direction."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return save(path, apply_orientation(image, turn), affine @ inv_ornt_aff(turn, image.shape))


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_masks_come_back_on_the_scanners_grid(tiny_base: SegVol, tmp_path: Path, codes: str) -> None:
    image = np.random.default_rng(0).integers(1, 300, (24, 20, 8)).astype(np.int16)
    image[5:11, 4:9, 2:6] += 700
    path = stored(tmp_path / "scan.nii.gz", image, AFFINE, codes)
    predictor = bright_predictor(tiny_base, (8, 20, 24))
    predictor.set_image(path, MODALITY)
    predictor.predict(["prostate"]).save(tmp_path / "mask.nii.gz")
    source, mask = nib.load(path), nib.load(tmp_path / "mask.nii.gz")
    assert nib.aff2axcodes(mask.affine) == nib.aff2axcodes(source.affine) == tuple(codes)
    assert mask.shape == source.shape
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(source.dataobj) > 500)


def test_the_crop_is_put_back_in_its_place(tiny_base: SegVol, tmp_path: Path) -> None:
    image = np.zeros((24, 20, 8), np.int16)
    image[5:21, 4:16, 1:7] = 100
    image[8:14, 6:11, 3:5] = 1000
    path = save(tmp_path / "scan.nii.gz", image)
    predictor = bright_predictor(tiny_base, (6, 12, 16))
    predictor.set_image(path, MODALITY)
    mask = predictor.predict(["prostate"]).masks["prostate"]
    np.testing.assert_array_equal(to_grid(mask, read_grid(path)), image > 500)


def prompt_coords(predictor: Predictor, **prompts: np.ndarray) -> Prompts:
    """The prompts that reach the model, in coordinates of the view."""
    seen: list[Prompts] = []
    model = predictor.loaded.model
    original = model.segment

    def segment(embedding: Tensor, asked: Prompts) -> Tensor:
        seen.append(asked)
        return original(embedding, asked)

    model.segment = segment  # type: ignore[method-assign]
    predictor.predict(["prostate"], **prompts)
    del model.segment
    return seen[0]


def world(affine: np.ndarray, *voxels: tuple[float, float, float]) -> np.ndarray:
    """Voxels (x, y, z) of the file to millimetres."""
    return np.array(voxels) @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_box_in_millimetres_lands_on_its_voxels(predictor: Predictor, tmp_path: Path, codes: str) -> None:
    image = np.zeros((24, 20, 8), np.int16)
    image[4:20, 2:18, 1:7] = small_image(0)[4:20, 2:18, 1:7]
    path = stored(tmp_path / "scan.nii.gz", image, AFFINE, codes)
    predictor.set_image(path, MODALITY)
    box_mm = world(AFFINE, (6, 5, 2), (11, 9, 4))[None]
    asked = prompt_coords(predictor, boxes_mm=box_mm, points_mm=box_mm, point_labels=np.array([[1, 0]]))
    assert asked.boxes is not None
    assert asked.points is not None
    # AFFINE runs right to left and front to back: x and y turn round in the canonical volume of shape (8, 20, 24).
    first, last = np.array([2, 19 - 5, 23 - 6]), np.array([4, 19 - 9, 23 - 11])
    start, cropped = np.array([1, 2, 4]), np.array([6, 16, 16])
    scale = np.array(predictor.loaded.size) / cropped
    corners = np.stack([(voxel - start + 0.5) * scale - 0.5 for voxel in (first, last)])
    np.testing.assert_allclose(asked.points[0], corners, atol=1e-4)
    np.testing.assert_allclose(asked.boxes[0], np.sort(corners, axis=0), atol=1e-4)
    # And back: view to crop to canonical voxel to millimetres.
    voxels = (asked.points[0].numpy() + 0.5) / scale - 0.5 + start
    affine = read_grid(path).canonical().affine
    np.testing.assert_allclose(world(affine, *map(tuple, voxels[:, ::-1])), box_mm[0], atol=1e-3)


def test_prompts_that_make_no_sense_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    predictor.set_image(save(tmp_path / "scan.nii.gz", small_image(0)), MODALITY)
    inside, outside = world(AFFINE, (6, 5, 2), (30, 5, 2))
    for bad in (outside, np.full(3, np.nan), outside + 1e6):
        with pytest.raises(UserError, match=r"points_mm: .* mm lies outside the image"):
            predictor.predict(["prostate"], points_mm=np.stack([inside, bad])[None], point_labels=np.array([[1, 1]]))
    with pytest.raises(UserError, match=str(outside.round(1).tolist()[0])):
        predictor.predict(["prostate"], boxes_mm=np.stack([inside, outside])[None])
    with pytest.raises(UserError, match=r"shape \(1, 2, 3\); give \(n, p, 3\), n = 2"):
        predictor.predict(NAMES, boxes_mm=np.stack([inside, inside])[None])
    for labels in (None, np.array([[1, 0]])):
        with pytest.raises(UserError, match="one label a point"):
            predictor.predict(["prostate"], points_mm=inside[None, None], point_labels=labels)


def test_one_encoding_answers_many_times(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    model = predictor.loaded.model
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda *at: encoded.append(at) or embed(*at))
    predictor.set_image(save(tmp_path / "scan.nii.gz", small_image(0)), MODALITY)
    first, again, alone = predictor.predict(NAMES), predictor.predict(NAMES), predictor.predict(NAMES[1:])
    assert len(encoded) == 1
    assert list(first.masks) == NAMES
    for name in NAMES:
        np.testing.assert_array_equal(first.masks[name], again.masks[name])
    np.testing.assert_array_equal(first.masks["liver"], alone.masks["liver"])
    fresh = read_image(save(tmp_path / "other.nii.gz", small_image(3)))
    predictor.set_image(fresh, MODALITY)
    assert len(encoded) == 2
    assert predictor.predict(NAMES).volume is fresh


def test_the_structure_named_later_wins_where_two_overlap(tmp_path: Path) -> None:
    volume: Volume = read_image(save(tmp_path / "scan.nii.gz", small_image(0)))
    one, two = np.zeros((2, *volume.data.shape), bool)
    one[2:6], two[4:8] = True, True
    prediction = Prediction(volume, {"prostate": one, "liver": two})
    labels = prediction.label_map()
    assert prediction.label_names() == {1: "prostate", 2: "liver"}
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[:, 0, 0], [0, 0, 1, 1, 2, 2, 2, 2])


def test_names_are_canonical_and_known(predictor: Predictor, tiny_base: SegVol) -> None:
    assert predictor.names(["Prostate", "urinary_bladder"]) == ["prostate", "bladder"]
    own = LoadedModel(tiny_base, (8, 32, 32), "smooth", ["my lesion", "prostate"], frozenset(), {}, "tiny")
    trained = Predictor(own, torch.device("cpu"))
    assert trained.names(["My_lesion", "prostate"]) == ["my lesion", "prostate"]
    for names, words in ((["liver"], "it knows my lesion, prostate"), ([], "no structure named"), (["x"], "Unknown")):
        with pytest.raises(UserError, match=words):
            trained.names(names)
    with pytest.raises(UserError, match="named twice"):
        predictor.names(["bladder", "urinary bladder"])


def test_asking_before_an_image_is_a_mistake_of_the_caller(predictor: Predictor) -> None:
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.predict(["prostate"])

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

from adaptmedseg.data.maps import write_probabilities
from adaptmedseg.data.normalise import segvol_normalise
from adaptmedseg.data.volume import Volume, read_grid, read_image, to_grid
from adaptmedseg.errors import UserError
from adaptmedseg.inference.asking import check_prompts, prompt_origin, task_tokens
from adaptmedseg.inference.loading import LoadedModel
from adaptmedseg.inference.predictor import Prediction, Predictor
from adaptmedseg.inference.prompt_file import PromptSet
from adaptmedseg.inference.settings import InferenceSettings
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.models.unet import ReferenceUNet

ORIENTATIONS = ["RAS", "LPS", "LAS", "SPL", "AIR", "PIR"]
NAMES = ["prostate", "liver"]
PLAIN = InferenceSettings(bf16=False)


@pytest.fixture
def predictor(tiny_base: SegVol) -> Predictor:
    size, resize = tiny_base.config.spatial_size, tiny_base.config.resize
    loaded = LoadedModel(tiny_base, size, resize, [], frozenset(), {}, "tiny")
    return Predictor(loaded, torch.device("cpu"), PLAIN)


class Bright(SegVol):
    """Finds the bright voxels of the view, so that the right mask is known."""

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        return image

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        return 200 * (embedding[prompts.image_index, 0] - 0.5)


def bright_predictor(base: SegVol, size: tuple[int, int, int]) -> Predictor:
    model = Bright(base.config).eval()
    return Predictor(LoadedModel(model, size, "smooth", [], frozenset(), {}, "bright"), torch.device("cpu"), PLAIN)


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


def prompts_seen(predictor: Predictor, prompts: PromptSet) -> Prompts:
    """The prompts that reach the model, in coordinates of the view."""
    seen: list[Prompts] = []
    model = predictor.loaded.model
    original = model.segment

    def segment(embedding: Tensor, asked: Prompts) -> Tensor:
        seen.append(asked)
        return original(embedding, asked)

    model.segment = segment  # type: ignore[method-assign]
    predictor.predict(prompts=prompts)
    del model.segment
    return seen[0]


def asking(predictor: Predictor, points: np.ndarray | None = None, box: np.ndarray | None = None) -> PromptSet:
    """The prostate by points (p, 3), the first inside and the others outside, and a box (2, 3), in RAS mm."""
    entry: dict[str, object] = {"structure": "prostate"}
    if points is not None:
        labels = ["positive", *["negative"] * (len(points) - 1)]
        entry["points"] = [{"position": p.tolist(), "label": label} for p, label in zip(points, labels, strict=True)]
    if box is not None:
        entry["box"] = {"min": box[0].tolist(), "max": box[1].tolist()}
    return predictor.parse({"version": 1, "space": "world_mm", "prompts": [entry]})


def world(affine: np.ndarray, *voxels: tuple[float, float, float]) -> np.ndarray:
    """Voxels (x, y, z) of the file to millimetres."""
    return np.array(voxels) @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_prompts_land_on_their_voxels(predictor: Predictor, tmp_path: Path, codes: str) -> None:
    image = np.zeros((24, 20, 8), np.int16)
    image[4:20, 2:18, 1:7] = small_image(0)[4:20, 2:18, 1:7]
    path = stored(tmp_path / "scan.nii.gz", image, AFFINE, codes)
    predictor.set_image(path, MODALITY)
    box_mm = world(AFFINE, (6, 5, 2), (11, 9, 4))
    asked = prompts_seen(predictor, asking(predictor, points=box_mm))
    assert asked.points is not None
    assert asked.labels is not None
    assert asked.labels.tolist() == [[1, 0]]
    # AFFINE runs right to left and front to back: x and y turn round in the canonical volume of shape (8, 20, 24).
    first, last = np.array([2, 19 - 5, 23 - 6]), np.array([4, 19 - 9, 23 - 11])
    start, cropped = np.array([1, 2, 4]), np.array([6, 16, 16])
    scale = np.array(predictor.loaded.size) / cropped
    corners = np.stack([(voxel - start + 0.5) * scale - 0.5 for voxel in (first, last)])
    np.testing.assert_allclose(asked.points[0], corners, atol=1e-4)
    # And back: view to crop to canonical voxel to millimetres.
    voxels = (asked.points[0].numpy() + 0.5) / scale - 0.5 + start
    affine = read_grid(path).canonical().affine
    np.testing.assert_allclose(world(affine, *map(tuple, voxels[:, ::-1])), box_mm, atol=1e-3)
    # A box in voxels of the file lands on the same corners.
    turn = np.linalg.inv(read_grid(path).affine)
    stored_box = box_mm @ turn[:3, :3].T + turn[:3, 3]
    entry = {"structure": "prostate", "box": {"min": stored_box[0].tolist(), "max": stored_box[1].tolist()}}
    asked = prompts_seen(predictor, predictor.parse({"version": 1, "space": "voxel", "prompts": [entry]}))
    assert asked.boxes is not None
    np.testing.assert_allclose(asked.boxes[0], np.sort(corners, axis=0), atol=1e-3)


def test_prompts_outside_the_image_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    predictor.set_image(save(tmp_path / "scan.nii.gz", small_image(0)), MODALITY)
    inside, outside = world(AFFINE, (6, 5, 2), (30, 5, 2))
    for bad in (outside, outside + 1e6):
        with pytest.raises(
            UserError, match=r"prompts\[0\] \(prostate\): points\[1\] at .* outside the image scan.nii.gz"
        ):
            predictor.predict(prompts=asking(predictor, points=np.stack([inside, bad])))
    with pytest.raises(UserError, match=r"box at .* reaches outside the image scan.nii.gz"):
        predictor.predict(prompts=asking(predictor, box=np.stack([inside, outside + 50])))
    with pytest.raises(ValueError, match="structures or prompts"):
        predictor.predict(["prostate"], prompts=asking(predictor))


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


def test_zoom_is_the_models_own_choice_unless_said(tiny_base: SegVol, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(1, 300, (40, 36, 16)).astype(np.int16)
    image[5:30, 6:28, 2:12] += 700
    path = save(tmp_path / "scan.nii.gz", image)
    model = Bright(tiny_base.config).eval()
    for zoom_in in (False, True):
        loaded = LoadedModel(model, (8, 16, 16), "smooth", [], frozenset(), {}, "bright", zoom_in)
        predictor = Predictor(loaded, torch.device("cpu"), PLAIN)
        predictor.set_image(path, MODALITY)
        for zoom, zooms in ((None, zoom_in), (True, True), (False, False)):
            prediction = predictor.predict(["prostate"], zoom=zoom)
            assert (prediction.windows["prostate"] > 0) == zooms
    normalised, _ = segvol_normalise(read_image(path).data)
    np.testing.assert_array_equal(predictor.predict(["prostate"], zoom=True).masks["prostate"], normalised > 0.5)


class Blind(Bright):
    """Finds nothing."""

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        return super().segment(embedding, prompts) * 0 - 1


@pytest.mark.parametrize("zoom", [False, True])
def test_what_is_not_found_is_said(tiny_base: SegVol, tmp_path: Path, zoom: bool) -> None:
    loaded = LoadedModel(Blind(tiny_base.config), (8, 20, 24), "smooth", [], frozenset(), {}, "blind")
    predictor = Predictor(loaded, torch.device("cpu"), PLAIN)
    predictor.set_image(save(tmp_path / "scan.nii.gz", small_image(0)), MODALITY)
    prediction = predictor.predict(NAMES, zoom=zoom)
    assert prediction.not_found == tuple(NAMES)
    assert not any(mask.any() for mask in prediction.masks.values())


def test_masks_and_probabilities_one_file_a_structure(tiny_base: SegVol, tmp_path: Path) -> None:
    image = small_image(0)
    path = stored(tmp_path / "scan.nii.gz", image, AFFINE, "SPL")
    predictor = bright_predictor(tiny_base, (8, 20, 24))
    predictor.set_image(path, MODALITY)
    prediction = predictor.predict(["prostate", "left kidney"])
    paths = prediction.save_each(tmp_path / "each")
    assert {name: path.name for name, path in paths.items()} == {
        "prostate": "prostate.nii.gz",
        "left kidney": "left_kidney.nii.gz",
    }
    for name, written in paths.items():
        np.testing.assert_array_equal(read_image(written).data > 0, prediction.masks[name])
    (answer, _) = predictor.answers(predictor.parse(asking_by_name("prostate", "liver")))
    write_probabilities(tmp_path / "map.nii.gz", answer.probabilities, prediction.volume.grid)
    stored_map = nib.load(tmp_path / "map.nii.gz")
    assert stored_map.get_data_dtype() == np.float32
    assert nib.aff2axcodes(stored_map.affine) == tuple("SPL")
    np.testing.assert_array_equal(read_image(tmp_path / "map.nii.gz").data, answer.probabilities)
    np.testing.assert_array_equal(answer.probabilities > 0.5, prediction.masks["prostate"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        write_probabilities(tmp_path / "bad.nii.gz", answer.probabilities * 2, prediction.volume.grid)
    with pytest.raises(UserError, match="one of these suffixes"):
        write_probabilities(tmp_path / "bad.mha", answer.probabilities, prediction.volume.grid)
    assert not list(tmp_path.glob("*bad*"))


def asking_by_name(*names: str) -> dict[str, object]:
    return {"version": 1, "space": "voxel", "prompts": [{"structure": name} for name in names]}


def test_prompt_tokens_are_task_tokens_that_act_through_names(tiny_base: SegVol, tmp_path: Path) -> None:
    config = AdapterConfig(layers=[], priors=None, prompt_tokens=True)
    adapted = AdaptedSegVol(tiny_base, config, ["prostate"], ["T2 MRI"])
    loaded = LoadedModel(adapted, (8, 32, 32), "smooth", [], frozenset(), {}, "tokens")
    assert task_tokens(loaded, "T2 MRI") == ["prostate"]
    assert task_tokens(loaded, "CT") == []
    predictor = Predictor(loaded, torch.device("cpu"), PLAIN)
    predictor.set_image(save(tmp_path / "scan.nii.gz", small_image(0)), "T2 MRI")
    document = asking_by_name("prostate")
    (prompt,) = document["prompts"]  # type: ignore[misc]
    assert prompt_origin(loaded, "T2 MRI", predictor.parse(document).prompts[0]) == "text + task token"
    prompt |= {"text": False, "box": {"min": [8, 4, 1], "max": [16, 12, 6]}}
    assert prompt_origin(loaded, "T2 MRI", predictor.parse(document).prompts[0]) == "user box"
    prompt["task"] = True
    with pytest.raises(UserError, match="act through names"):
        check_prompts(loaded, "T2 MRI", predictor.parse(document))


def test_the_origin_of_every_mask_is_kept(tiny_base: SegVol, tmp_path: Path) -> None:
    size, resize = tiny_base.config.spatial_size, tiny_base.config.resize
    adapted = AdaptedSegVol(tiny_base, AdapterConfig(), ["prostate", "bladder"], [MODALITY]).eval()
    predictor = Predictor(
        LoadedModel(adapted, size, resize, [], frozenset(), {}, "adapted"), torch.device("cpu"), PLAIN
    )
    path = save(tmp_path / "scan.nii.gz", small_image(0))
    predictor.set_image(path, MODALITY)
    assert predictor.predict().origins == {"prostate": "text + task token", "bladder": "text + task token"}
    document = asking_by_name("prostate", "liver", "bladder")
    prostate, liver, bladder = document["prompts"]  # type: ignore[misc]
    prostate |= {"points": [{"position": [12, 8, 3]}], "box": {"min": [8, 4, 1], "max": [16, 12, 6]}}
    liver |= {"text": False, "box": {"min": [8, 4, 1], "max": [16, 12, 6]}}
    bladder |= {"text": False, "task": True}
    assert predictor.predict(prompts=predictor.parse(document)).origins == {
        "prostate": "text + task token + user points + user box",
        "liver": "user box",
        "bladder": "task token",
    }
    predictor.set_image(path, "CT")  # the gate: the base alone, which has no tokens
    with pytest.raises(UserError, match=r"bladder.*task is true, but the model has no task tokens for CT"):
        predictor.predict(prompts=predictor.parse(document))
    with pytest.raises(UserError, match="no task tokens for CT and must be told"):
        predictor.predict()
    assert predictor.predict(["prostate"]).origins == {"prostate": "text"}


def test_a_unet_is_asked_by_name_alone(tmp_path: Path) -> None:
    unet = ReferenceUNet(["prostate", "bladder"], (8, 32, 32)).eval()
    loaded = LoadedModel(unet, (8, 32, 32), "smooth", unet.structures, frozenset(), {}, "U-Net")
    predictor = Predictor(loaded, torch.device("cpu"), PLAIN)
    predictor.set_image(save(tmp_path / "scan.nii.gz", small_image(0)), MODALITY)
    assert predictor.predict().origins == dict.fromkeys(unet.structures, "none")
    document = asking_by_name("prostate")
    document["prompts"][0]["points"] = [{"position": [12, 8, 3]}]  # type: ignore[index]
    with pytest.raises(UserError, match="takes no points or boxes"):
        predictor.predict(prompts=predictor.parse(document))

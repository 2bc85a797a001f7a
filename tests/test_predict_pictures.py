"""`predict` on pictures: masks on their own pixels, embeddings kept, every wrong question in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from sam_cases import TINY_SAM, picture
from small_cases import call, save, small_image

from adaptmedseg.checkpoints.sam import save_sam
from adaptmedseg.data.pictures.read import Picture, read_picture
from adaptmedseg.inference.pictures import KEPT, PicturePredictor
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.models.sam import Sam


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "sam.safetensors"
    save_sam(path, Sam(TINY_SAM), {"name": "tiny", "licence": "Apache-2.0"})
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(picture(37, 58)).save(path)
    return path


def box(*numbers: float) -> StructurePrompt:
    return StructurePrompt("thing", text=False, box=torch.tensor(numbers).reshape(2, 2))


def point(y: float, x: float) -> StructurePrompt:
    return StructurePrompt("spot", text=False, points=torch.tensor([[y, x]]), labels=torch.tensor([1]))


# The predictor ----------------------------------------------------------------------------


def test_a_picture_is_encoded_once(model: Path, photo: Path) -> None:
    predictor = PicturePredictor.load(str(model), "cpu", exact=True)
    predictor.set_image(photo)
    first = predictor.predict([box(3, 4, 30, 40)])
    predictor.predict([point(8, 8)])
    predictor.set_image(Picture(photo, picture(20, 20, 5)))
    predictor.set_image(photo)
    assert predictor.encoded == 2
    assert predictor.timings["encode"] == 0
    np.testing.assert_array_equal(predictor.predict([box(3, 4, 30, 40)])[0].logits, first[0].logits)
    for seed in range(KEPT):
        predictor.set_image(Picture(photo, picture(20, 20, seed + 10)))
    predictor.set_image(photo)
    assert predictor.encoded == 3 + KEPT  # it had to make room


def test_prompts_in_one_batch_answer_as_one_by_one(model: Path, photo: Path) -> None:
    predictor = PicturePredictor.load(str(model), "cpu", exact=True)
    predictor.set_image(photo)
    asked = [box(3, 4, 30, 40), point(8, 8), box(0, 0, 12, 9), point(30, 50)]
    together = predictor.predict(asked)
    for prompt, answer in zip(asked, together, strict=True):
        (alone,) = predictor.predict([prompt])
        assert answer.logits.shape == (37, 58)
        np.testing.assert_allclose(answer.logits, alone.logits, atol=1e-5)
        assert answer.iou == pytest.approx(alone.iou, abs=1e-5)
        assert answer.alternative == alone.alternative
    assert [answer.alternative > 0 for answer in together] == [False, True, False, True]


def test_corners_in_any_order_and_half_precision(model: Path, photo: Path) -> None:
    narrow = PicturePredictor.load(str(model), "cpu")
    narrow.set_image(photo)
    exact = PicturePredictor.load(str(model), "cpu", exact=True)
    exact.set_image(photo)
    a, b = narrow.predict([box(3, 4, 30, 40)])[0], exact.predict([box(3, 4, 30, 40)])[0]
    np.testing.assert_allclose(a.logits, b.logits, atol=0.1 * np.abs(b.logits).max())


# The command ------------------------------------------------------------------------------


def test_a_mask_on_the_pictures_pixels_with_a_note(model: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = call(
        "predict", photo, "--out", out, "--model", model, "--point", "lesion:20,10", "--point", "-lesion:50,30",
        "--box", "lesion:5,4,40,30", "--box", "eye:0,0,57,36", "--each", "--probabilities", "--exact",
        "--device", "cpu",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == str(out / "photo.png")
    note = json.loads((out / "photo.json").read_text(encoding="utf-8"))
    assert note["labels"] == {"1": "lesion", "2": "eye"}
    assert note["prompts"]["lesion"]["origin"] == "user points + user box"
    assert note["prompts"]["eye"] == {"origin": "user box", "box": {"min": [0.0, 0.0], "max": [57.0, 36.0]}}
    assert note["shape"] == [37, 58]
    assert note["licence"] == "Apache-2.0"
    labels = np.array(Image.open(out / "photo.png"))
    assert labels.shape == (37, 58)
    predictor = PicturePredictor.load(str(model), "cpu", exact=True)
    predictor.set_image(photo)
    lesion = StructurePrompt(
        "lesion", False, torch.tensor([[10.0, 20.0], [30.0, 50.0]]), torch.tensor([1, 0]),
        torch.tensor([[4.0, 5.0], [30.0, 40.0]]),
    )  # fmt: skip
    expected = np.zeros((37, 58), np.uint8)
    for label, answer in enumerate(predictor.predict([lesion, box(0, 0, 36, 57)]), 1):
        expected[answer.mask] = label
        name = note["labels"][str(label)]
        single = read_picture(out / note["files"][name]["mask"]).pixels
        np.testing.assert_array_equal(single, answer.mask * 255)
        assert note["area_pixels"][name] == answer.mask.sum()
        stored = tifffile.imread(out / note["files"][name]["probabilities"])
        np.testing.assert_allclose(stored, 1 / (1 + np.exp(-answer.logits)), atol=1e-5)
    np.testing.assert_array_equal(labels, expected)


def test_a_folder_goes_on_past_a_bad_picture(model: Path, tmp_path: Path) -> None:
    images, prompts = tmp_path / "images", tmp_path / "prompts"
    images.mkdir()
    prompts.mkdir()
    document = {"version": 1, "space": "voxel", "prompts": [{"structure": "a", "points": [{"position": [4, 9]}]}]}
    for name in ("one", "two", "three"):
        Image.fromarray(picture(20, 20)).save(images / f"{name}.png")
        (prompts / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    (images / "two.png").write_bytes(b"nothing")
    options = ["--out", tmp_path / "out", "--model", model, "--prompts", prompts, "--device", "cpu"]
    outcome = call("predict", images, *options)
    assert outcome.code == 1
    assert "two.png: is no picture" in outcome.err
    assert "2 of 3 images segmented, 1 left out" in outcome.err
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["one.json", "one.png", "three.json", "three.png"]
    again = call("predict", images, *options)
    assert again.code == 2
    assert "exists already" in again.err


WRONG = {
    "modality": (["--modality", "CT", "--point", "a:1,1"], "--modality: is for volumes"),
    "zoom": (["--zoom", "--point", "a:1,1"], "--zoom: is for volumes"),
    "world": (["--space", "world", "--point", "a:1,1"], "--space world: a picture has pixels alone"),
    "nothing": ([], "nothing is asked; give --point, --box or --prompts"),
    "name alone": (["--structures", "liver"], "is asked by points or a box, not by a name"),
    "outside": (["--point", "a:80,10"], "lies outside the image photo.png (x -0.5 to 57.5, y -0.5 to 36.5, pixels)"),
    "three": (["--point", "a:8,10,3"], "has 3 numbers, but photo.png has two axes"),
    "only negative": (["--point=-a:8,10"], "has only negative points"),
    "flat box": (["--box", "a:8,10,8,20"], "box is empty"),
    "volume model": (["--point", "a:1,1", "--model", "small"], "is one of volumes (the shipped base)"),
    "missing model": (["--point", "a:1,1", "--model", "no.safetensors"], "no such model file"),
    "no folder of SAM 2": (
        ["--point", "a:1,1", "--model", "sam2:nowhere"],
        "sam2:nowhere: is no folder; give one with",
    ),
    "half a box": (["--box", "a:1,2,3"], "has 3 numbers; write NAME:x0,y0,z0,x1,y1,z1 (in pictures NAME:x0,y0,x1,y1)"),
    "missing SAM 2": (["--point", "a:1,1", "--model", "sam2:."], "sam2:.: cannot be loaded"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_questions_are_told_in_a_sentence(model: Path, photo: Path, tmp_path: Path, case: str) -> None:
    options, message = WRONG[case]
    given = options if "--model" in options else [*options, "--model", str(model)]
    outcome = call("predict", photo, "--out", tmp_path / "out", "--device", "cpu", *given)
    assert outcome.code == 2, outcome.out
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_picture_itself_is_not_replaced(model: Path, photo: Path) -> None:
    options = ["--model", str(model), "--point", "a:1,1", "--overwrite", "--device", "cpu"]
    outcome = call("predict", photo, "--out", photo.parent, *options)
    assert outcome.code == 2
    assert "is the image itself" in outcome.err


def test_a_file_is_no_folder_for_masks(model: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    outcome = call("predict", photo, "--out", tmp_path / "out", "--model", model, "--point", "a:1,1", "--device", "cpu")
    assert outcome.code == 2
    assert "out: is a file; choose a folder for --out" in outcome.err
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_what_is_no_picture_is_said_so(model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    empty = call("predict", tmp_path / "notes", "--out", tmp_path / "out", "--model", model, "--point", "a:1,1")
    assert "notes is or holds no picture, which would need none" in empty.err
    missing = call("predict", tmp_path / "photos", "--out", tmp_path / "out", "--model", model, "--point", "a:1,1")
    assert "photos: does not exist; check the path" in missing.err


def test_millimetres_of_a_picture_are_told(model: Path, photo: Path, tmp_path: Path) -> None:
    entry = {"structure": "a", "points": [{"position": [4, 9]}]}
    document = {"version": 1, "space": "world_mm", "prompts": [entry]}
    (tmp_path / "p.json").write_text(json.dumps(document), encoding="utf-8")
    outcome = call("predict", photo, "--out", tmp_path / "out", "--model", model, "--prompts", tmp_path / "p.json")
    assert outcome.code == 2
    assert "has 2 numbers; give 3 (x, y, z), or for a picture pixels and the space 'voxel'" in outcome.err


def test_volumes_need_a_modality_and_a_model_of_volumes(model: Path, tmp_path: Path) -> None:
    volume = save(tmp_path / "scan.nii.gz", small_image(0))
    outcome = call("predict", volume, "--out", tmp_path / "out")
    assert "--modality is missing" in outcome.err
    outcome = call("predict", volume, "--out", tmp_path / "out", "--modality", "CT", "--model", model,
                   "--structures", "liver")  # fmt: skip
    assert outcome.code == 2
    assert "is a model of pictures" in outcome.err


# SAM 2 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SAM 2 with random weights, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128], num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 2], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[128, 64, 32, 16], fpn_hidden_size=32,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    prompt = transformers.Sam2PromptEncoderConfig(hidden_size=32, image_size=64)
    decoder = transformers.Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=32, iou_head_hidden_dim=16)
    torch.manual_seed(0)
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    folder = tmp_path_factory.mktemp("sam2")
    transformers.Sam2Model(config).save_pretrained(folder)
    return folder


def test_sam2_answers_under_the_same_interface(sam2_folder: Path, photo: Path, tmp_path: Path) -> None:
    predictor = PicturePredictor.load(f"sam2:{sam2_folder}", "cpu", exact=True)
    predictor.set_image(photo)
    asked = [box(3, 4, 30, 40), box(1, 2, 12, 9), point(8, 8)]
    answers = predictor.predict(asked)
    for prompt, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer.logits, predictor.predict([prompt])[0].logits, atol=1e-4)
    assert predictor.encoded == 1
    outcome = call(
        "predict", photo, "--out", tmp_path / "out", "--model", f"sam2:{sam2_folder}", "--box", "a:3,4,30,20",
        "--device", "cpu",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "SAM 2" in json.loads((tmp_path / "out" / "photo.json").read_text(encoding="utf-8"))["model"]


def test_sam2_without_its_package(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    outcome = call("predict", photo, "--out", tmp_path / "out", "--model", "sam2:x", "--box", "a:3,4,30,20")
    assert outcome.code == 2
    assert "SAM 2 needs the package transformers; install it: pip install 'adaptmedseg[sam2]'" in outcome.err

"""Training a SAM on sets of slices: the stream, what is learnt, and going on from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sam_cases import TINY_SAM
from small_cases import call

from adaptmedseg.checkpoints.sam import load_sam, save_sam
from adaptmedseg.cli.common import config_path
from adaptmedseg.data.pictures.dataset import SliceDataset
from adaptmedseg.inference.pictures import PicturePredictor
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.models.sam import Sam, SamConfig
from adaptmedseg.training.config_file import load_config
from adaptmedseg.training.losses import overlap_losses
from adaptmedseg.training.simulate import box_of
from adaptmedseg.training.slice_config import SliceTrainConfig
from adaptmedseg.training.slice_stream import SliceStream, view_of

QUICK = TINY_SAM.model_copy(update={"embed_dim": 48, "prompt_dim": 32, "alternatives": False})


def blob_folder(root: Path, count: int) -> Path:
    """Pictures of a bright disc of one colour and a dark square on noise, with label maps."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    y, x = np.mgrid[:48, :64]
    for seed in range(count):
        rng = np.random.default_rng(seed)
        image = rng.normal(110, 12, (48, 64, 3))
        cy, cx, r = rng.uniform(14, 34), rng.uniform(14, 24), rng.uniform(6, 11)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < r**2
        top, side = int(rng.integers(4, 24)), int(rng.integers(10, 18))
        square = (y >= top) & (y < top + side) & (x >= 40) & (x < 40 + side)
        image[disc] += (90, 40, 0)
        image[square] -= 70
        labels = disc.astype(np.uint8) + 2 * square.astype(np.uint8)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"p{seed}.png")
        Image.fromarray(labels).save(root / "masks" / f"p{seed}.png")
    return root


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("blobs")
    outcome = call("slices", blob_folder(root / "raw", 20), "--out", root / "s", "--label", "1=disc", "--label",
                   "2=square", "--val-fraction", "0", "--test-fraction", "0.3")  # fmt: skip
    assert outcome.code == 0, outcome.err
    return root / "s"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("fresh") / "sam.safetensors"
    save_sam(path, Sam(QUICK), {"name": "fresh tiny"})
    return path


def config_of(blobs: Path, fresh: Path, **changes: object) -> SliceTrainConfig:
    values = {"base": str(fresh), "data.paths": [str(blobs)], "precision": "fp32", **changes}
    if "budget.steps" in changes:
        values["budget.minutes"] = None
    return load_config(config_path("sam_small"), SliceTrainConfig, values)


def stream_of(blobs: Path, config: SliceTrainConfig, model: SamConfig = QUICK) -> SliceStream:
    dataset = SliceDataset.open(blobs)
    views = [view_of(item, dataset.name, model, dataset.structures, 8) for item in dataset.items("train")]
    return SliceStream(views, model, config)


def test_a_batch_depends_on_seed_and_step_alone(blobs: Path, fresh: Path) -> None:
    config = config_of(blobs, fresh, batch_size=4)
    one, other = stream_of(blobs, config), stream_of(blobs, config)
    other.batch(0)
    a, b = one.batch(5), other.batch(5)
    torch.testing.assert_close(a.images, b.images, rtol=0, atol=0)
    assert torch.equal(a.masks, b.masks)
    assert a.images.shape == (4, 3, 64, 64)
    assert a.masks.shape == (len(a.prompts), 64, 64)
    assert len(a.kinds) == 2
    halves = [one.batch(5, piece, 2) for piece in (0, 1)]
    torch.testing.assert_close(torch.cat([half.images for half in halves]), a.images, rtol=0, atol=0)


def test_without_changes_a_sample_is_what_inference_sees(blobs: Path, fresh: Path) -> None:
    still = {f"augment.{name}": 0.0 for name in ("spatial", "mirror", "intensity", "gamma", "noise", "blur")}
    config = config_of(blobs, fresh, batch_size=1, structures_per_image=2, **still)
    stream = stream_of(blobs, config)
    predictor = PicturePredictor.load(str(fresh), "cpu", exact=True)
    _, image, masks = stream.draw(0, np.random.default_rng(0))
    item = SliceDataset.open(blobs).items("train")[stream.choice.case(0)]
    predictor.set_image(item.folder / "images" / f"{item.id}.png")
    expected = predictor.model.normalise(predictor.frame.image(item.image()))
    torch.testing.assert_close(image, expected, atol=1e-4, rtol=0)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, predictor.frame.mask(item.mask(name)).numpy())


def oracle_dice(model: Path, blobs: Path) -> float:
    """Mean Dice on the test images with the true mask's box as prompt."""
    predictor, scores = PicturePredictor.load(str(model), "cpu", exact=True), []
    for item in SliceDataset.open(blobs).items("test"):
        predictor.set_image(item.folder / "images" / f"{item.id}.png")
        boxes = [torch.from_numpy(box_of(item.mask(name))) for name in item.present()]
        answers = predictor.predict([StructurePrompt("x", text=False, box=box) for box in boxes])
        for name, answer in zip(item.present(), answers, strict=True):
            truth = item.mask(name)
            scores.append(2 * (answer.mask & truth).sum() / max(1, answer.mask.sum() + truth.sum()))
    return float(np.mean(scores))


def test_it_learns(blobs: Path, fresh: Path, tmp_path: Path) -> None:
    steps = [
        "budget.minutes=null",
        "precision=fp32",
        "batch_size=4",
        "optimiser.lr=0.01",
        "optimiser.ema=0.9",
        "augment.spatial=0",
        "augment.blur=0",
        "prompts.kinds=1",
        "prompts.box=1",
        "prompts.points=0",
        "prompts.box_points=0",
    ]
    options = ["--data", blobs, "--base", fresh, "--device", "cpu"]
    whole = call("train", "sam_small", *steps, "budget.steps=100", *options, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    assert "100 steps" in whole.out
    model = tmp_path / "whole" / "model.safetensors"
    rows = json.loads((tmp_path / "whole" / "history.json").read_text(encoding="utf-8"))["rows"]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    before, after = oracle_dice(fresh, blobs), oracle_dice(model, blobs)
    assert after > before + 0.2
    _, card = load_sam(str(model))
    training = card["training"]
    assert isinstance(training, dict)
    hashes = {item.image_sha256 for item in SliceDataset.open(blobs).items("train")}
    assert set(training["image_sha256"]) == hashes
    assert training["structures"] == ["disc", "square"]


def test_a_run_refuses_a_taken_folder_and_goes_on_with_resume(blobs: Path, fresh: Path, tmp_path: Path) -> None:
    options = [
        "--data", blobs, "--base", fresh, "--device", "cpu", "budget.minutes=null", "precision=fp32",
        "checkpoint.extendable=true", "batch_size=2",
    ]  # fmt: skip
    assert call("train", "sam_small", *options, "budget.steps=2", "--out", tmp_path / "a").code == 0
    taken = call("train", "sam_small", *options, "budget.steps=2", "--out", tmp_path / "a")
    assert taken.code == 2
    assert "holds another run" in taken.err
    done = call("train", "sam_small", *options, "budget.steps=2", "--out", tmp_path / "a", "--resume")
    assert "is finished" in done.out
    more = call("train", "sam_small", *options, "budget.steps=4", "--out", tmp_path / "a", "--resume")
    assert more.code == 0, more.err
    assert "4 steps" in more.out
    other = call("train", "sam_small", *options, "budget.steps=6", "loss.dice=2", "--out", tmp_path / "a", "--resume")
    assert other.code == 2
    assert "loss.dice was 1.0 and is 2.0" in other.err


WRONG = {
    "text": (["prompts.text=0.5", "prompts.box=0.1", "prompts.points=0.2"], "a SAM is not asked by text"),
    "artefacts": (["augment.motion=0.1"], "augment.motion is for volumes"),
    "structure": (["data.structures=[liver]"], "data.structures: 'liver' is in none of the sets"),
    "least": (["data.least=100000"], "data.least: no structure has 100000 pixels"),
    "base": (["base=small"], "(a base of volumes), expected adaptmedseg-sam-1 (a SAM, for pictures); give one"),
    "no key": (["zoom=1"], "zoom: there is no such key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configurations_are_told_in_a_sentence(blobs: Path, fresh: Path, tmp_path: Path, case: str) -> None:
    overrides, message = WRONG[case]
    base = [] if case == "base" else ["--base", fresh]
    outcome = call("train", "sam_small", *overrides, "--data", blobs, *base, "--out", tmp_path / "o", "--device", "cpu")
    assert outcome.code == 2, outcome.out
    assert message in outcome.err
    assert not (tmp_path / "o").exists()


def test_no_data_and_a_prepared_set_of_volumes(fresh: Path, tmp_path: Path) -> None:
    outcome = call("train", "sam_small", "--base", fresh, "--out", tmp_path / "o")
    assert "no training data" in outcome.err
    outcome = call("train", "sam_small", "--base", fresh, "--data", tmp_path, "--out", tmp_path / "o")
    assert "is no set of slices" in outcome.err


def test_overlap_by_hand() -> None:
    logits = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]], requires_grad=True)
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    estimates = torch.tensor([0.2, 0.9], requires_grad=True)
    losses = overlap_losses(estimates, logits, target)
    torch.testing.assert_close(losses, torch.tensor([0.09, 0.01]))  # overlaps 1/2 and, of nothing with nothing, 1
    losses.sum().backward()
    assert logits.grad is None
    assert estimates.grad is not None


def test_the_shipped_configuration_is_complete() -> None:
    path = config_path("sam_small")
    config = load_config(path, SliceTrainConfig)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == json.loads(config.model_dump_json())

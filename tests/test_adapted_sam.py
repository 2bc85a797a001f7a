"""SAM with adapters: identity at the start, what trains, files, and the shipped configurations of the 2D path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sam_cases import TINY_SAM
from small_cases import call
from test_comparison import CONFIGS
from test_slice_training import blob_folder

from adaptmedseg.adapters.sam_file import load_sam_adapter, save_sam_adapter
from adaptmedseg.checkpoints.sam import load_sam, save_sam
from adaptmedseg.errors import UserError
from adaptmedseg.inference.picture_loading import load_picture_model
from adaptmedseg.inference.pictures import PicturePredictor
from adaptmedseg.models.adapted_sam import AdaptedSam, expected_overlap
from adaptmedseg.models.adapter_config import LayerAdapterConfig, SamAdapterConfig
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.sam import Sam
from adaptmedseg.training.config_file import load_config
from adaptmedseg.training.slice_config import SliceTrainConfig

SHIPPED = sorted((CONFIGS / "2d").glob("*.yaml"))
KINDS = {"loose_lora": "image_encoder.blocks.*", "qv_lora": "*", "med_sa": "*"}


def tiny(seed: int = 0) -> Sam:
    torch.manual_seed(seed)
    return Sam(TINY_SAM).eval()


def boxes(n: int = 2) -> Prompts:
    corners = torch.tensor([[[4.0, 6.0], [40.0, 30.0]], [[10.0, 10.0], [50.0, 60.0]]])[:n]
    return Prompts(torch.zeros(n, dtype=torch.long), ["a", "b"][:n], ["picture"], False, boxes=corners)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_base_before_the_first_step_and_after_one_the_base_stays(kind: str) -> None:
    base, image = tiny(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = base.decode(base.encode(image), boxes()).logits
    layers = [LayerAdapterConfig(kind=kind, rank=2, alpha=2, targets=[KINDS[kind]])]  # type: ignore[arg-type]
    model = AdaptedSam(base, SamAdapterConfig(layers=layers))
    assert all("image_encoder" in name for name in model.trained_tensors()) or kind != "loose_lora"
    assert model.changes_encoder
    with torch.no_grad():
        assert torch.equal(model.decode(model.encode(image), boxes()).logits, expected)
    output = model.decode(model.encode(image), boxes()).logits
    learning = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in learning} == {id(t) for t in model.trained_tensors().values()}
    optimiser = torch.optim.SGD(learning, lr=1.0)
    output.square().mean().backward()
    optimiser.step()
    with torch.no_grad():
        assert not torch.allclose(model.decode(model.encode(image), boxes()).logits, expected)
        assert torch.equal(base.decode(base.encode(image), boxes()).logits, expected)


def test_classes_are_answered_in_one_pass_and_by_name() -> None:
    model = AdaptedSam(tiny(), SamAdapterConfig(classes=True), ["liver", "spleen", "kidney"])
    embedding = model.encode(torch.randn(2, 3, 64, 64))
    asked = Prompts(torch.tensor([1, 0, 1]), ["kidney", "liver", "liver"], ["picture"] * 2, False)
    output = model.decode(embedding, asked)
    alone = model.decode(embedding[1:], Prompts(torch.tensor([0]), ["kidney"], ["picture"], False))
    torch.testing.assert_close(output.logits[:1], alone.logits)
    assert output.logits.shape == (3, 1, 32, 32)
    with pytest.raises(ValueError, match="'heart' is no class of this model; it has liver, spleen, kidney"):
        model.decode(embedding, Prompts(torch.tensor([0]), ["heart"], ["picture"], False))
    placed = model.decode(embedding[:1], boxes())  # with places it is asked as SAM is
    torch.testing.assert_close(placed.logits, model.base.decode(embedding[:1], boxes()).logits)


def test_the_overlap_to_expect_by_hand() -> None:
    sure = torch.tensor([[[50.0, -50.0]], [[0.0, -50.0]]])
    doubt = torch.log(torch.tensor([[[3.0, 1 / 3]]]))  # probabilities 3/4 and 1/4
    torch.testing.assert_close(expected_overlap(sure)[:1], torch.tensor([1.0]))
    assert float(expected_overlap(sure)[1]) == 0
    torch.testing.assert_close(expected_overlap(doubt), torch.tensor([0.75 / 1.25]))


def test_a_file_gives_the_model_back_and_refuses_another_base(tmp_path: Path) -> None:
    config = SamAdapterConfig(
        layers=[LayerAdapterConfig(kind="qv_lora", rank=2, alpha=2, targets=["*"])], train=["prompt_encoder.*"],
        classes=True,
    )  # fmt: skip
    model = AdaptedSam(tiny(), config, ["liver"])
    with torch.no_grad():
        for tensor in model.trained_tensors().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    path = tmp_path / "model.safetensors"
    save_sam_adapter(path, model, "base", "name", {"image_sha256": ["x"]})
    again = load_sam_adapter(path, tiny())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.decode(model.encode(image), boxes()).logits
        assert torch.equal(again.decode(again.encode(image), boxes()).logits, expected)
    with pytest.raises(UserError, match="put the base of the training back there, or train the adapter again"):
        load_sam_adapter(path, tiny(seed=1))
    with pytest.raises(UserError, match="was trained on 'base', which is not there; put that base back"):
        load_picture_model(str(path))
    damaged = path.read_bytes()[:-4] + b"\0\0\0\1"
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="was changed after it was written"):
        load_sam_adapter(path, tiny())


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("blobs")
    outcome = call("slices", blob_folder(root / "raw", 6), "--out", root / "s", "--label", "1=disc", "--label",
                   "2=square", "--val-fraction", "0", "--test-fraction", "0")  # fmt: skip
    assert outcome.code == 0, outcome.err
    return root / "s"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "sam.safetensors"
    save_sam(path, tiny(), {"name": "tiny"})
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_trains_and_predicts(path: Path, blobs: Path, base: Path, tmp_path: Path) -> None:
    config = load_config(path, SliceTrainConfig)
    assert config.base in ("sam-b", "sam-l")
    outcome = call("train", f"2d/{path.stem}", "--data", blobs, "--base", base, "--out", tmp_path / "run", "--device",
                   "cpu", "budget.minutes=null", "budget.steps=2", "precision=fp32")  # fmt: skip
    assert outcome.code == 0, outcome.err
    predictor = PicturePredictor.load(str(tmp_path / "run"), "cpu", exact=True)
    assert isinstance(predictor.model, AdaptedSam)
    assert predictor.loaded.classes == (("disc", "square") if path.stem == "samed" else ())
    assert len(predictor.loaded.seen) == 6
    assert (tmp_path / "run" / "model.safetensors").stat().st_size < 0.6 * base.stat().st_size
    changed = [name for name, tensor in predictor.model.trained_tensors().items() if float(tensor.abs().sum()) > 0]
    assert changed


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 0.05)])
def test_cached_embeddings_are_what_the_encoder_sees(blobs: Path, base: Path, precision: str, tolerance: float) -> None:
    from adaptmedseg.data.pictures.dataset import SliceDataset
    from adaptmedseg.training.slice_run import with_embeddings
    from adaptmedseg.training.slice_stream import SliceStream, view_of

    values = {"base": str(base), "data.paths": [str(blobs)], "precision": precision}
    config = load_config(CONFIGS / "2d" / "cotraining.yaml", SliceTrainConfig, values)
    sam, _ = load_sam(str(base))
    model = AdaptedSam(sam, SamAdapterConfig(train=["mask_decoder.*"]))
    item = SliceDataset.open(blobs).items()[0]
    views = with_embeddings([view_of(item, "s", sam.config, ["disc", "square"], 8)], model, config, torch.device("cpu"))
    _, given, masks = SliceStream(views, sam.config, config).draw(0, np.random.default_rng(0))
    predictor = PicturePredictor.load(str(base), "cpu", exact=True)
    predictor.set_image(item.folder / "images" / f"{item.id}.png")
    torch.testing.assert_close(given, predictor._embedding[0], atol=tolerance, rtol=tolerance)
    assert model.embed(given[None], ["picture"]) is not None
    assert torch.equal(model.embed(given[None], ["picture"])[0], given)
    assert sorted(masks) == ["disc", "square"]


WRONG = {
    "moving": (
        ["augment.mirror=0.5"],
        "images cannot change: set augment.mirror",
    ),
    "no adapter": (["adapter=null"], "cache_embeddings needs a frozen encoder"),
    "encoder": (['adapter.train=["image_encoder.neck.*"]'], "the adapter changes the image encoder"),
    "pattern": (['adapter.train=["heart.*"]'], "'heart.*' matches no parameter of the base"),
    "nothing": (["adapter.train=[]"], "nothing would be trained"),
    "text": (["prompts.text=1", "prompts.box=0"], "a SAM is not asked by text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_adapters_are_told_in_a_sentence(blobs: Path, base: Path, tmp_path: Path, case: str) -> None:
    overrides, message = WRONG[case]
    outcome = call("train", "2d/cotraining", *overrides, "--data", blobs, "--base", base, "--out", tmp_path / "o")
    assert outcome.code == 2, outcome.out
    assert message in outcome.err
    assert not (tmp_path / "o").exists()


def test_classes_are_predicted_by_name(blobs: Path, base: Path, tmp_path: Path) -> None:
    outcome = call("train", "2d/samed", "--data", blobs, "--base", base, "--out", tmp_path / "run", "--device", "cpu",
                   "budget.minutes=null", "budget.steps=2")  # fmt: skip
    assert outcome.code == 0, outcome.err
    picture = tmp_path / "photo.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(picture)
    for number, more in enumerate(([], ["--structures", "square"])):
        outcome = call("predict", picture, "--out", tmp_path / f"m{number}", "--model", tmp_path / "run", *more)
        assert outcome.code == 0, outcome.err
    outcome = call("predict", picture, "--out", tmp_path / "m2", "--model", tmp_path / "run", "--structures", "heart")
    assert outcome.code == 2
    assert "heart" in outcome.err
    assert "disc, square" in outcome.err

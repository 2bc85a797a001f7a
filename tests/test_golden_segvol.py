"""Parity with the published implementations of SegVol and Hermes, their weights filled by rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_fill import draw, fill, spread
from torch import Tensor

from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.segvol import ClipConfig, SegVol, SegVolConfig, upsample_logits
from adaptmedseg.modules.context_priors import ContextPriors
from adaptmedseg.modules.priors.heads import ModalityHead
from adaptmedseg.training.losses import segmentation_loss

KINDS = ["text", "box", "point", "text_box", "text_point", "box_point"]
CLIP_NAMES = {
    "hidden_size": "width",
    "intermediate_size": "mlp_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}

# An excerpt of the reference's numbers for the tiny model, so that parity is checked wherever the tests run.
TINY: dict[str, Any] = {
    "spatial_size": (16, 64, 64),
    "patch_size": (4, 16, 16),
    "embed_dim": 96,
    "mlp_dim": 192,
    "num_layers": 2,
    "num_heads": 6,
    "decoder_mlp_dim": 128,
    "decoder_num_heads": 8,
    "iou_hidden_dim": 32,
    "clip": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
}
POINTS = [[3, 60, 20], [2, 42, 54], [9, 42, 50], [5, 7, 0], [7, 10, 30], [-1, -1, -1]]
LABELS = [1, 1, 0, 1, 0, -1]
BOX = [4, 8, 31, 15, 34, 38]
VOXELS = [(2, 5, 9), (7, 30, 33), (13, 50, 60), (15, 63, 0)]
LOGITS = {
    "text": [-0.228220, -0.320663, -0.277833, -0.284143],
    "box": [0.023529, -0.027897, -0.047131, 0.019283],
    "point": [0.014358, -0.053075, -0.060600, 0.009427],
    "text_box": [-0.214886, -0.303779, -0.285262, -0.272436],
    "text_point": [-0.209750, -0.256136, -0.268799, -0.263242],
    "box_point": [0.012835, -0.064660, -0.078304, 0.008397],
}
IOU = {
    "text": [-0.221783, -0.004608, 0.033103],
    "box": [-0.327556, 0.083874, 0.068023],
    "point": [-0.347479, -0.005897, -0.101807],
    "text_box": [-0.308669, 0.155876, 0.078132],
    "text_point": [-0.328919, 0.009674, -0.086916],
    "box_point": [-0.253811, 0.011684, -0.053638],
}
EMBEDDING = [0.775340, 1.257336, -0.457449, 0.545643, 0.785001, 0.604860]
TEXT = [-0.658789, 0.414705, 1.510687, 0.445164, 2.203475, 0.080542]


def model_of(config: Mapping, salt: str) -> SegVol:
    """A SegVol of a reference's sizes, filled by the rule."""
    sizes = {name: value for name, value in config.items() if name != "clip"}
    clip = {CLIP_NAMES[name]: value for name, value in config["clip"].items() if name in CLIP_NAMES}
    model = SegVol(SegVolConfig(**sizes, text=ClipConfig(**clip))).eval()
    fill(model, salt)
    return model


def prompts_of(kind: str, organ: str, points: Tensor, labels: Tensor, box: Tensor) -> Prompts:
    """One prompt of a kind: points (1, p, 3), labels (1, p), box (1, 6)."""
    has_points = "point" in kind
    return Prompts(
        torch.tensor([0]),
        [organ],
        ["CT"],
        "text" in kind,
        points.float() if has_points else None,
        labels.float() if has_points else None,
        box.float().reshape(1, 2, 3) if "box" in kind else None,
    )


class Reference:
    """One set of the reference's numbers, and the model, image and prompts they belong to."""

    def __init__(self, folder: Path, name: str):
        path = folder / f"{name}.json"
        if not path.is_file():
            pytest.skip(f"no {path.name} in {folder}")
        self.spec = json.loads(path.read_text(encoding="utf-8"))
        self.arrays = dict(np.load(path.with_suffix(".npz")))
        self.model = model_of(self.spec["config"], self.spec["salt"])
        size = self.spec["config"]["spatial_size"]
        rng = np.random.default_rng(self.spec["input_seed"])
        self.image = torch.from_numpy(rng.random((1, 1, *size)).astype(np.float32))
        with torch.inference_mode():
            self.embedding = self.model.encode_image(self.image)

    def prompts(self, kind: str) -> Prompts:
        points, labels, box = (torch.from_numpy(self.arrays[n]) for n in ("points", "point_labels", "box"))
        return prompts_of(kind, self.spec["organ"], points, labels, box)

    def check(self, name: str, found: Tensor, atol: float) -> None:
        np.testing.assert_allclose(found.numpy(), self.arrays[name], atol=atol, rtol=0, err_msg=name)

    @torch.inference_mode()
    def check_prompt(self, kind: str, atol: float) -> None:
        prompts, model = self.prompts(kind), self.model
        text = model.encode_names([self.spec["organ"]]) if prompts.use_text else None
        sparse = model.prompt_encoder.sparse_tokens(1, prompts.points, prompts.labels, prompts.boxes, text)
        self.check(f"sparse_{kind}", sparse, atol)
        self.check(f"iou_multimask_{kind}", model.mask_decoder.iou(model.decode(self.embedding, prompts))[:, 1:], atol)
        logits = upsample_logits(model.segment(self.embedding, prompts), self.image.shape[2:])[:, None]
        d, h, w = self.spec["stride"]
        self.check(f"logits_{kind}", logits[..., ::d, ::h, ::w], atol)


@pytest.fixture(scope="module")
def tiny(golden_dir: Path) -> Reference:
    return Reference(golden_dir, "segvol-tiny")


@pytest.fixture(scope="module")
def base(golden_dir: Path) -> Reference:
    return Reference(golden_dir, "segvol-base")


@pytest.fixture(scope="module")
def excerpt_model() -> SegVol:
    return model_of(TINY, "dev-tiny/")


@pytest.fixture(scope="module")
def excerpt_embedding(excerpt_model: SegVol) -> Tensor:
    image = np.random.default_rng(11).random((1, 1, *TINY["spatial_size"])).astype(np.float32)
    with torch.inference_mode():
        return excerpt_model.encode_image(torch.from_numpy(image))


def test_excerpt_embeddings(excerpt_model: SegVol, excerpt_embedding: Tensor) -> None:
    tokens = excerpt_embedding.flatten(2).mT[0, [0, 37], ::32]
    np.testing.assert_allclose(tokens.numpy().ravel(), EMBEDDING, atol=1e-4)
    with torch.inference_mode():
        np.testing.assert_allclose(excerpt_model.encode_names(["liver"])[0, ::16].numpy(), TEXT, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_excerpt_prompts(excerpt_model: SegVol, excerpt_embedding: Tensor, kind: str) -> None:
    prompts = prompts_of(kind, "liver", torch.tensor([POINTS]), torch.tensor([LABELS]), torch.tensor([BOX]))
    with torch.inference_mode():
        logits = upsample_logits(excerpt_model.segment(excerpt_embedding, prompts), TINY["spatial_size"])[0]
        iou = excerpt_model.mask_decoder.iou(excerpt_model.decode(excerpt_embedding, prompts))[0, 1:]
    np.testing.assert_allclose([float(logits[voxel]) for voxel in VOXELS], LOGITS[kind], atol=1e-4)
    np.testing.assert_allclose(iou.numpy(), IOU[kind], atol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["segvol-tiny", "segvol-base"])
def test_the_fill_rule_and_the_names_are_the_references(golden_dir: Path, name: str) -> None:
    spec = json.loads((golden_dir / f"{name}.json").read_text(encoding="utf-8"))
    entries = {
        key: entry for key, entry in spec["state_dict"].items() if "mean" in entry and "mask_downscaling" not in key
    }
    for key, entry in entries.items():
        assert spread(key, tuple(entry["shape"])) == pytest.approx((entry["mean"], entry["std"])), key
    with torch.device("meta"):
        clip = {CLIP_NAMES[k]: v for k, v in spec["config"]["clip"].items() if k in CLIP_NAMES}
        sizes = {k: v for k, v in spec["config"].items() if k != "clip"}
        model = SegVol(SegVolConfig(**sizes, text=ClipConfig(**clip)))
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    # Mask prompts are no part of the framework: their layers are the only ones a checkpoint has on top.
    assert shapes == {key: entry["shape"] for key, entry in entries.items()}


@pytest.mark.golden
def test_tiny_encoders(tiny: Reference) -> None:
    tiny.check("image_embedding", tiny.embedding.flatten(2).mT, 1e-4)
    with torch.inference_mode():
        tiny.check("text_embedding", tiny.model.encode_names([tiny.spec["organ"]]), 1e-4)
        tiny.check("dense_pe", tiny.model.prompt_encoder.grid_position(), 1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("kind", KINDS)
def test_tiny_prompts(tiny: Reference, kind: str) -> None:
    tiny.check_prompt(kind, 1e-4)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "spread"), [("segvol-tiny", 0.04), pytest.param("segvol-base", 0.15, marks=pytest.mark.slow)]
)
@torch.inference_mode()
def test_the_loss_of_six_prompts(golden_dir: Path, name: str, spread: float) -> None:
    """Dice + BCE of the six prompts against the box's own mask.

    The reference draws the points of its loss at random from that mask, and the seed is not known: three of the six
    prompts differ by what the points add, ± 0.04 over 144 draws of the tiny model.
    """
    reference = Reference(golden_dir, name)
    low, high = reference.arrays["box"].reshape(2, 3).astype(int)
    mask = torch.zeros(1, *reference.image.shape[2:])
    mask[(0, *(slice(a, b + 1) for a, b in zip(low, high, strict=True)))] = 1
    total = 0.0
    for kind in KINDS:
        logits = reference.model.segment(reference.embedding, reference.prompts(kind))
        total += float(segmentation_loss(upsample_logits(logits, reference.image.shape[2:]), mask))
    assert total == pytest.approx(float(reference.arrays["supervised_loss"]), abs=spread)


@pytest.mark.golden
@pytest.mark.slow
def test_base_encoders(base: Reference) -> None:
    base.check("image_embedding", base.embedding.flatten(2).mT[:, ::32], 1e-3)
    with torch.inference_mode():
        base.check("text_embedding", base.model.encode_names([base.spec["organ"]]), 1e-3)
        base.check("dense_pe", base.model.prompt_encoder.grid_position()[:, ::8], 1e-3)


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_base_prompts(base: Reference, kind: str) -> None:
    base.check_prompt(kind, 1e-3)


def hermes_tensors(spec: Mapping) -> dict[str, Tensor]:
    """The fusion layer and the classifier of the reference under the names of ContextPriors."""
    tensors = {}
    for name, entry in spec["state_dict"].items():
        group, rest = name.split(".", 1)
        if group == "modality":
            continue
        ours = f"prototypes.{rest}" if group == "classifier" else rest if rest.startswith("attn") else f"pool.{rest}"
        tensors[ours] = draw(f"{spec['salt']}{group}/{rest}", tuple(entry["shape"]), entry["mean"], entry["std"])
    return tensors


@pytest.mark.golden
@torch.inference_mode()
def test_context_priors_agree_with_hermes(golden_dir: Path) -> None:
    spec = json.loads((golden_dir / "hermes.json").read_text(encoding="utf-8"))
    arrays = np.load(golden_dir / "hermes.npz")
    channels = spec["channels"]
    priors = ContextPriors(
        spec["tasks"], spec["modalities"], channels, channels, spec["blocks"], spec["modality_tokens"]
    ).eval()
    priors.load_state_dict(hermes_tensors(spec))
    tasks, modality = torch.tensor(spec["task_index"]), torch.tensor(spec["modality_index"])
    shape = (len(tasks), channels, *spec["feature_shape"])
    image = torch.from_numpy(np.random.default_rng(spec["input_seed"]).standard_normal(shape).astype(np.float32))
    features, prototypes = priors(image, tasks, modality)
    masks = torch.einsum("bkc,bc...->bk...", prototypes, features)
    np.testing.assert_allclose(features.numpy(), arrays["features"], atol=1e-4)
    np.testing.assert_allclose(masks.numpy(), arrays["masks"], atol=1e-4)
    padded = torch.where(tasks == spec["tasks"], -1, tasks)  # the null token by its other index
    assert torch.equal(priors(image, padded, modality)[0], features)


@pytest.mark.golden
@torch.inference_mode()
def test_the_modality_head_agrees_with_hermes(golden_dir: Path) -> None:
    spec = json.loads((golden_dir / "hermes.json").read_text(encoding="utf-8"))
    arrays = np.load(golden_dir / "hermes.npz")
    tensors = {
        name.removeprefix("modality."): draw(
            f"{spec['salt']}modality/{name.removeprefix('modality.')}",
            tuple(entry["shape"]),
            entry["mean"],
            entry["std"],
        )
        for name, entry in spec["state_dict"].items()
        if name.startswith("modality.")
    }
    head = ModalityHead(spec["channels"], spec["modalities"]).eval()
    head.load_state_dict(tensors)
    n_tasks = len(spec["task_index"][0])
    logits = head(torch.from_numpy(arrays["priors"])[:, n_tasks:])
    np.testing.assert_allclose(logits.numpy(), arrays["modality_logits"], atol=1e-4)

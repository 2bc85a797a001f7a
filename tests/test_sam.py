"""SAM: equal to the reference implementation, at every kind of prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sam_cases import TINY_SAM, ours_of, picture, reference_sam
from torch import Tensor

from adaptmedseg.data.pictures.frame import Frame
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.sam import ALTERNATIVES, SAM_B, SAM_H, SAM_L, SAM_SMALL, SINGLE, Sam, SamConfig

POINTS = np.array([[12.0, 20.0], [50.5, 31.0], [3.0, 60.0]])  # (x, y), as the reference has them
LABELS = np.array([1, 0, 1])
BOX = np.array([8.0, 5.0, 61.0, 70.25])
KINDS: dict[str, dict[str, Any]] = {
    "a point": {"point_coords": POINTS[:1], "point_labels": LABELS[:1]},
    "points": {"point_coords": POINTS, "point_labels": LABELS},
    "a box": {"box": BOX},
    "points and a box": {"point_coords": POINTS, "point_labels": LABELS, "box": BOX},
    "a mask": {"mask_input": True},
    "a box and a mask": {"box": BOX, "mask_input": True},
}


def given_mask(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return (8 * np.sin(y / 7) * np.cos(x / 9))[None].astype(np.float32)


def our_prompts(kind: dict[str, Any], frame: Frame, side: int) -> Prompts:
    """The same prompts in our order (h, w), once."""

    def turned(xy: np.ndarray) -> Tensor:
        return frame.coordinates(torch.tensor(xy.reshape(1, -1, 2)[..., ::-1].copy(), dtype=torch.float32))

    return Prompts(
        torch.zeros(1, dtype=torch.long),
        ["thing"],
        ["picture"],
        use_text=False,
        points=turned(kind["point_coords"]) if "point_coords" in kind else None,
        labels=torch.tensor(kind["point_labels"])[None] if "point_labels" in kind else None,
        boxes=turned(kind["box"]) if "box" in kind else None,
        masks=torch.from_numpy(given_mask(side)) if "mask_input" in kind else None,
    )


def compare(config: SamConfig, shape: tuple[int, int], kinds: dict[str, dict[str, Any]]) -> float:
    """The largest difference of logits on the image's own pixels and of estimates, over prompts and masks."""
    from segment_anything import SamPredictor

    reference = reference_sam(config)
    ours, theirs = ours_of(reference, config), SamPredictor(reference)
    pixels = picture(*shape)
    theirs.set_image(pixels)
    frame = Frame(shape, config.image_size)
    side, worst = 4 * config.image_size // config.patch_size, 0.0
    with torch.inference_mode():
        embedding = ours.encode(ours.normalise(frame.image(pixels))[None])
        for kind in kinds.values():
            asked = dict(kind, mask_input=given_mask(side)) if "mask_input" in kind else kind
            for multimask, masks in ((False, SINGLE), (True, ALTERNATIVES)):
                expected, iou, _ = theirs.predict(**asked, multimask_output=multimask, return_logits=True)
                output = ours.decode(embedding, our_prompts(kind, frame, side), masks)
                found = frame.logits(output.logits)[0].numpy()
                assert expected.std() > 0.05  # there is something to differ in
                worst = max(worst, float(np.abs(found - expected).max()), float(np.abs(output.iou[0] - iou).max()))
    return worst


@pytest.mark.parametrize("shape", [(64, 64), (75, 120), (211, 80), (20, 33)])
def test_masks_are_the_references(shape: tuple[int, int]) -> None:
    pytest.importorskip("segment_anything")
    assert compare(TINY_SAM, shape, KINDS) < 1e-4


def test_the_encoder_is_the_references_to_rounding() -> None:
    """In float64, where what rounding makes of a padded image is out of the way."""
    pytest.importorskip("segment_anything")
    reference = reference_sam(TINY_SAM)
    ours = ours_of(reference, TINY_SAM)
    image = ours.normalise(Frame((20, 33), 64).image(picture(20, 33)))[None].double()
    with torch.inference_mode():
        expected = reference.image_encoder.double()(image)
        torch.testing.assert_close(ours.image_encoder.double()(image), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_masks_are_the_references_at_the_released_size() -> None:
    pytest.importorskip("segment_anything")
    torch.set_num_threads(2)
    assert compare(SAM_B, (600, 800), KINDS) < 1e-3


@pytest.mark.parametrize(("config", "name"), [(SAM_B, "vit_b"), (SAM_L, "vit_l"), (SAM_H, "vit_h")])
def test_released_sizes_have_the_references_tensors(config: SamConfig, name: str) -> None:
    reference = pytest.importorskip("segment_anything")
    with torch.device("meta"):
        theirs, ours = reference.sam_model_registry[name](), Sam(config)
    wanted = {key.replace(".mlp.lin", ".mlp.fc") if "image_encoder" in key else key: value.shape
              for key, value in theirs.state_dict().items()}  # fmt: skip
    assert {key: value.shape for key, value in ours.state_dict().items()} == wanted


@pytest.fixture(scope="module")
def tiny() -> Sam:
    torch.manual_seed(1)
    return Sam(TINY_SAM).eval()


def several(n: int, images: int = 1) -> Prompts:
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(n, 1, 2, generator=generator) * 30
    points = torch.rand(n, 2, 2, generator=generator) * 63
    return Prompts(
        torch.arange(n) % images, [f"thing {i}" for i in range(n)], ["picture"] * images, False,
        points, torch.tensor([[1, 0]] * n), torch.cat([low, low + 20], dim=1),
    )  # fmt: skip


def test_many_prompts_at_once_answer_as_one_by_one(tiny: Sam) -> None:
    images = torch.stack([tiny.normalise(torch.from_numpy(picture(64, 64, seed)).movedim(-1, 0)) for seed in (0, 1)])
    with torch.inference_mode():
        embedding = tiny.encode(images)
        together = several(5, images=2)
        first = tiny.decode(embedding, together)
        again = Prompts(**{**vars(together), "masks": first.logits[:, 0]})
        for prompts in (together, again):
            output = tiny.decode(embedding, prompts, (0, 1, 2, 3))
            alone = [tiny.decode(embedding, prompts.part(i, i + 1), (0, 1, 2, 3)) for i in range(5)]
            torch.testing.assert_close(output.logits, torch.cat([one.logits for one in alone]), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(output.iou, torch.cat([one.iou for one in alone]), atol=1e-4, rtol=1e-4)


def test_a_mask_prompt_changes_the_answer_and_another_size_is_refused(tiny: Sam) -> None:
    with torch.inference_mode():
        embedding, prompts = tiny.encode(torch.zeros(1, 3, 64, 64)), several(1)
        bare = tiny.decode(embedding, prompts).logits
        with_mask = tiny.decode(embedding, Prompts(**{**vars(prompts), "masks": bare[:, 0] + 5})).logits
        assert not torch.allclose(bare, with_mask)
        with pytest.raises(ValueError, match=r"mask prompts are \(16, 16\), the decoder's map is \(32, 32\)"):
            tiny.decode(embedding, Prompts(**{**vars(prompts), "masks": bare[:, 0, :16, :16]}))


def test_gradients_reach_every_parameter(tiny: Sam) -> None:
    model = Sam(TINY_SAM)
    prompts = several(3)
    embedding = model.encode(torch.rand(1, 3, 64, 64))
    first = model.decode(embedding, prompts)
    again = Prompts(**{**vars(prompts), "masks": first.logits[:, 0]})
    bare = Prompts(torch.zeros(1, dtype=torch.long), ["x"], ["y"], False, torch.rand(1, 2, 2), torch.tensor([[1, -1]]))
    outputs = [model.decode(embedding, p, (0, 1, 2, 3)) for p in (prompts, again, bare)]
    sum(output.logits.square().mean() + output.iou.square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_another_input_size_is_refused(tiny: Sam) -> None:
    with pytest.raises(ValueError, match=r"images are \(3, 64, 32\), the encoder's input is \(3, 64, 64\)"):
        tiny.encode(torch.zeros(1, 3, 64, 32))


def test_the_small_size_is_small() -> None:
    with torch.device("meta"):
        model = Sam(SAM_SMALL)
    assert 4e6 < sum(p.numel() for p in model.parameters()) < 6e6


def test_min_max_pixels_are_scaled_to_their_extremes() -> None:
    model = Sam(TINY_SAM.model_copy(update={"pixels": "min-max", "fit": "stretch"}))
    out = model.normalise(torch.tensor([[[10, 60], [110, 35]]] * 3, dtype=torch.uint8))
    assert out.shape == (3, 64, 64)
    torch.testing.assert_close(out[0, :2, :2], torch.tensor([[0.0, 0.5], [1.0, 0.25]]))

"""The adapted model: identity at the start, the gate, batches, gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import Prompts, text_prompts
from adaptmedseg.models.segvol import SegVol

TASKS = ["prostate", "liver", "spleen"]
MR = "T2 MRI"
OTHER_MR = "T1 MRI"
LORA = LayerAdapterConfig(rank=4, alpha=4.0)
PRIORS = PriorsConfig(blocks=2, modality_tokens=3)


def adapted(base: SegVol, *, lora: bool = True, priors: bool = True, gate: bool = True) -> AdaptedSegVol:
    torch.manual_seed(1)
    config = AdapterConfig(layers=[LORA] if lora else [], priors=PRIORS if priors else None, gate_by_modality=gate)
    return AdaptedSegVol(base, config, TASKS, [MR, OTHER_MR]).eval()


def perturb(tensors: dict[str, Tensor], seed: int = 3) -> None:
    """Move every tensor away from its start, zeros included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))


def views(n: int, base: SegVol) -> Tensor:
    return torch.rand(n, 1, *base.config.spatial_size, generator=torch.Generator().manual_seed(2))


def mixed_prompts(modalities: list[str]) -> Prompts:
    """Two prompts for each of two images, with text, points and boxes at once."""
    boxes = torch.tensor([[[1.0, 4, 4], [6, 20, 22]]]).expand(4, -1, -1)
    points = torch.tensor([[[3.0, 9, 9], [0, 0, 0]]]).expand(4, -1, -1)
    labels = torch.tensor([[1, 0]]).expand(4, -1)
    names = ["prostate", "liver", "spleen", "prostate"]
    return Prompts(torch.tensor([0, 0, 1, 1]), names, modalities, True, points, labels, boxes)


def output(model: nn.Module, images: Tensor, prompts: Prompts) -> Tensor:
    with torch.inference_mode():
        return model(images, prompts)


@pytest.mark.parametrize("modalities", [[MR, MR], ["CT", "CT"]])
@pytest.mark.parametrize(("lora", "priors"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("gate", [True, False])
def test_a_fresh_adapter_equals_its_base_to_the_bit(
    tiny_base: SegVol, lora: bool, priors: bool, gate: bool, modalities: list[str]
) -> None:
    images = views(2, tiny_base)
    several = text_prompts([["prostate", "liver", "pancreas"], ["spleen"]], modalities)
    expected = [output(tiny_base, images, prompts) for prompts in (several, mixed_prompts(modalities))]
    model = adapted(tiny_base, lora=lora, priors=priors, gate=gate)
    found = [output(model, images, prompts) for prompts in (several, mixed_prompts(modalities))]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert model.trained_tensors()


def test_the_gate_keeps_ct_to_the_bit_whatever_was_learnt(tiny_base: SegVol) -> None:
    images = views(2, tiny_base)
    expected = {m: output(tiny_base, images, mixed_prompts([m, m])) for m in ("CT", MR)}
    model = adapted(tiny_base)
    perturb(model.trained_tensors())
    assert torch.equal(output(model, images, mixed_prompts(["CT", "CT"])), expected["CT"])
    assert (output(model, images, mixed_prompts([MR, MR])) - expected[MR]).abs().max() > 1e-2


def test_without_the_gate_every_modality_is_adapted(tiny_base: SegVol) -> None:
    images, prompts = views(2, tiny_base), mixed_prompts(["CT", "CT"])
    expected = output(tiny_base, images, prompts)
    model = adapted(tiny_base, gate=False)
    perturb(model.trained_tensors())
    assert (output(model, images, prompts) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("modalities", [["CT", MR], [MR, "CT"], [OTHER_MR, MR], [MR, MR]])
def test_a_batch_equals_its_images_one_by_one(tiny_base: SegVol, modalities: list[str]) -> None:
    images, prompts = views(2, tiny_base), mixed_prompts(modalities)
    model = adapted(tiny_base)
    perturb(model.trained_tensors())
    together = output(model, images, prompts)
    for image in range(2):
        rows = prompts.image_index == image
        own = prompts.select(rows)
        own = Prompts(
            torch.zeros(2, dtype=torch.long),
            own.structures,
            [modalities[image]],
            True,
            own.points,
            own.labels,
            own.boxes,
        )
        alone = output(model, images[image : image + 1], own)
        torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=1e-5)


def test_prompts_in_any_order_give_the_same_masks(tiny_base: SegVol) -> None:
    images = views(2, tiny_base)
    model = adapted(tiny_base)
    perturb(model.trained_tensors())
    forward = Prompts(torch.tensor([0, 1, 1, 0]), ["liver", "spleen", "prostate", "spleen"], [MR, OTHER_MR])
    backward = Prompts(torch.tensor([0, 1, 1, 0]), ["spleen", "prostate", "spleen", "liver"], [MR, OTHER_MR])
    found, reversed_ = output(model, images, forward), output(model, images, backward)
    torch.testing.assert_close(found, reversed_.flip(0), atol=1e-5, rtol=1e-5)


def test_an_unknown_task_is_asked_by_text_alone(tiny_base: SegVol) -> None:
    images, prompts = views(1, tiny_base), text_prompts([["pancreas", "liver"]], [MR])
    expected = output(tiny_base, images, prompts)
    model = adapted(tiny_base, lora=False)
    assert model.priors is not None
    perturb(dict(model.priors.prototypes.named_parameters()))  # fusion stays an identity, prototypes say something
    found = output(model, images, prompts)
    assert torch.equal(found[0], expected[0])
    assert (found[1] - expected[1]).abs().max() > 1e-3


def test_gradients_reach_all_trained_tensors_and_nothing_else(tiny_base: SegVol) -> None:
    model = adapted(tiny_base)
    trained = model.trained_tensors()
    assert all(name.split(".")[0] in ("rslora", "priors") for name in trained)
    base_names = {name for name, _ in model.named_parameters() if name.startswith("base.")}
    assert len(base_names) + len(trained) == len(list(model.parameters()))
    assert base_names == {f"base.{name}" for name in tiny_base.state_dict() if "gaussian" not in name}
    perturb(trained)  # at the start the layers behind a zero layer get none
    prompts = text_prompts([["prostate", "pancreas"], ["liver", "spleen"]], [MR, OTHER_MR])
    model(views(2, tiny_base), prompts).square().mean().backward()
    asked = {name: p for name, p in trained.items() if "modality_head" not in name}  # which has a loss of its own
    silent = [name for name, p in asked.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []
    assert [name for name, p in model.named_parameters() if name in base_names and p.grad is not None] == []
    rows = model.priors.pool.task_prior.grad.abs().amax(1)  # type: ignore[union-attr]
    assert (rows > 0).tolist() == [True, True, True, False]  # nothing sees the null token


def test_the_first_step_leaves_the_start(tiny_base: SegVol) -> None:
    model = adapted(tiny_base)
    model(views(1, tiny_base), text_prompts([["prostate"]], [MR])).square().mean().backward()
    moved = {name for name, p in model.trained_tensors().items() if p.grad is not None and p.grad.abs().max() > 0}
    assert "priors.prototypes.classifier_pred.1.fc2.weight" in moved
    assert any(name.endswith(".up") for name in moved)
    assert not any(name.endswith(".down") for name in moved)


def test_training_never_changes_the_base(tiny_base: SegVol) -> None:
    before = copy.deepcopy(tiny_base.state_dict())
    model = adapted(tiny_base)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(views(1, tiny_base), text_prompts([["prostate"]], [MR])).square().mean().backward()
        optimiser.step()
    after = model.base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_base_keeps_its_names_and_is_itself_at_rest(tiny_base: SegVol) -> None:
    images, prompts = views(1, tiny_base), text_prompts([["prostate"]], [MR])
    weights, plain = copy.deepcopy(tiny_base.state_dict()), output(tiny_base, images, prompts)
    model = adapted(tiny_base)
    perturb(model.trained_tensors())
    assert model.base.state_dict().keys() == weights.keys()
    model.base.load_state_dict(weights)
    assert torch.equal(output(model.base, images, prompts), plain)
    assert not torch.equal(output(model, images, prompts), plain)

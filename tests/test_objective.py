"""What a step asks and what it counts: kinds of prompt, losses, clicks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_training import MR, SIZE, masks_of, stream, view

from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import Prompts, text_prompts
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.training.clicks import click_on_errors, with_click
from adaptmedseg.training.learning_config import KINDS, BoxJitterConfig, LossConfig, PromptConfig
from adaptmedseg.training.losses import bce_loss, focal_loss, over_images, prompt_losses, target_on_map
from adaptmedseg.training.objective import ModalityObjective, Objective, Question
from adaptmedseg.training.simulate import jitter_of, simulate_boxes

EVEN = dict.fromkeys(KINDS, 1 / 6)
SIX = PromptConfig(**EVEN, kinds=6)


def question(prompts: PromptConfig) -> Question:
    batch = stream([view()], batch_size=2, structures_per_image=2, prompts=prompts).batch(0)
    return batch.question(torch.device("cpu"))


def objective(model: torch.nn.Module, loss: LossConfig | None = None, clicks: int = 0) -> Objective:
    return Objective(model, loss or LossConfig(), ModalityObjective(model, [MR]), clicks)


# Losses -----------------------------------------------------------------------------------------


def test_the_focal_loss_by_hand() -> None:
    # Probabilities 1/2 of a one, 3/4 of a one, 1/4 of a nought and 3/4 of a nought: misses 1/2, 1/4, 1/4, 3/4.
    logits = torch.tensor([[[[0.0, math.log(3), -math.log(3), math.log(3)]]]])
    target = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    expected = (0.25 * math.log(2) + 2 * math.log(4 / 3) / 16 + 9 / 16 * math.log(4)) / 4
    torch.testing.assert_close(focal_loss(logits, target, 2.0), torch.tensor([expected]))
    torch.testing.assert_close(focal_loss(logits, target, 0.0), bce_loss(logits, target))


def test_a_saturated_voxel_has_a_finite_gradient() -> None:
    logits = torch.tensor([[[[200.0, -200.0]]]], requires_grad=True)
    focal_loss(logits, torch.tensor([[[[1.0, 0.0]]]]), 0.5).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_weights_of_a_loss_by_hand() -> None:
    logits, target = torch.zeros(1, 1, 1, 4), torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    # Probabilities of a half: overlap 1, sums 2 and 2, one in the denominator; each voxel costs log 2.
    dice, bce = 1 - 2 / 5, math.log(2)
    for config, expected in [
        (LossConfig(), dice + bce),
        (LossConfig(dice=2.0, voxels=0.0), 2 * dice),
        (LossConfig(dice=0.0, voxels=3.0), 3 * bce),
        (LossConfig(focal_gamma=2.0), dice + bce / 4),
    ]:
        assert prompt_losses(logits, target, config).item() == pytest.approx(expected)


def test_the_highest_loss_of_each_image_by_hand() -> None:
    losses, images = torch.tensor([1.0, 5.0, 2.0, 4.0], requires_grad=True), torch.tensor([0, 0, 2, 2])
    assert over_images(losses, images, LossConfig()).item() == 3
    highest = over_images(losses, images, LossConfig(over="highest"))
    assert highest.item() == 4.5
    highest.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [0, 0.5, 0, 0.5]


def test_losses_that_count_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="nothing would be learnt"):
        LossConfig(dice=0, voxels=0)


# Kinds of prompt ---------------------------------------------------------------------------------


def test_six_kinds_are_the_references() -> None:
    batch = stream([view()], prompts=SIX).batch(3)
    seen = {(kind.use_text, kind.boxes is not None, kind.points is not None) for kind in batch.kinds}
    assert len(batch.kinds) == 6
    assert seen == {
        (True, False, True),
        (True, True, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (False, True, True),
    }
    assert len({id(kind.points) for kind in batch.kinds if kind.points is not None}) == 1
    assert all(kind.structures == batch.prompts.structures for kind in batch.kinds)


def test_a_subset_of_kinds_is_drawn_without_repeats() -> None:
    source = stream([view()], prompts=PromptConfig(**EVEN, kinds=2))
    asked = [
        [(kind.use_text, kind.boxes is not None, kind.points is not None) for kind in source.batch(i).kinds]
        for i in range(40)
    ]
    assert all(len(set(kinds)) == 2 for kinds in asked)
    assert len({kind for kinds in asked for kind in kinds}) == 6


def test_more_kinds_than_have_a_share_are_refused() -> None:
    with pytest.raises(ValidationError, match="2 kinds of prompt a step, but 1 with a share above 0"):
        PromptConfig(kinds=2)


def test_the_loss_of_six_kinds_is_the_mean_of_each_asked_alone(tiny_base: SegVol) -> None:
    asked, goal = question(SIX), objective(tiny_base)
    with torch.no_grad():
        together = goal(asked)
        alone = [goal(asked._replace(kinds=[kind])).masks for kind in asked.kinds]
    torch.testing.assert_close(together.masks, torch.stack(alone).mean())
    assert together.modality == 0


def test_an_image_is_encoded_once_whatever_is_asked(tiny_base: SegVol) -> None:
    calls: list[int] = []
    tiny_base.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    objective(tiny_base, clicks=2)(question(SIX)).masks.backward()
    assert len(calls) == 1


def test_the_modality_loss_stands_beside_the_masks(tiny_base: SegVol) -> None:
    priors = PriorsConfig(width=32, modality_loss=0.5)
    model = AdaptedSegVol(tiny_base, AdapterConfig(layers=[], priors=priors), ["liver"], [MR, "CT"])
    prompts = text_prompts([["liver"], ["liver"]], [MR, "CT"])
    asked = Question(torch.rand(2, 1, *SIZE), torch.rand(2, *SIZE) > 0.5, [prompts], [0, 1])
    modality = ModalityObjective(model, [MR, "CT"])
    losses = Objective(model, LossConfig(), modality)(asked)
    assert losses.modality > 0
    expected = modality.loss(model.modality_logits(model.embed(asked.images, prompts.modalities)), prompts)
    torch.testing.assert_close(losses.modality, expected)


# Boxes by size -----------------------------------------------------------------------------------


def test_box_jitter_goes_by_the_structures_share_of_the_view() -> None:
    config = BoxJitterConfig(small=0.5, medium=0.1, large=0.0)
    sizes = {1e-4: 0.5, 5e-3: 0.1, 0.02: 0.0}
    for share, expected in sizes.items():
        mask = np.zeros((10, 100, 100), bool)
        mask.reshape(-1)[: int(share * mask.size)] = True
        assert jitter_of(mask, config) == expected
    large = np.zeros((1, 10, 100, 100), bool)
    large[0, 2:8, 10:90, 20:60] = True
    boxes = simulate_boxes(large, np.random.default_rng(0), config)
    assert boxes[0].tolist() == [[2, 10, 20], [7, 89, 59]]


# Clicks ------------------------------------------------------------------------------------------


def test_a_click_falls_into_the_one_wrong_cell() -> None:
    logits = torch.full((3, 2, 4, 4), -1.0)
    target = torch.zeros(3, 2, 4, 4)
    target[0, 1, 2, 3] = 1.0  # missed
    logits[1, 0, 1, 0] = 1.0  # made up
    points, labels = click_on_errors(logits, target, (8, 32, 32), [torch.Generator().manual_seed(0)] * 3)
    assert labels.tolist() == [[1], [0], [-1]]
    # A cell is 4 × 8 × 8 voxels, its middle lies at 4 · (1 + ½) − ½ and so on.
    assert points[0].tolist() == [[5.5, 19.5, 27.5]]
    assert points[1].tolist() == [[1.5, 11.5, 3.5]]


def test_clicks_fall_evenly_over_errors_and_only_there() -> None:
    target = torch.zeros(1, 1, 1, 4)
    target[..., :2] = 1
    logits = torch.tensor([[[[-1.0, 1.0, 1.0, -1.0]]]])  # cells 0 and 2 are wrong
    generator = torch.Generator().manual_seed(0)
    drawn = [click_on_errors(logits, target, (1, 1, 4), [generator]) for _ in range(200)]
    places = [int(points[0, 0, 2]) for points, _ in drawn]
    assert set(places) == {0, 2}
    assert 60 < places.count(0) < 140
    assert all(int(labels) == (1 if place == 0 else 0) for place, (_, labels) in zip(places, drawn, strict=True))


def test_a_click_joins_the_points_that_there_are() -> None:
    prompts = text_prompts([["liver"]], [MR])
    first = with_click(prompts, torch.ones(1, 1, 3), torch.ones(1, 1))
    second = with_click(first, torch.zeros(1, 1, 3), torch.zeros(1, 1))
    assert second.points is not None
    assert second.labels is not None
    assert second.points[0, :, 0].tolist() == [1, 0]
    assert second.labels.tolist() == [[1, 0]]


def test_rounds_of_clicks_count_alike(tiny_base: SegVol) -> None:
    asked = question(PromptConfig())
    with torch.no_grad():
        found = objective(tiny_base, clicks=1)(asked).masks
        prompts = asked.kinds[0]
        embedding = tiny_base.embed(asked.images, prompts.modalities)

        def ask(prompt: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
            logits = tiny_base.segment(embedding, prompt)
            return logits, target_on_map(asked.masks, logits.shape[1:])

        logits, target = ask(prompts)
        generators = [torch.Generator().manual_seed(seed) for seed in asked.seeds]
        of_prompts = [generators[image] for image in prompts.image_index.tolist()]
        clicked = with_click(prompts, *click_on_errors(logits, target, SIZE, of_prompts))
        rounds = [
            prompt_losses(logits, target, LossConfig()).mean(),
            prompt_losses(*ask(clicked), LossConfig()).mean(),
        ]
    torch.testing.assert_close(found, torch.stack(rounds).mean())


# Structures that nobody annotated ------------------------------------------------------------------


def test_only_annotated_structures_are_asked_and_counted() -> None:
    full, partial = view(), view("CT", 3)
    del partial.bits["liver"]
    source = stream([full, partial], batch_size=2, structures_per_image=3)
    for index in range(8):
        prompts = source.batch(index).prompts
        asked = {
            (prompts.modalities[image], name)
            for image, name in zip(prompts.image_index.tolist(), prompts.structures, strict=True)
        }
        assert ("CT", "liver") not in asked
        assert {name for look, name in asked if look == MR} == set(masks_of(full))

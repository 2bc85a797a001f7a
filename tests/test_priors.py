"""Context priors: identity at the start, all tasks in one pass, answers that hold alone, the modality head, sizes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_adapted import MR, OTHER_MR, output, perturb, views
from torch import Tensor, nn

from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import Prompts, text_prompts
from adaptmedseg.models.segvol import RELEASED, SegVol, SegVolConfig
from adaptmedseg.models.vocabulary import Vocabulary
from adaptmedseg.modules.context_priors import ContextPriors
from adaptmedseg.modules.priors.heads import NEVER_SEEN
from adaptmedseg.modules.priors.joint import JointFusionBlock
from adaptmedseg.modules.priors.layout import TokenLayout
from adaptmedseg.training.objective import ModalityObjective, modality_loss

TASKS = ["prostate", "liver", "spleen", "bladder"]
FUSIONS, HEADS, ANSWERS = ("two-way", "joint"), ("multiplicative", "additive"), ("together", "independent")
KINDS = list(product(FUSIONS, HEADS, ANSWERS))


def with_priors(base: SegVol, modalities: tuple[str, ...] = (MR, OTHER_MR), **priors: object) -> AdaptedSegVol:
    torch.manual_seed(1)
    config = PriorsConfig.model_validate({"blocks": 1, "modality_tokens": 3} | priors)
    return AdaptedSegVol(base, AdapterConfig(layers=[], priors=config), TASKS, list(modalities)).eval()


def trained(base: SegVol, **priors: object) -> AdaptedSegVol:
    model = with_priors(base, **priors)
    perturb(model.trained_tensors())
    return model


@pytest.fixture
def wide_base(tiny_config: SegVolConfig) -> SegVol:
    """A tiny SegVol whose embedding is wider than the fusion can be."""
    torch.manual_seed(0)
    return SegVol(tiny_config.model_copy(update={"embed_dim": 64})).eval()


@pytest.mark.parametrize(("fusion", "head"), list(product(FUSIONS, HEADS)))
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_every_combination_starts_as_an_identity(tiny_base: SegVol, fusion: str, head: str, blocks: int) -> None:
    images, prompts = views(2, tiny_base), text_prompts([["prostate", "liver", "colon"], ["spleen"]], [MR, OTHER_MR])
    expected = output(tiny_base, images, prompts)
    for answers in ANSWERS:
        model = with_priors(tiny_base, fusion=fusion, head=head, blocks=blocks, answers=answers)
        assert torch.equal(output(model, images, prompts), expected)


@pytest.mark.parametrize(("fusion", "head"), list(product(FUSIONS, HEADS)))
def test_a_narrow_fusion_starts_as_an_identity_and_learns(wide_base: SegVol, fusion: str, head: str) -> None:
    images, prompts = views(1, wide_base), text_prompts([["prostate", "liver"]], [MR])
    expected = output(wide_base, images, prompts)
    model = with_priors(wide_base, fusion=fusion, head=head, width=32, blocks=2)
    assert torch.equal(output(model, images, prompts), expected)
    assert model.priors is not None
    assert model.priors.pool.task_prior.shape[1] == 32
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        model(images, prompts).square().mean().backward()
        optimiser.step()
    silent = [
        name
        for name, p in model.priors.named_parameters()
        if "modality_head" not in name and (p.grad is None or not p.grad.abs().max() > 0)
    ]
    assert silent == []


@pytest.mark.parametrize(("fusion", "head", "answers"), KINDS)
def test_a_batch_of_modalities_and_task_lists_equals_its_images_alone(
    tiny_base: SegVol, fusion: str, head: str, answers: str
) -> None:
    model = trained(tiny_base, fusion=fusion, head=head, answers=answers, blocks=2)
    images = views(3, tiny_base)
    lists, looks = [["prostate"], ["spleen", "colon", "liver", "bladder"], ["colon"]], [MR, OTHER_MR, MR]
    together = output(model, images, text_prompts(lists, looks))
    alone = [output(model, images[i : i + 1], text_prompts([lists[i]], [looks[i]])) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_independent_answers_do_not_depend_on_what_else_is_asked(tiny_base: SegVol, data: st.DataObject) -> None:
    kind = {name: data.draw(st.sampled_from(values)) for name, values in (("fusion", FUSIONS), ("head", HEADS))}
    asked = data.draw(st.lists(st.sampled_from([*TASKS, "colon", "aorta"]), min_size=1, max_size=7))
    model = trained(tiny_base, **kind, answers="independent", blocks=2)
    image = views(1, tiny_base)
    found = output(model, image, text_prompts([asked], [MR]))
    alone = torch.cat([output(model, image, text_prompts([[name]], [MR])) for name in asked])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("fusion", "head", "answers"), KINDS)
def test_the_order_and_repetition_of_tasks_mean_nothing(
    tiny_base: SegVol, fusion: str, head: str, answers: str
) -> None:
    model, image = trained(tiny_base, fusion=fusion, head=head, answers=answers), views(1, tiny_base)
    one = output(model, image, text_prompts([["liver", "spleen", "prostate"]], [MR]))
    other = output(model, image, text_prompts([["prostate", "liver", "spleen", "liver"]], [MR]))
    torch.testing.assert_close(other, one[[2, 0, 1, 0]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_tasks_asked_together_see_each_other_only_if_told_to(tiny_base: SegVol, fusion: str) -> None:
    image = views(1, tiny_base)
    changes = {}
    for answers in ANSWERS:
        model = trained(tiny_base, fusion=fusion, answers=answers, blocks=2)
        alone = output(model, image, text_prompts([["liver"]], [MR]))
        beside = output(model, image, text_prompts([["liver", "spleen"]], [MR]))[:1]
        changes[answers] = float((alone - beside).abs().max())
    assert changes["together"] > 1e-3
    assert changes["independent"] < 1e-5


@pytest.mark.parametrize(("fusion", "head"), list(product(FUSIONS, HEADS)))
def test_gradients_reach_every_token_that_is_asked_for_and_no_other(tiny_base: SegVol, fusion: str, head: str) -> None:
    model = trained(tiny_base, fusion=fusion, head=head)
    model(views(1, tiny_base), text_prompts([["prostate", "colon", "spleen"]], [OTHER_MR])).square().mean().backward()
    assert model.priors is not None
    pool = model.priors.pool
    tasks = [bool(row.abs().max() > 0) for row in pool.task_prior.grad]
    looks = [bool(row.abs().max() > 0) for row in pool.modality_prior.grad]
    assert tasks == [True, False, True, False, False]  # the last is the null token, which nothing sees
    assert looks == [False, True]


def test_an_unknown_modality_gets_the_mean_of_all_token_sets(tiny_base: SegVol) -> None:
    model = trained(tiny_base)
    assert model.priors is not None
    pool = model.priors.pool
    found = pool.modalities(torch.tensor([1, -1, 0]))
    torch.testing.assert_close(found[1], (found[0] + found[2]) / 2)
    assert torch.equal(found[[2, 0]], pool.modality_prior)


def test_hermes_sees_null_tokens_and_hidden_columns_are_not_seen() -> None:
    torch.manual_seed(0)
    priors = ContextPriors(3, 2, 32, 8, 1, 2).eval()
    perturb(dict(priors.named_parameters()))
    image, modality = torch.randn(1, 32, 2, 2, 2), torch.tensor([1])
    with torch.inference_mode():
        short = priors(image, torch.tensor([[0]]), modality)[0]
        padded = torch.tensor([[0, -1]])
        assert (priors(image, padded, modality)[0] - short).abs().max() > 1e-3
        hidden = priors(image, padded, modality, padded < 0)[0]
    torch.testing.assert_close(hidden, short, atol=1e-5, rtol=1e-5)


def test_the_joint_layer_agrees_with_torch(tiny_base: SegVol) -> None:
    """Against torch's own pre-norm transformer layer with the same weights."""
    torch.manual_seed(0)
    block = JointFusionBlock(32)
    perturb(dict(block.named_parameters()))
    reference = nn.TransformerEncoderLayer(32, 4, 8, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    attention = reference.self_attn
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([block.attn.to_q.weight, block.attn.to_kv.weight]))
        attention.in_proj_bias.zero_()
    for ours, theirs in (
        (block.attn.to_out, attention.out_proj),
        (block.norm1, reference.norm1),
        (block.norm2, reference.norm2),
        (block.ffn.fc1, reference.linear1),
        (block.ffn.fc2, reference.linear2),
    ):
        theirs.load_state_dict(ours.state_dict())
    features, priors = torch.randn(2, 70, 32), torch.randn(2, 5, 32)  # 70 tokens take the fused kernel
    groups = block.group_embed[torch.tensor([0] * 70 + [1] * 3 + [2] * 2)]
    expected = reference(torch.cat([features, priors], dim=1) + groups)
    found, tokens = block(features, priors, TokenLayout(3))
    torch.testing.assert_close(tokens, expected[:, 70:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, features + block.feature_scale * expected[:, :70], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(block.update_priors(features, priors, TokenLayout(3)), tokens, atol=1e-5, rtol=1e-5)


# Prompt tokens --------------------------------------------------------------------------


def prompt_tokens_only(base: SegVol) -> AdaptedSegVol:
    config = AdapterConfig(layers=[], priors=None, prompt_tokens=True)
    return AdaptedSegVol(base, config, TASKS, [MR, OTHER_MR]).eval()


def test_prompt_tokens_start_as_an_identity_with_a_gradient(tiny_base: SegVol) -> None:
    images, prompts = views(2, tiny_base), text_prompts([["prostate", "colon"], ["spleen"]], [MR, OTHER_MR])
    expected = output(tiny_base, images, prompts)
    model = prompt_tokens_only(tiny_base)
    assert model.trained_tensors().keys() == {"prompt_tokens.task_token", "prompt_tokens.modality_token"}
    assert torch.equal(output(model, images, prompts), expected)
    model(images, text_prompts([["prostate", "colon"], ["spleen"]], [MR, "CT"])).square().mean().backward()
    assert model.prompt_tokens is not None
    moved = [bool(row.abs().max() > 0) for row in model.prompt_tokens.task_token.grad]
    assert moved == [True, False, False, False]  # spleen was asked of a CT image, which passes the gate
    assert [bool(row.abs().max() > 0) for row in model.prompt_tokens.modality_token.grad] == [True, False]


def test_a_structure_without_a_prompt_token_is_asked_as_of_the_base(tiny_base: SegVol) -> None:
    images, prompts = views(1, tiny_base), text_prompts([["colon", "liver"]], [MR])
    expected = output(tiny_base, images, prompts)
    model = prompt_tokens_only(tiny_base)
    assert model.prompt_tokens is not None
    perturb({"task": model.prompt_tokens.task_token})
    found = output(model, images, prompts)
    assert torch.equal(found[0], expected[0])
    assert not torch.equal(found[1], expected[1])


# The modality head ----------------------------------------------------------------------


def test_the_modality_head_is_silent_until_it_learnt(tiny_base: SegVol) -> None:
    model, image = with_priors(tiny_base), views(1, tiny_base)
    with torch.inference_mode():
        assert model.modality_shares(model.embed(image, [MR])) == {}
        assert ModalityObjective(model, [MR, OTHER_MR]).active
        shares = model.modality_shares(model.embed(image, [MR]))
    assert shares.keys() == {MR, OTHER_MR}
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_modality_loss_teaches_from_the_image_and_not_from_the_statement(tiny_base: SegVol, fusion: str) -> None:
    model = with_priors(tiny_base, fusion=fusion)
    objective = ModalityObjective(model, [MR, OTHER_MR, MR])
    assert (objective.weight, objective.note) == (0.01, "")
    images = views(2, tiny_base)
    images[1] = 1 - images[1] ** 4
    prompts = text_prompts([["prostate"], ["liver"]], [MR, OTHER_MR])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(12):
        loss = objective.loss(model.modality_logits(model.embed(images, prompts.modalities)), prompts)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.1 < losses[0]
    with torch.inference_mode():
        for stated, (image, truth) in product((MR, OTHER_MR), zip(images, (MR, OTHER_MR), strict=True)):
            shares = model.modality_shares(model.embed(image[None], [stated]))
            assert shares[truth] > 0.8, (stated, truth)


def test_the_modality_loss_has_a_gradient_in_tokens_fusion_and_head(tiny_base: SegVol) -> None:
    model = with_priors(tiny_base)
    objective = ModalityObjective(model, [MR, OTHER_MR])
    prompts = text_prompts([["prostate"], ["liver"]], [MR, OTHER_MR])
    logits = model.modality_logits(model.embed(views(2, tiny_base), prompts.modalities))
    objective.loss(logits, prompts).backward()
    reached = {name for name, p in model.trained_tensors().items() if p.grad is not None and p.grad.abs().max() > 0}
    assert {"priors.pool.modality_prior", "priors.modality_head.classifier.fc2.weight"} <= reached
    assert any("prior_aggregate_block" in name for name in reached)
    assert "priors.pool.task_prior" not in reached


def test_the_modality_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, NEVER_SEEN], [2.0, 0.0, NEVER_SEEN]])
    expected = (torch.log(torch.tensor(2.0)) + torch.log1p(torch.exp(torch.tensor(2.0)))) / 2
    torch.testing.assert_close(modality_loss(logits, torch.tensor([0, 1])), expected)


@pytest.mark.parametrize(("weight", "looks", "note"), [(0.01, [MR, MR], True), (0.0, [MR, OTHER_MR], False)])
def test_one_modality_or_no_weight_means_no_loss(
    tiny_base: SegVol, weight: float, looks: list[str], note: bool
) -> None:
    objective = ModalityObjective(with_priors(tiny_base, modality_loss=weight), looks)
    assert not objective.active
    assert bool(objective.note) is note


# Vocabulary, configuration, size --------------------------------------------------------

NAMES = st.lists(st.sampled_from([*TASKS, "colon", "aorta"]), max_size=6)


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_the_task_table_holds_each_task_once_and_finds_it_again(lists: list[list[str]]) -> None:
    vocabulary = Vocabulary(tuple(TASKS), (MR,))
    prompts = text_prompts(lists, [MR] * len(lists))
    table = vocabulary.task_table(prompts)
    for row, names in zip(table.tasks.tolist(), lists, strict=True):
        known = sorted({TASKS.index(name) for name in names if name in TASKS})
        assert row == known + [-1] * (table.tasks.shape[1] - len(known))
    found = table.index_of_prompts(prompts.image_index).tolist()
    assert found == [vocabulary.task(name) for name in prompts.structures]
    values = table.of_prompts(table.tasks[..., None] + 1.0, prompts.image_index)
    assert values[:, 0].tolist() == [index + 1.0 for index in found]


def test_swapped_names_use_another_token(tiny_base: SegVol) -> None:
    vocabulary = Vocabulary(tuple(TASKS), (MR, OTHER_MR), {"liver": "spleen", "spleen": None, MR: OTHER_MR})
    assert [vocabulary.task(name) for name in ("liver", "spleen", "prostate")] == [2, -1, 0]
    assert vocabulary.modality(MR) == vocabulary.modality(OTHER_MR) == 1


@pytest.mark.parametrize(
    "wrong", [{"fusion": "three-way"}, {"blocks": 5}, {"width": 48}, {"width": 0}, {"modality_loss": -1}, {"heads": 4}]
)
def test_impossible_priors_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PriorsConfig.model_validate(wrong)


def _numbers(module: nn.Module | dict[str, Tensor]) -> int:
    tensors = module.values() if isinstance(module, dict) else module.parameters()
    return sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize(("fusion", "head"), list(product(FUSIONS, HEADS)))
def test_at_the_released_size_an_adapter_of_rank_8_stays_below_25_megabytes(fusion: str, head: str) -> None:
    layers = [
        LayerAdapterConfig(rank=8, targets=["image_encoder.*", "mask_decoder.transformer.*"]),
    ]
    config = AdapterConfig(layers=layers, priors=PriorsConfig.model_validate({"fusion": fusion, "head": head}))
    with torch.device("meta"):
        model = AdaptedSegVol(SegVol(RELEASED), config, [f"task {i}" for i in range(21)], ["CT", MR, OTHER_MR])
    assert _numbers(model.trained_tensors()) * 4 < 25e6
    assert model.priors is not None
    assert 1e5 < _numbers(model.priors) < 3e6


def test_points_and_boxes_take_task_tokens_too(tiny_base: SegVol) -> None:
    boxes = torch.tensor([[[1.0, 4, 4], [6, 20, 22]]])
    prompts = Prompts(torch.tensor([0]), ["liver"], [MR], False, boxes=boxes)
    image = views(1, tiny_base)
    expected = output(tiny_base, image, prompts)
    assert (output(trained(tiny_base, head="additive"), image, prompts) - expected).abs().max() > 1e-3

"""The kinds of adapters: identity at the start, equations, targets, and agreement with another library."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from adapter_cases import (
    CT,
    EVERYWHERE,
    KINDS,
    MR,
    TASKS,
    WHOLE,
    WHOLE_ALONE,
    adapted,
    answer,
    one_kind,
    perturb,
    views,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adaptmedseg.adapters.bottleneck import bottlenecks
from adaptmedseg.adapters.bypass import Switch
from adaptmedseg.adapters.low_rank import LooseLoRA, LoRA, Rows, all_rows, qv_rows, scaling
from adaptmedseg.adapters.targets import alike, choose
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapter_config import AdapterConfig, Kind, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import text_prompts
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.modules.vit import EncoderBlock

CONFIGS = {kind: one_kind(kind) for kind in KINDS} | {
    "whole": WHOLE_ALONE,
    "all": AdapterConfig(
        layers=[LayerAdapterConfig(kind=kind, rank=2, targets=EVERYWHERE) for kind in KINDS],
        priors=PriorsConfig(blocks=1, modality_tokens=2),
        train=WHOLE,
    ),
}


@pytest.mark.parametrize("modality", [MR, CT])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_starts_as_the_base_to_the_bit(tiny_base: SegVol, name: str, gate: bool, modality: str) -> None:
    expected = answer(tiny_base, tiny_base)
    config = CONFIGS[name].model_copy(update={"gate_by_modality": gate})
    assert torch.equal(answer(adapted(tiny_base, config), tiny_base, modality), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_learns_and_its_gate_keeps_the_base_to_the_bit(tiny_base: SegVol, name: str) -> None:
    expected = answer(tiny_base, tiny_base)
    weights = copy.deepcopy(tiny_base.state_dict())
    model = perturb(adapted(tiny_base, CONFIGS[name]))
    assert (answer(model, tiny_base, MR) - expected).abs().max() > 1e-2
    assert torch.equal(answer(model, tiny_base, CT), expected)
    after = model.base.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_all_that_is_trained_and_nothing_of_the_base(tiny_base: SegVol, name: str) -> None:
    model = perturb(adapted(tiny_base, CONFIGS[name])).train()
    prompts = text_prompts([TASKS], [MR])
    model(views(1, tiny_base), prompts).square().mean().backward()
    silent = {key for key, p in model.trained_tensors().items() if p.grad is None or not p.grad.abs().max() > 0}
    # A prompt by name alone meets no points, boxes, IoU head, or masks for ambiguous prompts; the modality head learns
    # from its own loss.
    unasked = ("prompt_encoder", "iou_", "hypernetworks", "modality_head")
    asked = {key for key in silent if not any(part in key for part in unasked)}
    assert asked == set()
    assert all(p.grad is None for p in model.base.parameters())


def test_a_copy_is_a_model_of_its_own(tiny_base: SegVol) -> None:
    model = adapted(tiny_base, CONFIGS["all"])
    before = answer(model, tiny_base)
    twin = perturb(copy.deepcopy(model))
    assert torch.equal(answer(model, tiny_base), before)
    assert not torch.equal(answer(twin, tiny_base), before)


# Equations ------------------------------------------------------------------------------


def filled(module: nn.Module) -> nn.Module:
    """All parameters random."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize(("kind", "expected"), [("lora", 1.5), ("rslora", 3.0), ("qv_lora", 1.5), ("loose_lora", 1.5)])
def test_the_scale_of_each_kind(kind: Kind, expected: float) -> None:
    assert scaling(kind, rank=4, alpha=6.0) == expected


@given(
    batch=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    rank=st.integers(1, 4),
    scale=st.floats(0.1, 4),
    strength=st.floats(-2, 2),
)
@settings(max_examples=25, deadline=None)
def test_lora_adds_its_product(batch: list[int], rank: int, scale: float, strength: float) -> None:
    linear = filled(nn.Linear(5, 6))
    assert isinstance(linear, nn.Linear)
    bypass = LoRA(Switch(on=True, scale=strength), linear, all_rows(linear), rank, scale)
    filled(bypass)
    x = torch.randn(*batch, 5)
    expected = F.linear(x, linear.weight, linear.bias) + scale * strength * (x @ bypass.down.mT) @ bypass.up.mT
    bypass.attach(linear)
    torch.testing.assert_close(linear(x), expected, atol=1e-4, rtol=1e-4)
    bypass.switch.on = False
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))


def test_q_and_v_of_a_fused_layer_have_their_own_factors_and_k_stays() -> None:
    linear = nn.Linear(4, 12, bias=False)
    bypass = LoRA(Switch(on=True), linear, qv_rows("blocks.0.attn.qkv", linear), 2, 0.5)
    assert {name for name, _ in bypass.named_parameters()} == {"down_q", "up_q", "down_v", "up_v"}
    x = torch.randn(2, 3, 4)
    plain = linear(x)
    filled(bypass)
    bypass.attach(linear)
    q, k, v = (linear(x) - plain).chunk(3, dim=-1)
    torch.testing.assert_close(q, 0.5 * (x @ bypass.down_q.mT) @ bypass.up_q.mT)
    torch.testing.assert_close(v, 0.5 * (x @ bypass.down_v.mT) @ bypass.up_v.mT)
    assert torch.equal(linear(x).chunk(3, dim=-1)[1], plain.chunk(3, dim=-1)[1])
    assert k.abs().max() == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("q_proj", [Rows("q", 0, 12)]),
        ("v_proj", [Rows("v", 0, 12)]),
        ("to_kv", [Rows("v", 6, 12)]),
        ("qkv", [Rows("q", 0, 4), Rows("v", 8, 12)]),
        ("k_proj", []),
        ("linear1", []),
    ],
)
def test_where_q_and_v_lie(name: str, expected: list[Rows]) -> None:
    assert qv_rows(f"a.{name}", nn.Linear(3, 12)) == expected


def test_loose_lora_follows_its_equations() -> None:
    rank, linear = 3, nn.Linear(7, 5, bias=False)
    bypass = LooseLoRA(Switch(on=True), linear, qv_rows("q_proj", linear), rank, 0.7)
    filled(bypass)
    x = torch.randn(4, 7)
    plain = linear(x)
    features = [x]
    for layer in (bypass.encode1_q, bypass.encode2_q, bypass.decode1_q, bypass.decode2_q):
        features.append(features[-1] @ layer.mT)
    assert [f.shape[1] for f in features[1:]] == [2 * rank, rank, 2 * rank, 4 * rank]
    pooled = [F.avg_pool1d(f[:, None], f.shape[1] // rank)[:, 0] for f in features[1:]]
    expected = plain + 0.7 * torch.cat(pooled, dim=1) @ bypass.up_q.mT
    bypass.attach(linear)
    torch.testing.assert_close(linear(x), expected, atol=1e-4, rtol=1e-4)


def test_med_sa_sits_behind_the_attention_and_beside_the_mlp() -> None:
    block = filled(EncoderBlock(8, 16, 2))
    parts = bottlenecks(Switch(on=True), block, rank=4, alpha=2.0)
    x = torch.randn(1, 6, 8)
    for part in parts.values():
        filled(part)
    assert isinstance(block, EncoderBlock)

    def path(site: str, value: torch.Tensor) -> torch.Tensor:
        return parts[site].up(F.gelu(parts[site].down(value)))

    attended = block.attn(block.norm1(x))
    tokens = x + attended + path("attn", attended)
    normed = block.norm2(tokens)
    expected = tokens + block.mlp(normed) + 0.5 * path("mlp", normed)
    for site, part in parts.items():
        part.attach(block.get_submodule(site))
    torch.testing.assert_close(block(x), expected, atol=1e-4, rtol=1e-4)


def test_lora_agrees_with_peft(tiny_base: SegVol) -> None:
    peft = pytest.importorskip("peft")
    kinds = {"lora": False, "rslora": True}
    for kind, rank_stabilised in kinds.items():
        layers = nn.ModuleDict({"attn": nn.Linear(12, 9), "mlp": nn.Linear(9, 6)})
        x = torch.randn(5, 12)
        reference = nn.Sequential(copy.deepcopy(layers["attn"]), nn.GELU(), copy.deepcopy(layers["mlp"]))
        config = peft.LoraConfig(
            r=4, lora_alpha=6, target_modules=["0", "2"], use_rslora=rank_stabilised, init_lora_weights=False
        )
        wrapped = peft.get_peft_model(reference, config)
        for place, layer in (("0", layers["attn"]), ("2", layers["mlp"])):
            theirs = wrapped.base_model.model.get_submodule(place)
            bypass = LoRA(Switch(on=True), layer, all_rows(layer), 4, scaling(kind, 4, 6.0))
            with torch.no_grad():
                bypass.down.copy_(theirs.lora_A["default"].weight)
                bypass.up.copy_(theirs.lora_B["default"].weight)
            torch.testing.assert_close(bypass.delta(), theirs.get_delta_weight("default"))
            bypass.attach(layer)
        ours = layers["mlp"](F.gelu(layers["attn"](x)))
        torch.testing.assert_close(ours, wrapped(x), atol=1e-5, rtol=1e-5)


# Targets --------------------------------------------------------------------------------


def test_a_pattern_that_matches_nothing_says_what_there_is(tiny_base: SegVol) -> None:
    cases = {
        "rslora": (r"layers\.1\.targets: 'blocks\.\*' matches no linear layer", "image_encoder.blocks.*.attn.qkv"),
        "qv_lora": ("'blocks.*' matches no projection to q or v", "mask_decoder.transformer.layers.*.self_attn.q_proj"),
        "med_sa": ("'blocks.*' matches no block", "image_encoder.blocks.*, mask_decoder.transformer.layers.*"),
    }
    for kind, (message, there) in cases.items():
        layers = [
            LayerAdapterConfig(kind="lora", targets=EVERYWHERE),
            LayerAdapterConfig(kind=kind, targets=["blocks.*"]),  # type: ignore[arg-type]
        ]
        with pytest.raises(UserError, match=message) as error:
            adapted(tiny_base, AdapterConfig(layers=layers, priors=None))
        assert there in str(error.value)
    with pytest.raises(UserError, match=r"adapter\.train: 'upscaling' matches no parameter") as error:
        adapted(tiny_base, AdapterConfig(train=["upscaling"]))
    assert "mask_decoder.output_upscaling.*.weight" in str(error.value)
    assert len(str(error.value)) < 500, "of dozens of names only those like the pattern"


def test_a_layer_is_adapted_once_by_each_kind(tiny_base: SegVol) -> None:
    twice = [LayerAdapterConfig(targets=["image_encoder.*"]), LayerAdapterConfig(targets=["*.qkv"])]
    with pytest.raises(UserError, match=r"layers\.1\.targets: image_encoder\.blocks\.0\.attn\.qkv has .* name it once"):
        adapted(tiny_base, AdapterConfig(layers=twice, priors=None))
    both = [LayerAdapterConfig(kind="lora", targets=["*.qkv"]), LayerAdapterConfig(kind="qv_lora", targets=["*.qkv"])]
    names = adapted(tiny_base, AdapterConfig(layers=both, priors=None)).trained_tensors()
    assert "lora.image_encoder.blocks.0.attn.qkv.down" in names
    assert "qv_lora.image_encoder.blocks.0.attn.qkv.down_v" in names


def test_targets_reach_the_fusion_of_context_priors(tiny_base: SegVol) -> None:
    config = AdapterConfig(
        layers=[LayerAdapterConfig(rank=2, targets=["priors.*"])], priors=PriorsConfig(blocks=1, modality_tokens=2)
    )
    model = adapted(tiny_base, config)
    hung = {name for name in model.trained_tensors() if name.startswith("rslora.priors.")}
    assert hung
    before = answer(perturb(model), tiny_base)
    with torch.no_grad():
        for name in hung:
            model.trained_tensors()[name].zero_()
    assert not torch.equal(answer(model, tiny_base), before)
    with pytest.raises(UserError, match="matches no linear layer"):
        adapted(tiny_base, config.model_copy(update={"priors": None}))


def test_names_are_alike_but_for_their_numbers() -> None:
    assert alike(["a.0.b", "a.12.b", "a.0.b1", "a.3"]) == ["a.*.b", "a.*.b1", "a.*"]
    assert choose(["*.b", "a.0.*"], ["a.0.c", "x", "a.0.b", "a.1.b"], "key", "thing") == ["a.0.c", "a.0.b", "a.1.b"]


def test_the_rank_sets_the_inner_width() -> None:
    linear = nn.Linear(6, 10)
    assert LoRA(Switch(), linear, all_rows(linear), 3, 1.0).factors()[0].shape == (3, 6)
    assert LooseLoRA(Switch(), linear, qv_rows("q_proj", linear), 3, 1.0).factors()[0].shape == (12, 6)

"""Several adapters of one model: by name, scaled, switched off, merged and taken out again."""

from __future__ import annotations

import copy

import pytest
import torch
from adapter_cases import CT, KINDS, MERGEABLE, MR, TASKS, WHOLE, adapted, answer, one_kind, perturb, views
from torch import Tensor

from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, Kind, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import text_prompts
from adaptmedseg.models.segvol import SegVol

US = "ultrasound"


def two_adapters(base: SegVol, *, second_gate: bool = False) -> AdaptedSegVol:
    """'first' on T2 MRI, 'second' on every modality, or with its gate on ultrasound alone."""
    model = adapted(base, one_kind("rslora", train=WHOLE), name="first")
    model.add_adapter("second", one_kind("qv_lora", train=WHOLE[:1], gate=second_gate), [US])
    return perturb(model).eval()


def state(base: SegVol) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in base.state_dict().items()}


def same(base: SegVol, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


@pytest.mark.parametrize("train", [[], WHOLE])
@pytest.mark.parametrize("kind", MERGEABLE)
def test_merged_it_computes_the_same_and_unmerged_the_base_is_back_to_the_bit(
    tiny_base: SegVol, kind: Kind, train: list[str]
) -> None:
    plain, before = answer(tiny_base, tiny_base), state(tiny_base)
    model = perturb(adapted(tiny_base, one_kind(kind, train=train)))
    expected = answer(model, tiny_base)
    model.adapters.merge()
    assert model.adapters.merged == {"adapter"}
    torch.testing.assert_close(answer(model, tiny_base), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer(model.base, tiny_base), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(answer(model, tiny_base, CT), plain), "the gate gives the base back, merged or not"
    with model.adapters.disabled():
        assert torch.equal(answer(model, tiny_base), plain)
    model.adapters.unmerge()
    assert model.adapters.merged == frozenset()
    assert same(tiny_base, before)
    assert torch.equal(answer(model, tiny_base), expected)
    assert not any(p.requires_grad for p in model.base.parameters())


def test_bottlenecks_cannot_be_merged_and_nothing_changes(tiny_base: SegVol) -> None:
    model = perturb(adapted(tiny_base, one_kind("med_sa")))
    model.add_adapter("linear", one_kind("lora"), [MR])
    model.adapters.merge(["linear"])
    before = state(tiny_base)
    with pytest.raises(UserError, match=r"'adapter': has med_sa on .* not linear"):
        model.adapters.merge()
    assert model.adapters.merged == {"linear"}
    assert same(tiny_base, before)


def test_switched_off_it_is_the_base_even_after_an_error(tiny_base: SegVol) -> None:
    plain = answer(tiny_base, tiny_base)
    model = two_adapters(tiny_base)
    changed, before = answer(model, tiny_base), state(tiny_base)
    with model.adapters.disabled():
        assert torch.equal(answer(model, tiny_base), plain)
        assert not model.is_adapted(MR)
    with pytest.raises(ValueError, match="input size"):
        model(views(1, tiny_base)[..., 1:], text_prompts([TASKS], [MR]))
    with pytest.raises(ZeroDivisionError), model.adapters.disabled():
        _ = 1 / 0
    assert same(tiny_base, before)
    assert torch.equal(answer(model, tiny_base), changed)
    assert torch.equal(answer(model.base, tiny_base), plain)


def test_two_adapters_add_up(tiny_base: SegVol) -> None:
    """On a single layer, where adapters are linear: what both add is the sum of what each adds."""
    config = AdapterConfig(layers=[LayerAdapterConfig(targets=["*.blocks.0.attn.qkv"])], priors=None)
    model = adapted(tiny_base, config, name="first")
    model.add_adapter("second", config, [MR])
    perturb(model)
    layer, x = tiny_base.image_encoder.get_submodule("blocks.0.attn.qkv"), torch.randn(2, 5, 32)
    plain = layer(x)
    found = {}
    for names in (["first"], ["second"], ["first", "second"]):
        with model.adapters.applied(names):
            found[tuple(names)] = layer(x) - plain
    total = found[("first",)] + found[("second",)]
    torch.testing.assert_close(found[("first", "second")], total, atol=1e-5, rtol=1e-5)
    assert found[("second",)].abs().max() > 0.01


@pytest.mark.parametrize("names", [["first"], ["second"], ["first", "second"], []])
def test_any_choice_merged_equals_the_choice_at_work(tiny_base: SegVol, names: list[str]) -> None:
    model = two_adapters(tiny_base)
    model.adapters.set_scale("first", 0.5)
    with model.adapters.enabled(names):
        expected = answer(model, tiny_base)
    everything = answer(model, tiny_base)
    model.adapters.merge(names)
    with model.adapters.enabled(names):
        torch.testing.assert_close(answer(model, tiny_base), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer(model, tiny_base), everything, atol=1e-5, rtol=1e-5)


def test_an_image_passes_the_adapters_whose_gate_it_opens(tiny_base: SegVol) -> None:
    plain = answer(tiny_base, tiny_base)
    model = two_adapters(tiny_base, second_gate=True)
    alone = {}
    for name in ("first", "second"):
        with model.adapters.enabled([name]):
            alone[name] = {modality: answer(model, tiny_base, modality) for modality in (MR, US, CT)}
    assert torch.equal(answer(model, tiny_base, MR), alone["first"][MR])
    assert torch.equal(answer(model, tiny_base, US), alone["second"][US])
    for unaffected in (answer(model, tiny_base, CT), alone["second"][MR], alone["first"][US]):
        assert torch.equal(unaffected, plain)
    assert [model.is_adapted(modality) for modality in (MR, US, CT)] == [True, True, False]
    mixed = text_prompts([TASKS] * 3, [US, CT, MR])
    images = views(1, tiny_base).expand(3, -1, -1, -1, -1)
    with torch.inference_mode():
        together = model(images, mixed)
        single = [model(images[:1], text_prompts([TASKS], [modality])) for modality in (US, CT, MR)]
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_zero_is_the_base_and_one_the_adapter(tiny_base: SegVol, kind: Kind) -> None:
    plain = answer(tiny_base, tiny_base)
    model = perturb(adapted(tiny_base, one_kind(kind, train=WHOLE)))
    whole = answer(model, tiny_base)
    model.set_scale("adapter", 0)
    assert torch.equal(answer(model, tiny_base), plain)
    assert not model.is_adapted(MR)
    model.set_scale("adapter", 0.5)
    half = answer(model, tiny_base)
    assert min((half - other).abs().max() for other in (plain, whole)) > 1e-3
    model.set_scale("adapter", 1)
    assert torch.equal(answer(model, tiny_base), whole)


def test_half_of_a_parameter_trained_whole_is_half_way(tiny_base: SegVol) -> None:
    model = perturb(adapted(tiny_base, AdapterConfig(layers=[], priors=None, train=["mask_decoder.iou_token.weight"])))
    (trained,) = model.trained_tensors().values()
    own = tiny_base.mask_decoder.iou_token.weight.clone()
    model.set_scale("adapter", 0.25)
    with model.adapters.applied(["adapter"]):
        torch.testing.assert_close(tiny_base.mask_decoder.iou_token.weight, own + 0.25 * (trained - own))
    assert torch.equal(tiny_base.mask_decoder.iou_token.weight, own)


def test_priors_have_no_scale_between_and_belong_to_the_first(tiny_base: SegVol) -> None:
    plain = answer(tiny_base, tiny_base)
    with_priors = AdapterConfig(priors=PriorsConfig(blocks=1, modality_tokens=2))
    model = perturb(adapted(tiny_base, with_priors))
    with pytest.raises(UserError, match=r"scale of 0\.5"):
        model.set_scale("adapter", 0.5)
    model.set_scale("adapter", 0)
    assert torch.equal(answer(model, tiny_base), plain)
    with pytest.raises(UserError, match="'more': has tokens"):
        model.add_adapter("more", with_priors, [MR])


def test_wrong_names_are_told(tiny_base: SegVol) -> None:
    model = two_adapters(tiny_base)
    with pytest.raises(UserError, match=r"'third': there is none .* there are first, second"):
        model.adapters.merge(["third"])
    with pytest.raises(UserError, match="'third'"), model.adapters.enabled(["third"]):
        pass
    with pytest.raises(UserError, match="'first': there is one"):
        model.add_adapter("first", one_kind("lora"), [MR])
    model.adapters.merge(["first"])
    with pytest.raises(UserError, match="'first': is merged"):
        model.set_scale("first", 0.5)
    with pytest.raises(UserError, match="'third': others are merged"):
        model.add_adapter("third", one_kind("lora"), [MR])


def test_a_copy_of_a_merged_model_unmerges_alone(tiny_base: SegVol) -> None:
    model = two_adapters(tiny_base)
    before = state(tiny_base)
    model.adapters.merge()
    twin = copy.deepcopy(model)
    twin.adapters.unmerge()
    assert same(twin.base, before)
    assert not same(model.base, before)

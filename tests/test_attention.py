"""Attention has one answer, whatever the way it is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptmedseg.adapters.bypass import Switch
from adaptmedseg.adapters.low_rank import LoRA, all_rows
from adaptmedseg.modules import attention
from adaptmedseg.modules.attention import attend_in_tiles, attend_many
from adaptmedseg.modules.folding import matrix_of
from adaptmedseg.modules.two_way import Attention, TwoWayTransformer

WIDTH, HEADS, DEPTH = 64, 2, 2


def two_way() -> TwoWayTransformer:
    torch.manual_seed(0)
    model = TwoWayTransformer(DEPTH, WIDTH, HEADS, 48).eval()
    for parameter in model.parameters():  # biases too, which start at zero or small
        nn.init.normal_(parameter, std=0.2)
    return model


def image_and_prompts(images: int, prompts: int, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images + 10 * prompts + 100 * tokens)
    image = torch.randn(images, 30, WIDTH, generator=generator)
    position = torch.randn(1, 30, WIDTH, generator=generator)
    asked = torch.randn(prompts, tokens, WIDTH, generator=generator)
    return image, position, asked, torch.randint(images, (prompts,), generator=generator)


@contextmanager
def unfolded() -> Iterator[None]:
    """All projections as they are written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attention, "_folding_pays", lambda self, tokens: False)
        yield


@settings(max_examples=30, deadline=None)
@given(images=st.integers(1, 3), prompts=st.integers(1, 4), tokens=st.integers(1, 20))
def test_folded_projections_give_the_same(images: int, prompts: int, tokens: int) -> None:
    model, inputs = two_way(), image_and_prompts(images, prompts, tokens)
    with unfolded(), torch.no_grad():
        usual = model(*inputs)
    with torch.no_grad():
        folded = model(*inputs)
    for a, b in zip(usual, folded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("images", [1, 2])
def test_folded_projections_give_the_same_gradients(images: int) -> None:
    model, (image, *rest) = two_way(), image_and_prompts(images, 3, 5)
    image.requires_grad_()
    gradients = []
    for way in (unfolded, nullcontext):
        with way():
            queries, keys = model(image, *rest)
            loss = (queries**2).mean() + (keys**3).mean()
        gradients.append(torch.autograd.grad(loss, [image, *model.parameters()]))  # every parameter takes part
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_few_tokens_are_folded_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, taken = two_way(), []
    usual = Attention._attend
    monkeypatch.setattr(Attention, "_attend", lambda self, q, k, v: taken.append(k.shape[1]) or usual(self, q, k, v))
    with torch.no_grad():
        model(*image_and_prompts(1, 2, 4))
        assert set(taken) == {4}  # the prompt's attention to itself alone
        model(*image_and_prompts(1, 2, 17))  # two heads of 17 tokens are more than the inner width of 32
        assert 30 in taken


def test_adapted_projections_are_folded_with_what_the_adapter_adds() -> None:
    model, inputs = two_way(), image_and_prompts(2, 3, 5)
    with torch.no_grad():
        plain = model(*inputs)
    switch, bypasses = Switch(), []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(("q_proj", "k_proj", "v_proj", "out_proj")):
            bypasses.append(LoRA(switch, layer, all_rows(layer), rank=2, scale=1.0))
            bypasses[-1].attach(layer)
    with torch.no_grad():
        for switch.on in (False, True):  # off, and fresh
            assert all(torch.equal(a, b) for a, b in zip(plain, model(*inputs), strict=True))
        for bypass in bypasses:
            for parameter in bypass.parameters():
                nn.init.normal_(parameter, std=0.2)
        folded = model(*inputs)
        switch.on = False
        assert all(torch.equal(a, b) for a, b in zip(plain, model(*inputs), strict=True))
    switch.on = True
    with unfolded():
        usual = model(*inputs)
    for a, b in zip(usual, folded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain[0], folded[0], atol=1e-2)


def test_a_hook_that_is_no_matrix_is_not_passed_over() -> None:
    model, inputs = two_way(), image_and_prompts(1, 2, 3)
    with torch.no_grad():
        plain = model(*inputs)
    for layer in model.modules():
        if isinstance(layer, Attention):
            layer.v_proj.register_forward_hook(lambda _, given, output: output.tanh())
            assert matrix_of(layer.v_proj) is None
    with unfolded():
        usual = model(*inputs)
    with torch.no_grad():
        found = model(*inputs)
    for a, b in zip(usual, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain[0], found[0], atol=1e-2)


def test_a_layer_of_another_kind_is_called_and_not_folded() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model, inputs = two_way(), image_and_prompts(1, 2, 3)
    for layer in model.modules():
        if isinstance(layer, Attention):
            doubled = Doubled(WIDTH, WIDTH // 2) if layer.k_proj.out_features == WIDTH // 2 else Doubled(WIDTH, WIDTH)
            layer.k_proj = doubled
    assert matrix_of(doubled) is None
    with unfolded():
        usual = model(*inputs)
    with torch.no_grad():
        folded = model(*inputs)
    for a, b in zip(usual, folded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(2, 3, 7, 16), (1, 2, 700, 8)])
def test_tiles_give_the_same(dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]) -> None:
    qkv = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = F.scaled_dot_product_attention(*qkv.float()).transpose(1, 2)
    torch.testing.assert_close(attend_in_tiles(*qkv).float(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("pays", [True, False])
def test_tiles_are_for_bfloat16_without_gradients(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(attention, "_tiles_pay", lambda: pays)
    monkeypatch.setattr(attention, "attend_in_tiles", lambda q, k, v: taken.append(q.dtype) or q.transpose(1, 2))
    qkv = torch.randn(3, 1, 2, 5, 8)
    attend_many(*qkv.bfloat16())
    assert taken == []
    with torch.no_grad():
        attend_many(*qkv)
        assert attend_many(*qkv.bfloat16()).shape == (1, 5, 2, 8)
    assert taken == [torch.bfloat16] * pays

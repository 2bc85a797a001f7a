"""Attention that keeps its weights gives what the fused one gives, forwards and backwards."""

import torch
import torch.nn.functional as F

from adaptmedseg.modules.stored_attention import STORED, attend_stored, storing_pays


def draw(dtype: torch.dtype, tokens: int = 40) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, tokens, 16, generator=generator).to(dtype) for _ in range(4)]


def test_gradients_by_finite_differences():
    q, k, v, _ = (x[:, :1, :5, :4].clone().requires_grad_() for x in draw(torch.float64))
    assert torch.autograd.gradcheck(attend_stored, (q, k, v))


def test_equals_the_fused_kernel():
    *inputs, gradient = draw(torch.float32)
    found = []
    for attention in (attend_stored, F.scaled_dot_product_attention):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = attention(*leaves)
        out.backward(gradient)
        found.append([out.detach(), *[leaf.grad for leaf in leaves]])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_is_for_training_in_bfloat16_and_for_weights_that_fit():
    q, k = draw(torch.bfloat16)[:2]
    assert storing_pays(q, k)
    assert not storing_pays(q.float(), k.float())
    with torch.no_grad():
        assert not storing_pays(q, k)
    many = torch.empty(1, 1, int(STORED**0.5) + 1, 1, dtype=torch.bfloat16)
    assert not storing_pays(many, many)

"""Attention for training on CPUs: it keeps its weights for the backward pass instead of computing them again.

The fused kernel saves memory by a second softmax and by products in small tiles; where the weights fit in memory,
plain products take half its time.
"""

from typing import Any

import torch
from torch import Tensor

STORED = 2**24  # weights of one layer, 32 MB in bfloat16


def storing_pays(q: Tensor, k: Tensor) -> bool:
    """Whether attention of q to k, (n, l, t, c) each, should keep its weights: bfloat16 on a CPU, wanting gradients."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return False
    return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= STORED


def attend_stored(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √c) v over (n, l, t, c)."""
    n, heads = q.shape[:2]
    out = _StoredAttention.apply(*(x.flatten(0, 1) for x in (q, k, v)))
    return out.unflatten(0, (n, heads))


class _StoredAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5
        weights = torch.softmax(torch.bmm(q * scale, k.mT), dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        of_weights = torch.bmm(gradient, v.mT)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        return (
            torch.bmm(of_scores, k * scale),
            torch.bmm(of_scores.mT, q * scale),
            torch.bmm(weights.mT, gradient),
        )

"""softmax(q kᵀ / √c) v, in the way that suits its shape and the machine."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.modules.stored_attention import attend_stored, storing_pays

FEW = 64
TILE = 512  # queries at a time: their scores over SegVol's 2,048 keys take 2 MB and stay near the core


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √c) v over (n, l, t, c); mask, broadcast to (n, l, queries, keys), is true where a query sees.

    On a CPU, where one side has few tokens, as plain products: the fused kernel's backward pass is several times slower
    there, and the attention matrix is small.
    """
    if q.device.type == "cpu" and min(q.shape[2], k.shape[2]) <= FEW:
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return torch.softmax(scores, dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_many(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same for many tokens on both sides; gives (n, t, l, c), the layout that the next layer wants.

    With gradients on a CPU it may keep its weights. Else the fused kernel, but for bfloat16 on CPUs that multiply it by
    vectors: there the kernel spends more of its time
    beside the products than in them, and products tile by tile take half as long.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and not torch.is_grad_enabled() and _tiles_pay():
        return attend_in_tiles(q, k, v)
    attended = attend_stored(q, k, v) if storing_pays(q, k) else F.scaled_dot_product_attention(q, k, v)
    return attended.transpose(1, 2)


def attend_in_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `attend_many`: head by head, some queries at a time; scores and weights have the dtype of q."""
    n, heads, tokens, width = q.shape
    attended = q.new_empty(n, tokens, heads, v.shape[-1])
    for image in range(n):
        for head in range(heads):
            queries, keys, values = (x[image, head].contiguous() for x in (q, k, v))
            queries = queries * width**-0.5  # exact for SegVol's heads of 64 channels: an eighth
            for start in range(0, tokens, TILE):
                tile = slice(start, start + TILE)
                attended[image, tile, head] = torch.softmax(queries[tile] @ keys.mT, dim=-1) @ values
    return attended


@cache
def _tiles_pay() -> bool:
    """Whether this CPU multiplies bfloat16 by vectors alone (AVX-512 without AMX); False where torch cannot tell."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # in torch from 2.10 on
    return bool(known.get("avx512_bf16")) and not known.get("amx_bf16")

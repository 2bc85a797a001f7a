"""SAM's two-way transformer (Kirillov et al. 2023): prompts and image attend to each other.

It works on tokens alone, whatever their number of dimensions. The image's tokens come once an image; prompts name the
image they ask about, and what the first layer computes of the image alone is shared by all of its prompts.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

FEW = 64


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


class Attention(nn.Module):
    """Multi-head attention with separate projections and an inner width of embed_dim // downsample_rate."""

    def __init__(self, embed_dim: int, num_heads: int, downsample_rate: int = 1):
        super().__init__()
        inner = embed_dim // downsample_rate
        if inner % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the attention width {inner}")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, inner)
        self.k_proj = nn.Linear(embed_dim, inner)
        self.v_proj = nn.Linear(embed_dim, inner)
        self.out_proj = nn.Linear(inner, embed_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (n, a, c), k and v (n, b, c) to (n, a, c)."""
        return self.attend(self.q_proj(q), self.k_proj(k), self.v_proj(v))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same from what the projections gave."""
        heads = [rearrange(x, "n t (l c) -> n l t c", l=self.num_heads) for x in (q, k, v)]
        return self.out_proj(rearrange(attend(*heads), "n l t c -> n t (l c)"))


def rows_of(x: Tensor, image_index: Tensor) -> Tensor:
    """x (b, ...), one row an image, to (n, ...), one row a prompt; without a copy where there is one image."""
    return x.expand(len(image_index), *x.shape[1:]) if len(x) == 1 else x[image_index]


class MLPBlock(nn.Module):
    def __init__(self, embed_dim: int, mlp_dim: int):
        super().__init__()
        self.lin1 = nn.Linear(embed_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens; norms after each step."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, *, first: bool):
        super().__init__()
        self.first = first
        self.self_attn = Attention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn_token_to_image = Attention(embed_dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = MLPBlock(embed_dim, mlp_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.cross_attn_image_to_token = Attention(embed_dim, num_heads, downsample_rate=2)
        self.norm4 = nn.LayerNorm(embed_dim)

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """queries and query_pe (n, t, c); keys (b, s, c) with image_index (n,) into them; key_pe (1, s, c)."""
        if self.first:
            # SAM's first block takes no position here and replaces its input instead of adding to it.
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)

        to_image, to_token = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        placed = keys + key_pe
        k, v, q = (
            rows_of(x, image_index) for x in (to_image.k_proj(placed), to_image.v_proj(keys), to_token.q_proj(placed))
        )
        queries = self.norm2(queries + to_image.attend(to_image.q_proj(queries + query_pe), k, v))
        queries = self.norm3(queries + self.mlp(queries))
        update = to_token.attend(q, to_token.k_proj(queries + query_pe), to_token.v_proj(queries))
        return queries, self.norm4(rows_of(keys, image_index) + update)


class TwoWayTransformer(nn.Module):
    """Tokens of n prompts and those of b images to both updated, one row a prompt."""

    def __init__(self, depth: int, embed_dim: int, num_heads: int, mlp_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(embed_dim, num_heads, mlp_dim, first=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(embed_dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embed_dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """image (b, s, c), image_pe (1, s, c), tokens (n, t, c), image_index (n,) to (n, t, c) and (n, s, c)."""
        queries, keys, index = tokens, image, image_index
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe, index)
            index = torch.arange(len(tokens), device=tokens.device)  # from here on, a prompt has its own image tokens
        attended = self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries + attended), keys

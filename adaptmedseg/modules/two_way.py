"""SAM's two-way transformer (Kirillov et al. 2023): prompts and image attend to each other.

It works on tokens alone, whatever their number of dimensions. The image's tokens come once an image; prompts name the
image they ask about, and what the first layer computes of the image alone is shared by all of its prompts.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from adaptmedseg.modules.attention import attend
from adaptmedseg.modules.folding import matrix_of, output_of, rows_of, scores_of, values_of


class Attention(nn.Module):
    """Multi-head attention with separate projections and an inner width of embed_dim // downsample_rate.

    Where it is less work, prompts and images meet as in `adaptmedseg.modules.folding`.
    """

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
        return self._attend(self.q_proj(q), self.k_proj(k), self.v_proj(v))

    def to_image(self, tokens: Tensor, keys: Tensor, values: Tensor, image_index: Tensor) -> Tensor:
        """A prompt's tokens (n, t, c) look at its image: keys and values (b, s, c), image_index (n,); (n, t, c)."""
        k_matrix, v_matrix = matrix_of(self.k_proj), matrix_of(self.v_proj)
        if k_matrix is None or v_matrix is None or not self._folding_pays(tokens):
            k, v = (rows_of(x, image_index) for x in (self.k_proj(keys), self.v_proj(values)))
            return self._attend(self.q_proj(tokens), k, v)
        q = self._heads(self.q_proj(tokens))
        scores = scores_of(q, k_matrix, keys, image_index)
        if torch.is_grad_enabled() and self.k_proj.bias.requires_grad:
            # The keys' bias adds the same to all scores of a query, which the softmax does not see; but where several
            # processes train, every parameter has to take part.
            scores = scores + self._with_bias(q, self.k_proj)
        weights = torch.softmax(scores, dim=-1).to(scores.dtype)
        attended = values_of(weights, values, image_index, v_matrix, self.v_proj.bias)
        return self.out_proj(rearrange(attended, "n l t c -> n t (l c)"))

    def from_image(self, image: Tensor, keys: Tensor, values: Tensor, image_index: Tensor) -> Tensor:
        """Each token of a prompt's image (b, s, c) looks at its tokens: keys and values (n, t, c); (n, s, c)."""
        q_matrix, out_matrix = matrix_of(self.q_proj), matrix_of(self.out_proj)
        k, v = self.k_proj(keys), self.v_proj(values)
        if q_matrix is None or out_matrix is None or not self._folding_pays(keys):
            return self._attend(rows_of(self.q_proj(image), image_index), k, v)
        k, v = self._heads(k), self._heads(v)
        scores = scores_of(k, q_matrix, image, image_index) + self._with_bias(k, self.q_proj)
        weights = torch.softmax(scores, dim=2)
        return output_of(weights, v, out_matrix, self.out_proj.bias)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = attend(self._heads(q), self._heads(k), self._heads(v))
        return self.out_proj(rearrange(attended, "n l t c -> n t (l c)"))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "n t (l c) -> n l t c", l=self.num_heads)

    def _with_bias(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """What the bias of the other side's projection adds to the scores of x (n, l, t, e): (n, l, t, 1)."""
        bias = rearrange(layer.bias, "(l e) -> l e 1", l=self.num_heads)
        return x @ bias.to(x.dtype) * x.shape[-1] ** -0.5

    def _folding_pays(self, tokens: Tensor) -> bool:
        return tokens.shape[1] * self.num_heads < self.k_proj.out_features


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
        queries = self.norm2(queries + to_image.to_image(queries + query_pe, placed, keys, image_index))
        queries = self.norm3(queries + self.mlp(queries))
        update = to_token.from_image(placed, queries + query_pe, queries, image_index)
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
        attended = self.final_attn_token_to_image.to_image(queries + tokens, keys + image_pe, keys, index)
        return self.norm_final_attn(queries + attended), keys

"""Names of structures to text embeddings: CLIP's frozen tower, or a weightless stand-in for small models."""

import re
import zlib
from functools import cached_property
from typing import Self, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SENTENCE = "A computerized tomography of a {}."  # the sentence SegVol was trained with


class ClipEmbeddings(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class ClipAttention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(proj(x), "n t (l c) -> n l t c", l=self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(rearrange(attended, "n l t c -> n t (l c)"))


class ClipMLP(nn.Module):
    def __init__(self, width: int, mlp_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden))  # quick-GELU


class ClipLayer(nn.Module):
    def __init__(self, width: int, mlp_dim: int, num_heads: int):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = ClipAttention(width, num_heads)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = ClipMLP(width, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipTransformer(nn.Module):
    def __init__(self, width: int, mlp_dim: int, num_layers: int, num_heads: int):
        super().__init__()
        self.embeddings = ClipEmbeddings(49408, 77, width)
        layers = nn.ModuleList(ClipLayer(width, mlp_dim, num_heads) for _ in range(num_layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (n, 77) to the final-LayerNorm vector at the end-of-text token, (n, width)."""
        x = self.embeddings(tokens)
        for layer in cast(nn.ModuleList, self.encoder["layers"]):
            x = layer(x)
        end_of_text = tokens.argmax(dim=1)  # the end-of-text id is the vocabulary's largest
        return self.final_layer_norm(x)[torch.arange(len(tokens), device=tokens.device), end_of_text]


class ClipTextEncoder(nn.Module):
    """CLIP's text tower, frozen, and the trainable alignment `dim_align` to the model's width.

    The tower runs once a name: its vectors are kept until its weights change or move. It needs no network, for the
    tokenizer's vocabulary comes with open_clip. Parameter names are those of SegVol's released weights (Hugging Face's
    layout of CLIP).
    """

    def __init__(self, width: int, mlp_dim: int, num_layers: int, num_heads: int, embed_dim: int):
        super().__init__()
        self.clip_text_model = nn.ModuleDict({"text_model": ClipTransformer(width, mlp_dim, num_layers, num_heads)})
        self.clip_text_model.requires_grad_(False).eval()
        self.dim_align = nn.Linear(width, embed_dim)
        self._pooled: dict[str, Tensor] = {}
        self._pooled_from: list[tuple[object, ...]] = []

    def train(self, mode: bool = True) -> Self:
        """As ever, but the tower stays in evaluation mode."""
        super().train(mode)
        self.clip_text_model.eval()
        return self

    @cached_property
    def _tokenizer(self):
        from open_clip.tokenizer import SimpleTokenizer  # slow to import, and needed by the released size alone

        return SimpleTokenizer()

    def forward(self, names: list[str]) -> Tensor:
        """Names of structures to (n, embed_dim)."""
        return self.dim_align(self.pooled(names))

    def pooled(self, names: list[str]) -> Tensor:
        """The frozen tower's vectors (n, width) for names of structures, before `dim_align`."""
        tower = cast(ClipTransformer, self.clip_text_model["text_model"])
        # Where a tensor lies, how often it was written to, and its kind: loading or moving weights changes one of them.
        weights: list[tuple[object, ...]] = [
            (p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device) for p in tower.parameters()
        ]
        if weights != self._pooled_from:
            self._pooled.clear()
            self._pooled_from = weights
        missing = [name for name in dict.fromkeys(names) if name not in self._pooled]
        if missing:
            self._pooled.update(zip(missing, self._run_tower(tower, missing), strict=True))
        return torch.stack([self._pooled[name] for name in names])

    def _run_tower(self, tower: ClipTransformer, names: list[str]) -> Tensor:
        """In full precision and outside inference mode, so that the vectors serve every later call, training too."""
        device = self.dim_align.weight.device
        tokens = self._tokenizer([SENTENCE.format(name) for name in names])
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            return tower(tokens.to(device))


class HashedTextEncoder(nn.Module):
    """A frozen text embedding without weights: each word is a fixed pseudo-random direction drawn from its CRC-32.

    It plays the tower's part in small models: names that share a word ("left kidney", "right kidney") share a
    component, any name works offline, and nothing is stored but `dim_align`.
    """

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.width = width
        self.dim_align = nn.Linear(width, embed_dim)

    def _word(self, word: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
        return torch.randn(self.width, generator=generator)

    def forward(self, names: list[str]) -> Tensor:
        """Names of structures to (n, embed_dim)."""
        sums = [
            torch.stack([self._word(word) for word in re.findall(r"\w+", name.lower()) or [""]]).sum(0)
            for name in names
        ]
        vectors = F.normalize(torch.stack(sums), dim=-1) * self.width**0.5
        return self.dim_align(vectors.to(self.dim_align.weight.device))

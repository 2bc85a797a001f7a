"""SegVol's image encoder: a plain pre-norm ViT over volumetric patches (Du et al. 2023, arXiv:2311.13385).

Parameter names are those of the released checkpoints, so that they load without a translation table.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from adaptmedseg.modules.stored_attention import attend_stored, storing_pays


def sincos_positions(grid_size: tuple[int, ...], embed_dim: int) -> Tensor:
    """A start for learned positions (d·h·w, embed_dim): sines and cosines of each axis in its own share of channels.

    Neighbours start alike, which a network trained from scratch would need long to learn (as in MAE, He et al. 2022).
    """
    bands = embed_dim // (2 * len(grid_size))
    frequency = torch.pi * 2 ** torch.linspace(-1, 4, bands)
    axes = torch.meshgrid(*[(torch.arange(n) + 0.5) / n for n in grid_size], indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in axes]
    waves = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return F.pad(waves, (0, embed_dim - waves.shape[1]))


class PatchEmbedding(nn.Module):
    """Cut a volume into patches, project each linearly and add a learned position.

    Input (b, 1, d, h, w); output (b, n, embed_dim) with tokens in (d h w) order, each patch as (p_d p_h p_w c).
    """

    def __init__(self, spatial_size: tuple[int, int, int], patch_size: tuple[int, int, int], embed_dim: int):
        super().__init__()
        if any(size % patch for size, patch in zip(spatial_size, patch_size, strict=True)):
            raise ValueError(f"spatial_size {spatial_size} is not a multiple of patch_size {patch_size}")
        pd, ph, pw = patch_size
        self.grid_size = tuple(size // patch for size, patch in zip(spatial_size, patch_size, strict=True))
        self.patch_embeddings = nn.Sequential(
            Rearrange("b c (d pd) (h ph) (w pw) -> b (d h w) (pd ph pw c)", pd=pd, ph=ph, pw=pw),
            nn.Linear(pd * ph * pw, embed_dim),
        )
        self.position_embeddings = nn.Parameter(sincos_positions(self.grid_size, embed_dim)[None])

    def forward(self, image: Tensor) -> Tensor:
        return self.patch_embeddings(image) + self.position_embeddings


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused `qkv` projection without bias."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(tokens), "b n (qkv l c) -> qkv b l n c", qkv=3, l=self.num_heads)
        attended = attend_stored(q, k, v) if storing_pays(q, k) else F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(rearrange(attended, "b l n c -> b n (l c)"))


class EncoderMLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, embed_dim: int, mlp_dim: int):
        super().__init__()
        self.linear1 = nn.Linear(embed_dim, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(tokens)))


class EncoderBlock(nn.Module):
    def __init__(self, embed_dim: int, mlp_dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-5)
        self.attn = SelfAttention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-5)
        self.mlp = EncoderMLP(embed_dim, mlp_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class ImageEncoderViT(nn.Module):
    """Volume (b, 1, d, h, w) in [0, 1] to an image embedding (b, embed_dim, d', h', w') on the patch grid."""

    def __init__(
        self,
        spatial_size: tuple[int, int, int],
        patch_size: tuple[int, int, int],
        embed_dim: int,
        mlp_dim: int,
        num_layers: int,
        num_heads: int,
    ):
        super().__init__()
        self.spatial_size = tuple(spatial_size)
        self.patch_embedding = PatchEmbedding(spatial_size, patch_size, embed_dim)
        self.grid_size = self.patch_embedding.grid_size
        self.blocks = nn.ModuleList(EncoderBlock(embed_dim, mlp_dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)

    def forward(self, image: Tensor) -> Tensor:
        if tuple(image.shape[2:]) != self.spatial_size:
            raise ValueError(f"image is {tuple(image.shape[2:])}, the encoder's input size is {self.spatial_size}")
        tokens = self.patch_embedding(image)
        for block in self.blocks:
            tokens = block(tokens)
        d, h, w = self.grid_size
        return rearrange(self.norm(tokens), "b (d h w) c -> b c d h w", d=d, h=h, w=w)

"""SAM's image encoder (Kirillov et al. 2023): a ViT with windowed and global attention, timm's implementation."""

from functools import partial

import torch
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from adaptmedseg.modules.vit import sincos_positions


class SamImageEncoder(VisionTransformerSAM):
    """Images (b, 3, s, s), normalised, to an embedding (b, out_dim, s / patch_size, s / patch_size).

    Blocks named by `global_blocks` attend to the whole image, the others within windows of `window_size` tokens, both
    with relative positions. Parameter names are timm's.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: float,
        window_size: int,
        global_blocks: tuple[int, ...],
        out_dim: int,
    ):
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=embed_dim,
            depth=num_layers,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            neck_chans=out_dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # timm's default, 1e-5, is not what SAM was trained with
            global_pool="",
            use_rel_pos=True,
            window_size=window_size,
            global_attn_indexes=global_blocks,
        )
        cells = image_size // patch_size
        self.grid_size = (cells, cells)
        with torch.no_grad():  # timm starts from zeros, which a training from scratch would need long to leave
            self.pos_embed.copy_(sincos_positions(self.grid_size, embed_dim).reshape(1, cells, cells, embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)

"""SAM's embedding of a mask given as prompt (Kirillov et al. 2023), in two or three dimensions."""

from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of a map (n, c, *map)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MaskDownscaling(nn.Sequential):
    """Mask logits (n, 1, *map) at the decoder's resolution to (n, embed_dim, *grid), a quarter of it along an axis."""

    def __init__(self, dims: int, channels: int, embed_dim: int):
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        quarter = channels // 4
        super().__init__(
            conv(1, quarter, kernel_size=2, stride=2),
            ChannelNorm(quarter),
            nn.GELU(),
            conv(quarter, channels, kernel_size=2, stride=2),
            ChannelNorm(channels),
            nn.GELU(),
            conv(channels, embed_dim, kernel_size=1),
        )

"""SAM's output upscaling, computed on tokens.

Both transposed convolutions have kernel = stride = 2, so every output voxel depends on one input cell: they are matrix
products. Staying in token layout to the end, and putting only the finished masks in spatial order, saves the copies of
the widest maps of the whole model.
"""

from typing import Literal, cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from adaptmedseg.modules.derived import Derived

Transposed = nn.ConvTranspose2d | nn.ConvTranspose3d


class OutputUpscaling(nn.Sequential):
    """Image tokens (n, s, c) to (n, s, p, p, c / 8), p = 2^dims cells a step; parameters as in the reference.

    `norm="map"` is SegVol's LayerNorm over the whole upscaled map, whose affine ties the decoder to one input size;
    `"channel"` is SAM's, over the channels of each cell.
    """

    def __init__(self, embed_dim: int, grid_size: tuple[int, ...], norm: Literal["map", "channel"]):
        transpose = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(grid_size)]
        quarter, eighth = embed_dim // 4, embed_dim // 8
        shape = [quarter, *[2 * n for n in grid_size]] if norm == "map" else [quarter]
        super().__init__(
            transpose(embed_dim, quarter, kernel_size=2, stride=2),
            nn.LayerNorm(shape, eps=1e-5 if norm == "map" else 1e-6),
            nn.GELU(),
            transpose(quarter, eighth, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.grid_size = tuple(grid_size)
        self.norm = norm
        self._derived = Derived()

    def forward(self, tokens: Tensor) -> Tensor:
        first, second = cast(Transposed, self[0]), cast(Transposed, self[3])
        norm = cast(nn.LayerNorm, self[1])
        cells = self._normalise(self._product(tokens, first, "first"), norm)
        return F.gelu(self._product(F.gelu(cells), second, "second"))

    def _product(self, x: Tensor, conv: Transposed, name: str) -> Tensor:
        """(..., c) to (..., p, c'): one matrix a position of the kernel."""
        kernel, bias = conv.weight.flatten(2), cast(Tensor, conv.bias)
        positions = kernel.shape[2]
        matrix = self._derived.get(
            f"{name} weight", (conv.weight,), lambda: rearrange(kernel, "c o p -> (p o) c").contiguous()
        )
        bias = self._derived.get(f"{name} bias", (bias,), lambda: bias.repeat(positions))
        return rearrange(F.linear(x, matrix, bias), "... (p o) -> ... p o", p=positions)

    def _normalise(self, cells: Tensor, norm: nn.LayerNorm) -> Tensor:
        if self.norm == "channel":
            return F.layer_norm(cells, cells.shape[-1:], norm.weight, norm.bias, norm.eps)
        weight = self._derived.get("norm weight", (norm.weight,), lambda: self._to_cells(norm.weight).contiguous())
        bias = self._derived.get("norm bias", (norm.bias,), lambda: self._to_cells(norm.bias).contiguous())
        return F.layer_norm(cells, cells.shape[1:], weight, bias, norm.eps)

    def _to_cells(self, grid_map: Tensor) -> Tensor:
        """A map (c, *2·grid) in the order of the cells, (s, p, c)."""
        if len(self.grid_size) == 2:
            return rearrange(grid_map, "c (h a) (w b) -> (h w) (a b) c", a=2, b=2)
        return rearrange(grid_map, "c (d a) (h b) (w e) -> (d h w) (a b e) c", a=2, b=2, e=2)

    def to_map(self, cells: Tensor) -> Tensor:
        """Values (n, s, p, p) in the order of the cells to maps (n, *4·grid)."""
        if len(self.grid_size) == 2:
            h, w = self.grid_size
            return rearrange(cells, "n (h w) (a b) (i j) -> n (h a i) (w b j)", h=h, w=w, a=2, b=2, i=2, j=2)
        d, h, w = self.grid_size
        return rearrange(
            cells,
            "n (d h w) (a b e) (i j k) -> n (d a i) (h b j) (w e k)",
            d=d, h=h, w=w, a=2, b=2, e=2, i=2, j=2, k=2,
        )  # fmt: skip

"""SAM's prompt encoder in two or three dimensions, with SegVol's coordinate quirks where its weights need them."""

import math
from typing import Literal, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from adaptmedseg.modules.derived import Derived
from adaptmedseg.modules.mask_downscaling import MaskDownscaling

Frame = Literal["normalised", "segvol"]


class RandomFourierPosition(nn.Module):
    """Positional encoding by a fixed Gaussian matrix G: enc(c) = [sin(2π(2c−1)G), cos(2π(2c−1)G)], c in [0, 1]."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dims: int, embed_dim: int):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(dims, embed_dim // 2))

    def forward(self, coords: Tensor) -> Tensor:
        """coords (..., dims) to (..., embed_dim); in float32 whatever the autocast, for angles are large."""
        with torch.autocast(coords.device.type, enabled=False):
            projected = (2 * coords.float() - 1) @ self.positional_encoding_gaussian_matrix.float()
            angle = 2 * math.pi * projected
            return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)


class PromptEncoder(nn.Module):
    """Points, boxes and text to sparse tokens; masks to a dense prompt; the grid's positions.

    Coordinates are voxels of the input view in (d, h, w) order (or (h, w) in 2D), voxel centres at integers.

    `frame="segvol"` keeps two quirks that SegVol's weights were trained with: points and corners divide their first
    coordinate by the second extent and the second by the first; the grid stacks its coordinates as (h, d, w).

    With `mask_channels`, the width of their embedding's hidden layer, masks can be prompts, as in SAM; SegVol has none.
    """

    extent: Tensor

    def __init__(
        self,
        embed_dim: int,
        grid_size: tuple[int, ...],
        spatial_size: tuple[int, ...],
        frame: Frame,
        mask_channels: int | None = None,
    ):
        super().__init__()
        dims = len(spatial_size)
        self.embed_dim = embed_dim
        self.grid_size = tuple(grid_size)
        self.frame = frame
        self.pe_layer = RandomFourierPosition(dims, embed_dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = None if mask_channels is None else MaskDownscaling(dims, mask_channels, embed_dim)
        extent = torch.tensor(spatial_size, dtype=torch.float32)
        if frame == "segvol":
            extent = extent[[1, 0, 2]]
        self.register_buffer("extent", extent, persistent=False)
        self._derived = Derived()

    def _point(self, kind: int) -> Tensor:
        """The learnt vector (1, c) of a point outside (0) or inside (1), of a box's lower (2) or upper (3) corner."""
        return cast(nn.Embedding, self.point_embeddings[kind]).weight

    def _encode_coords(self, coords: Tensor) -> Tensor:
        return self.pe_layer((coords + 0.5) / self.extent)

    def _encode_points(self, points: Tensor, labels: Tensor, *, pad: bool) -> Tensor:
        if pad:
            points = torch.cat([points, points.new_zeros(points.shape[0], 1, points.shape[2])], dim=1)
            labels = torch.cat([labels, -labels.new_ones(labels.shape[0], 1)], dim=1)
        encoded = self._encode_coords(points)
        label = labels[..., None]
        encoded = torch.where(label == -1, self.not_a_point_embed.weight, encoded)
        encoded = torch.where(label == 0, encoded + self._point(0), encoded)
        return torch.where(label == 1, encoded + self._point(1), encoded)

    def _encode_boxes(self, boxes: Tensor) -> Tensor:
        corners = self._encode_coords(boxes)
        return corners + torch.cat([self._point(2), self._point(3)])

    def sparse_tokens(
        self, n: int, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, text: Tensor | None
    ) -> Tensor:
        """Sparse tokens (n, t, c) in the order points, box corners, text.

        points (n, p, dims) with labels (n, p): 1 inside, 0 outside, −1 padding; boxes (n, 2, dims) as lower and upper
        corner; text (n, c). Any of them may be None.
        """
        tokens = [self.no_mask_embed.weight.new_zeros(n, 0, self.embed_dim)]
        if points is not None:
            if labels is None:
                raise ValueError("points come with labels (1 inside, 0 outside)")
            tokens.append(self._encode_points(points, labels, pad=boxes is None))
        if boxes is not None:
            tokens.append(self._encode_boxes(boxes))
        if text is not None:
            tokens.append(text[:, None])
        return torch.cat(tokens, dim=1)

    def dense_prompt(self, masks: Tensor | None = None) -> Tensor:
        """What is added to the image's tokens: the vector (1, 1, c) that stands for 'no mask given', or, for masks
        (n, *map) as logits at four times the grid's resolution, a vector a token (n, s, c)."""
        if masks is None:
            return self.no_mask_embed.weight[None]
        if self.mask_downscaling is None:
            raise ValueError("this model takes no masks as prompts")
        wanted = tuple(4 * n for n in self.grid_size)
        if tuple(masks.shape[1:]) != wanted:
            raise ValueError(f"mask prompts are {tuple(masks.shape[1:])}, the decoder's map is {wanted}")
        return rearrange(self.mask_downscaling(masks[:, None]), "n c ... -> n (...) c")

    def grid_position(self) -> Tensor:
        """Positions (1, c, *grid) of the image embedding's cells."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        return self._derived.get("grid", (matrix,), self._grid_position)

    def _grid_position(self) -> Tensor:
        device = self.extent.device
        axes = [(torch.arange(n, device=device) + 0.5) / n for n in self.grid_size]
        coords = list(torch.meshgrid(*axes, indexing="ij"))
        if self.frame == "segvol":
            coords[0], coords[1] = coords[1], coords[0]
        return rearrange(self.pe_layer(torch.stack(coords, dim=-1)), "... c -> 1 c ...")

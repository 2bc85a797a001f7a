"""Weights that belong to places of the patch grid, carried to another grid: another input size."""

from collections.abc import Mapping
from math import prod

import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.models.segvol import Size3

POSITIONS = "image_encoder.patch_embedding.position_embeddings"
MAP_NORM = ("mask_decoder.output_upscaling.1.weight", "mask_decoder.output_upscaling.1.bias")


def resample_map(field: Tensor, size: Size3) -> Tensor:
    """A field (c, d, h, w) over the view to another size, trilinear.

    Cell centres are aligned, cell i of n lying at (i + 0.5) / n of the view, so that a place keeps its value; beyond
    the outermost centres the field goes on unchanged. The same size gives the same tensor, to the bit. Along an axis
    of extent 1 in steps of h, a field f is met within h²/8 · max|f''| inside and h/2 · max|f'| at the border.
    """
    if tuple(field.shape[1:]) == tuple(size):
        return field
    return F.interpolate(field[None], size=tuple(size), mode="trilinear", align_corners=False)[0]


def resample_positions(positions: Tensor, old_grid: Size3, new_grid: Size3) -> Tensor:
    """Learned position embeddings (1, n, c) of one patch grid (d', h', w') to those of another, (1, n', c).

    Tokens are in (d h w) order; `resample_map` says how values are found. Raises ValueError where n is not the old
    grid's number of patches.
    """
    _, n, c = positions.shape
    if n != prod(old_grid):
        raise ValueError(f"{n} positions are not the patches of a grid {tuple(old_grid)}")
    field = positions[0].mT.reshape(c, *old_grid)
    return resample_map(field, new_grid).flatten(1).mT[None].contiguous()


def resample_weights(tensors: Mapping[str, Tensor], old_grid: Size3, new_grid: Size3) -> dict[str, Tensor]:
    """A SegVol's weights for another patch grid: position embeddings, and the affine of the norm over the upscaled map,
    which has twice the grid's size and ties the released decoder to one input size. All others are the same tensors."""
    changed = dict(tensors)
    changed[POSITIONS] = resample_positions(tensors[POSITIONS], old_grid, new_grid)
    doubled = (2 * new_grid[0], 2 * new_grid[1], 2 * new_grid[2])
    for name in MAP_NORM:
        if tensors[name].ndim == 4:
            changed[name] = resample_map(tensors[name], doubled).contiguous()
    return changed

"""Changed copies of a labelled picture."""

import math

import numpy as np
import torch
import torch.nn.functional as F

TURN = math.radians(12)
SCALE = 0.1
SHIFT = 0.05  # of the picture
GAMMA = 0.25


def jittered(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn, scale, shift and brighten a picture (h, w, 3), uint8, and its mask (h, w) a little; where the mask would
    leave the picture, only the colours change."""
    h, w = mask.shape
    angle, scale = rng.uniform(-TURN, TURN), 1 + rng.uniform(-SCALE, SCALE)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    shift = rng.uniform(-2 * SHIFT, 2 * SHIFT, 2)
    # Normalised coordinates run from -1 to 1 along both sides: turns are corrected for the sides' ratio.
    matrix = torch.tensor([[cos, -sin * h / w, shift[0]], [sin * w / h, cos, shift[1]]], dtype=torch.float32)
    stacked = torch.from_numpy(np.concatenate([image.astype(np.float32), mask[..., None]], axis=-1)).movedim(-1, 0)
    grid = F.affine_grid(matrix[None], [1, 4, h, w], align_corners=False)
    moved = F.grid_sample(stacked[None], grid, padding_mode="reflection", align_corners=False)[0]
    changed = moved if bool((moved[3] > 0.5).any()) else stacked
    gamma = math.exp(rng.uniform(-GAMMA, GAMMA))
    colours = (changed[:3] / 255).clamp(0, 1) ** gamma * 255
    return colours.round().byte().movedim(0, -1).numpy(), (changed[3] > 0.5).numpy()

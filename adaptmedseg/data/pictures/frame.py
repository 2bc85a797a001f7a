"""How an image of any size lies in the square that a network looks at."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Fit = Literal["pad", "stretch"]


@dataclass(frozen=True)
class Frame:
    """An image of `shape` (h, w) in a square of `size` pixels.

    "pad" scales until the longest side fits, keeping proportions, and leaves the rest below and to the right empty;
    "stretch" scales each axis to the whole square.
    """

    shape: tuple[int, int]
    size: int
    fit: Fit = "pad"

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the image within the square; at least a pixel each."""
        if self.fit == "stretch":
            return self.size, self.size
        scale = self.size / max(self.shape)
        h, w = (max(1, int(n * scale + 0.5)) for n in self.shape)
        return h, w

    def image(self, pixels: np.ndarray) -> Tensor:
        """Colours (h, w, 3), uint8, to (3, h', w') of `inner`: averaged where it shrinks, linear where it grows."""
        h, w = self.inner
        resized = Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).movedim(-1, 0)

    def coordinates(self, pixels: Tensor) -> Tensor:
        """Pixels (..., 2) of the image, (h, w) with centres at integers, to those of the square, as SAM scales them."""
        scale = [new / old for new, old in zip(self.inner, self.shape, strict=True)]
        return pixels * pixels.new_tensor(scale)

    def mask(self, mask: np.ndarray) -> Tensor:
        """A boolean mask (h, w) to one of the square (size, size), False in its empty part."""
        h, w = self.inner
        inside = F.interpolate(torch.from_numpy(mask)[None, None].float(), (h, w), mode="nearest-exact")
        return F.pad(inside[0, 0], (0, self.size - w, 0, self.size - h)) > 0

    def logits(self, logits: Tensor) -> Tensor:
        """Logits (n, m, *map) over the square to the image's pixels (n, m, h, w), linear in both steps as in SAM."""
        h, w = self.inner
        square = F.interpolate(logits, (self.size, self.size), mode="bilinear", align_corners=False)
        return F.interpolate(square[..., :h, :w], self.shape, mode="bilinear", align_corners=False)

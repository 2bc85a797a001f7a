"""The rule that fills a reference model: every tensor is drawn from its own name, so no weight file is needed."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn

TOKENS = ("position_embeddings", "iou_token", "mask_tokens", "point_embeddings", "not_a_point", "no_mask")


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a SegVol tensor by its name and shape."""
    if len(shape) == 1:
        return (0.0 if name.endswith("bias") else 1.0), 0.1
    if "pe_layer" in name:
        return 0.0, 1.0
    if ".embeddings." in name:
        return 0.0, 0.05
    if any(token in name for token in TOKENS):
        return 0.0, 0.5
    if name.endswith(("output_upscaling.0.weight", "output_upscaling.3.weight")):
        return 0.0, 2 / math.sqrt(shape[0])
    return 0.0, 1 / math.sqrt(math.prod(shape[1:]))


def draw(seed_text: str, shape: tuple[int, ...], mean: float, std: float) -> Tensor:
    """mean + std · z in float32, z from NumPy's generator seeded with the text's CRC-32."""
    z = np.random.default_rng(zlib.crc32(seed_text.encode())).standard_normal(shape)
    return torch.from_numpy((mean + std * z).astype(np.float32))


def fill(model: nn.Module, salt: str) -> None:
    """Fill all tensors of a SegVol by the rule."""
    tensors = model.state_dict()
    model.load_state_dict({k: draw(salt + k, tuple(v.shape), *spread(k, tuple(v.shape))) for k, v in tensors.items()})

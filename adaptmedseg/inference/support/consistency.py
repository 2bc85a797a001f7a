"""What neighbouring slices of a volume say of each other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 8.0  # a neighbour counts by its likeness to this power


def neighbours_agree(logits: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
    """Logits (h, w) of every slice, averaged with those of the slice before and the slice after.

    A neighbour counts by how alike the two slices are: the mean cosine of their embeddings (c, g, g), cell by cell,
    after the mean feature of all slices is taken away, to the power of `SHARPNESS`. So thin slices hold together, and a
    structure that ends between two thick ones may end.
    """
    if len(logits) == 1:
        return list(logits)
    stacked, features = torch.stack(list(logits)), torch.stack(list(embeddings))
    features = F.normalize(features - features.mean((0, 2, 3), keepdim=True), dim=1)
    alike = (features[1:] * features[:-1]).sum(1).mean((1, 2)).clamp(0, 1).pow(SHARPNESS).to(stacked)
    total, weight = stacked.clone(), torch.ones(len(stacked)).to(stacked)
    total[1:] += alike[:, None, None] * stacked[:-1]
    total[:-1] += alike[:, None, None] * stacked[1:]
    weight[1:] += alike
    weight[:-1] += alike
    return list(total / weight[:, None, None])

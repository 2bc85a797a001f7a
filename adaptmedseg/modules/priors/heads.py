"""What is read from updated tokens: one prototype a task, and the image's modality."""

from typing import cast

import torch
from torch import Tensor, nn

from adaptmedseg.modules.priors.layers import TwoLayerMLP, start_at_zero
from adaptmedseg.modules.priors.tokens import grown

NEVER_SEEN = -1e4  # the bias of a modality that the head was never trained on: it is never named
ADDITIVE_SCALE = 0.1
NUM_MASK_TOKENS = 4


class PosteriorPrototypes(nn.Module):
    """Hermes' head: updated task tokens (b, k, c) to one weight vector a task (b, k, out) by LayerNorm and two MLPs.

    Its product with the upscaled image representation is added to the base's mask logits. A fresh head gives zero.
    """

    def __init__(self, channels: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.classifier_pred = nn.Sequential(
            TwoLayerMLP(channels, channels, channels), TwoLayerMLP(channels, channels, out_dim)
        )
        start_at_zero(cast(TwoLayerMLP, self.classifier_pred[-1]).fc2)

    def forward(self, task_tokens: Tensor) -> Tensor:
        return self.classifier_pred(self.norm(task_tokens))


class MaskTokenUpdate(nn.Module):
    """Updated task tokens (b, k, c) to what is added to the decoder's mask tokens, (b, k, 4, embed_dim).

    An MLP by way of embed_dim / 16, scaled by 0.1. A fresh head gives zero.
    """

    def __init__(self, channels: int, embed_dim: int):
        super().__init__()
        self.mlp = TwoLayerMLP(channels, embed_dim // 16, NUM_MASK_TOKENS * embed_dim)
        start_at_zero(self.mlp.fc2)

    def forward(self, task_tokens: Tensor) -> Tensor:
        return ADDITIVE_SCALE * self.mlp(task_tokens).unflatten(-1, (NUM_MASK_TOKENS, -1))


class ModalityHead(nn.Module):
    """Updated modality tokens (b, l, c) to the logits (b, m) of the image's modality: LayerNorm, mean, MLP (Hermes).

    A modality that no training showed to the head is never named: its bias is far below all others until
    `start_learning`.
    """

    def __init__(self, channels: int, n_modalities: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.classifier = TwoLayerMLP(channels, channels, n_modalities)
        nn.init.constant_(self.classifier.fc2.bias, NEVER_SEEN)

    def forward(self, modality_tokens: Tensor) -> Tensor:
        return self.classifier(self.norm(modality_tokens).mean(dim=1))

    def seen(self) -> Tensor:
        """(m,): whether any training showed a modality to the head."""
        return self.classifier.fc2.bias > NEVER_SEEN / 2

    @torch.no_grad()
    def start_learning(self, modalities: list[int]) -> None:
        """Let modalities, by index, be named from now on."""
        bias = self.classifier.fc2.bias
        for index in modalities:
            if bias[index] <= NEVER_SEEN / 2:
                bias[index] = 0.0

    @torch.no_grad()
    def grow(self, sources: list[int | None]) -> None:
        """Add modalities that no training has shown yet, their weights copies of a relative's (by index) or zero."""
        old = self.classifier.fc2
        layer = nn.Linear(old.in_features, old.out_features + len(sources), device=old.weight.device)
        layer.weight.copy_(grown(old.weight, sources, old.weight.new_zeros(len(sources), old.in_features)))
        layer.bias.copy_(torch.cat([old.bias, old.bias.new_full((len(sources),), NEVER_SEEN)]))
        self.classifier.fc2 = layer

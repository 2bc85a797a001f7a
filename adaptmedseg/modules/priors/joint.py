"""Fusion by one self-attention over image, task and modality tokens together."""

import torch
from torch import Tensor, nn

from adaptmedseg.modules.priors.layers import PriorAttention, TwoLayerMLP
from adaptmedseg.modules.priors.layout import TokenLayout

NUM_HEADS = 4
IMAGE, TASK, MODALITY = range(3)


class JointFusionBlock(nn.Module):
    """A pre-norm transformer layer over [features, tasks, modality], an embedding added to each of the three groups.

    4 heads, an MLP of a quarter of the width. The features get an outer residual: what the layer says of them is added
    to them, by a weight a channel that starts at zero, so that a fresh block passes them through unchanged, to the bit.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.group_embed = nn.Parameter(torch.empty(3, channels))
        nn.init.normal_(self.group_embed, std=0.02)
        self.norm1 = nn.LayerNorm(channels)
        self.attn = PriorAttention(channels, NUM_HEADS)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = TwoLayerMLP(channels, channels // 4, channels)
        self.feature_scale = nn.Parameter(torch.zeros(channels))

    def start_as_identity_on_features(self) -> None:
        nn.init.zeros_(self.feature_scale)

    def _sequence(self, features: Tensor, priors: Tensor, layout: TokenLayout) -> Tensor:
        groups = self.group_embed
        tasks, modality = priors[:, : layout.n_tasks], priors[:, layout.n_tasks :]
        return torch.cat([features + groups[IMAGE], tasks + groups[TASK], modality + groups[MODALITY]], dim=1)

    def _layer(self, x: Tensor, first: int, mask: Tensor | None) -> Tensor:
        """The layer's output for the tokens from `first` on."""
        normed, rows = self.norm1(x), x[:, first:]
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., first:, :]
        rows = rows + self.attn(normed[:, first:], normed, mask)
        return rows + self.ffn(self.norm2(rows))

    def update_priors(self, features: Tensor, priors: Tensor, layout: TokenLayout) -> Tensor:
        """What the tokens (b, p, c) become; features (b, n, c) stay as they are."""
        n = features.shape[1]
        mask = layout.joint_mask(n, priors.shape[1], features.device)
        return self._layer(self._sequence(features, priors, layout), n, mask)

    def forward(self, features: Tensor, priors: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """features (b, n, c) and priors (b, p, c) to both updated."""
        n = features.shape[1]
        mask = layout.joint_mask(n, priors.shape[1], features.device)
        x = self._layer(self._sequence(features, priors, layout), 0, mask)
        return features + self.feature_scale * x[:, :n], x[:, n:]

"""Hermes' context priors (Gao et al., CVPR 2024, arXiv:2306.02416): tokens, fusion, posterior prototypes.

Layer names follow Hermes' own where a layer is Hermes' own.
"""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from adaptmedseg.modules.two_way import attend

HEAD_DIM = 32


class PriorAttention(nn.Module):
    """Attention of x to a context; no bias on q, k, v; head width 32."""

    def __init__(self, channels: int):
        super().__init__()
        if channels % HEAD_DIM:
            raise ValueError(f"context priors need a width that is a multiple of {HEAD_DIM}, not {channels}")
        self.num_heads = channels // HEAD_DIM
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(channels, 2 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = rearrange(self.to_q(x), "b n (l c) -> b l n c", l=self.num_heads)
        k, v = rearrange(self.to_kv(context), "b n (kv l c) -> kv b l n c", kv=2, l=self.num_heads)
        return self.to_out(rearrange(attend(q, k, v), "b l n c -> b n (l c)"))


class PreNormAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.fn = PriorAttention(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.fn(self.norm1(x), self.norm2(context))


class TwoLayerMLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PreNormMLP(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-4)
        self.fn = TwoLayerMLP(channels, 4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class TwoWayFusionBlock(nn.Module):
    """Priors attend to features, then features to the updated priors; each with a residual and an MLP."""

    def __init__(self, channels: int):
        super().__init__()
        self.prior_aggregate_block = PreNormAttention(channels)
        self.prior_ffn = PreNormMLP(channels)
        self.feat_aggregate_block = PreNormAttention(channels)
        self.feat_ffn = PreNormMLP(channels)

    def forward(self, features: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
        """features (b, n, c) and priors (b, p, c) to both updated."""
        priors = priors + self.prior_aggregate_block(priors, features)
        priors = priors + self.prior_ffn(priors)
        features = features + self.feat_aggregate_block(features, priors)
        return features + self.feat_ffn(features), priors

    def start_as_identity_on_features(self) -> None:
        """Zero the last layers of the features' path: a fresh block passes features through unchanged, to the bit."""
        for layer in (self.feat_aggregate_block.fn.to_out, self.feat_ffn.fn.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


class PriorPool(nn.Module):
    """Task tokens, one a task; the last is the null token, index −1, which pads. Modality tokens, a set a modality."""

    def __init__(self, n_tasks: int, n_modalities: int, tokens_per_modality: int, channels: int):
        super().__init__()
        self.task_prior = nn.Parameter(torch.empty(n_tasks + 1, channels))
        self.modality_prior = nn.Parameter(torch.empty(n_modalities, tokens_per_modality, channels))
        nn.init.xavier_uniform_(self.task_prior)
        nn.init.xavier_uniform_(self.modality_prior)

    def forward(self, tasks: Tensor, modality: Tensor) -> Tensor:
        """tasks (b, k) with −1 for padding, modality (b,) to the sequence (b, k + tokens_per_modality, c)."""
        null = len(self.task_prior) - 1
        return torch.cat([self.task_prior[torch.where(tasks < 0, null, tasks)], self.modality_prior[modality]], dim=1)


class PosteriorPrototypes(nn.Module):
    """Updated task tokens (b, k, c) to one weight vector a task (b, k, out): LayerNorm and two MLPs."""

    def __init__(self, channels: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.classifier_pred = nn.Sequential(
            TwoLayerMLP(channels, channels, channels), TwoLayerMLP(channels, channels, out_dim)
        )

    def forward(self, task_tokens: Tensor) -> Tensor:
        return self.classifier_pred(self.norm(task_tokens))

    def start_at_zero(self) -> None:
        """Zero the last layer: a fresh head adds nothing to the base model's masks."""
        last = cast(TwoLayerMLP, self.classifier_pred[-1]).fc2
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


class ContextPriors(nn.Module):
    """Priors between image encoder and mask decoder: fused image features and one prototype a task.

    A fresh module is an identity: features come back unchanged and prototypes are zero, whatever the tokens.
    """

    def __init__(
        self, n_tasks: int, n_modalities: int, channels: int, map_channels: int, blocks: int, modality_tokens: int
    ):
        super().__init__()
        self.pool = PriorPool(n_tasks, n_modalities, modality_tokens, channels)
        self.attn_layers = nn.ModuleList(TwoWayFusionBlock(channels) for _ in range(blocks))
        self.prototypes = PosteriorPrototypes(channels, map_channels)
        for block in self._blocks():
            block.start_as_identity_on_features()
        self.prototypes.start_at_zero()

    def _blocks(self) -> list[TwoWayFusionBlock]:
        return [cast(TwoWayFusionBlock, block) for block in self.attn_layers]

    def forward(self, image_embedding: Tensor, tasks: Tensor, modality: Tensor) -> tuple[Tensor, Tensor]:
        """image_embedding (b, c, *grid), tasks (b, k), modality (b,) to features like it and prototypes (b, k, c')."""
        features = image_embedding.flatten(2).mT
        priors = self.pool(tasks, modality)
        for block in self._blocks():
            features, priors = block(features, priors)
        prototypes = self.prototypes(priors[:, : tasks.shape[1]])
        return features.mT.reshape(image_embedding.shape), prototypes

"""Hermes' fusion (Gao et al., CVPR 2024, arXiv:2306.02416): tokens and features attend to each other in turn."""

from torch import Tensor, nn

from adaptmedseg.modules.priors.layers import PriorAttention, TwoLayerMLP, start_at_zero
from adaptmedseg.modules.priors.layout import TokenLayout

HEAD_DIM = 32


class PreNormAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        if channels % HEAD_DIM:
            raise ValueError(f"two-way fusion needs a width that is a multiple of {HEAD_DIM}, not {channels}")
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.fn = PriorAttention(channels, channels // HEAD_DIM)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.fn(self.norm1(x), self.norm2(context), mask)


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

    def update_priors(self, features: Tensor, priors: Tensor, layout: TokenLayout) -> Tensor:
        """What the tokens (b, p, c) become; features (b, n, c) stay as they are. Tokens never see each other here."""
        priors = priors + self.prior_aggregate_block(priors, features)
        return priors + self.prior_ffn(priors)

    def forward(self, features: Tensor, priors: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """features (b, n, c) and priors (b, p, c) to both updated."""
        priors = self.update_priors(features, priors, layout)
        seen, mask = layout.seen_by_features(priors)
        features = features + self.feat_aggregate_block(features, seen, mask)
        return features + self.feat_ffn(features), priors

    def start_as_identity_on_features(self) -> None:
        """Zero the last layers of the features' path: a fresh block passes features through unchanged, to the bit."""
        start_at_zero(self.feat_aggregate_block.fn.to_out)
        start_at_zero(self.feat_ffn.fn.fc2)

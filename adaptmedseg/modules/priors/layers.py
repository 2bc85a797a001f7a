"""What both fusions are made of: attention with few tokens on one side, and a two-layer MLP. Names are Hermes'."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from adaptmedseg.modules.two_way import attend


class PriorAttention(nn.Module):
    """Attention of x to a context; no bias on q, k, v."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the fusion's width {channels}")
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(channels, 2 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (b, n, c) and context (b, m, c) to (b, n, c); mask as in `attend`."""
        q = rearrange(self.to_q(x), "b n (l c) -> b l n c", l=self.num_heads)
        k, v = rearrange(self.to_kv(context), "b n (kv l c) -> kv b l n c", kv=2, l=self.num_heads)
        return self.to_out(rearrange(attend(q, k, v, mask), "b l n c -> b n (l c)"))


class TwoLayerMLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def start_at_zero(layer: nn.Linear) -> None:
    """A fresh layer that gives zero, whatever comes in."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)

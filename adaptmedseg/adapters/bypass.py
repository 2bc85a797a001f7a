"""What an adapter hangs on a layer of a frozen model: a trained path beside it, joined to it by a hook.

The layer itself, its class, its parameters and their names stay as they are.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Switch:
    """Shared by all bypasses of one named adapter: whether they are at work, and how strongly."""

    on: bool = False
    scale: float = 1.0


class Bypass(nn.Module):
    """A trained path beside one layer (the host). It starts without effect, to the bit.

    It is reached by the host's forward hook alone; a switch that is off costs one comparison.
    """

    def __init__(self, switch: Switch):
        super().__init__()
        self.switch = switch

    def attach(self, host: nn.Module) -> None:
        """Join the bypass to its host."""
        host.register_forward_hook(self._after)

    def _after(self, host: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self(inputs[0], output) if self.switch.on else output

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The host's input and output, (..., c) and (..., c'), to the adapted output."""
        raise NotImplementedError

    def folded(self, matrix: Tensor) -> Tensor | None:
        """The host's matrix (c', c) with what the bypass adds at present; None where that is no matrix."""
        return None if self.switch.on else matrix


class LinearBypass(Bypass):
    """A bypass that is linear in the host's input, so that it can be merged into the host's weight."""

    def factors(self) -> tuple[Tensor, Tensor]:
        """(r, c) and (c', r): what the bypass adds to the host's weight is their product, `strength` times."""
        raise NotImplementedError

    @property
    def strength(self) -> float:
        raise NotImplementedError

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        down, up = self.factors()
        # One fused product-and-add over the wide output; the scale goes to the small factor.
        low = F.linear(x, down * self.strength)
        return output.flatten(0, -2).addmm(low.flatten(0, -2), up.mT).reshape(output.shape)

    def folded(self, matrix: Tensor) -> Tensor:
        return matrix + self.delta() if self.switch.on else matrix

    def delta(self) -> Tensor:
        """What the bypass adds to the host's weight, (c', c)."""
        down, up = self.factors()
        return self.strength * up.float() @ down.float()

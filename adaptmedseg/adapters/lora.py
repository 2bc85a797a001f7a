"""Low-rank adaptation of linear layers (Hu et al. 2021, arXiv:2106.09685; rank-stabilised: Kalajdzievski 2023)."""

import fnmatch
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRALinear(nn.Linear):
    """W x + b + s · B A x, with B zero at the start, so that a fresh adapter changes nothing.

    It keeps the names `weight` and `bias`, so that a base checkpoint fits with or without adapters.
    s = alpha / sqrt(rank) (rank-stabilised).
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.scale = alpha / math.sqrt(rank)
        self.enabled = True
        self.lora_down = nn.Parameter(torch.empty(rank, linear.in_features, device=linear.weight.device))
        self.lora_up = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if not self.enabled:
            return out
        # One fused product-and-add over the wide output; the scale goes to the small factor.
        low = F.linear(x, self.lora_down * self.scale)
        return torch.addmm(out.flatten(0, -2), low.flatten(0, -2), self.lora_up.mT).reshape(out.shape)

    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=self.weight.device)
        with torch.no_grad():
            linear.weight.copy_(self.weight + self.scale * self.lora_up @ self.lora_down)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def add_lora(model: nn.Module, patterns: list[str], rank: int, alpha: float) -> list[str]:
    """Wrap every linear layer whose name matches a shell pattern; returns the names.

    Raises ValueError for a pattern that matches no linear layer, listing what there is.
    """
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    chosen: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(linears, pattern)
        if not hits:
            raise ValueError(f"LoRA target '{pattern}' matches no linear layer; there are: {', '.join(linears)}")
        chosen.update(hits)
    for name in sorted(chosen):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        _replace(model, name, LoRALinear(linear, rank, alpha))
    return sorted(chosen)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def merge_lora(model: nn.Module) -> None:
    """Replace every adapted layer by a plain one that computes the same."""
    for name, layer in lora_layers(model).items():
        _replace(model, name, layer.merged())


@contextmanager
def lora_enabled(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Switch all adapters of a model on or off within the block."""
    layers = lora_layers(model).values()
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = enabled
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer.enabled = state

"""Which optimiser takes which parameter, and how the learning rate goes."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from adaptmedseg.adapters.bypass import LinearBypass
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.training.config import OptimiserConfig
from adaptmedseg.training.muon import BatchedMuon


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up over the first `warmup` of the budget, cosine to zero over the rest; progress in [0, 1]."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices that map vectors to vectors: weights of linear layers and the factors of bypasses on them.

    Told by what holds them, not by name. Tables of embeddings and tokens are two-dimensional too, and none of these;
    nor is a matrix of one row or column, which is a vector.
    """
    found: list[nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            found.append(cast(nn.Parameter, module.weight))
        elif isinstance(module, LinearBypass):
            found += module.parameters(recurse=False)
    if isinstance(model, AdaptedSegVol):
        for adapter in model.adapters:
            for name, parameter in adapter.whole_parameters().items():
                owner, _, role = name.rpartition(".")
                if isinstance(model.base.get_submodule(owner), nn.Linear) and role == "weight":
                    found.append(parameter)
    return [p for p in found if p.requires_grad and p.ndim == 2 and min(p.shape) > 1]


def build_optimisers(
    model: nn.Module, config: OptimiserConfig, dtype: torch.dtype = torch.bfloat16
) -> list[torch.optim.Optimizer]:
    """Optimisers over the parameters that require gradients: matrices decay; biases, norms and tokens don't.

    Muon takes the matrices (Jordan et al. 2024, with AdamW's scale of updates, so that one learning rate serves both);
    embeddings, convolutions and vectors stay with AdamW. `dtype` is what Muon orthogonalises in.
    """
    matrices = matrices_of(model)
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    plain = [{"params": rest, "weight_decay": 0.0}]
    if config.matrices == "adamw" or not matrices:
        decayed = [{"params": matrices, "weight_decay": config.weight_decay}]
        return [_adamw(decayed + plain if matrices else plain, config.lr)]
    muon = BatchedMuon(matrices, lr=config.lr, weight_decay=config.weight_decay, dtype=dtype)
    return [muon, _adamw(plain, config.lr)] if rest else [muon]


def step_all(optimisers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler | None) -> None:
    """One update by each, and one of the scale of fp16's losses after the last: an update in between would have the
    scaler forget whose gradients it had divided already."""
    for optimiser in optimisers:
        if scaler is None:
            optimiser.step()
        else:
            scaler.step(getattr(optimiser, "optimizer", optimiser))  # what Accelerate wrapped, past its own update
    if scaler is not None:
        scaler.update()
    for optimiser in optimisers:
        optimiser.zero_grad()


def _adamw(groups: list[dict[str, Any]], lr: float) -> torch.optim.AdamW:
    """AdamW in one pass over memory, an eighth of the time on a CPU; shared-out weights (FSDP) go the common way."""
    whole = not any(isinstance(p, DTensor) for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=lr, fused=True if whole else None)

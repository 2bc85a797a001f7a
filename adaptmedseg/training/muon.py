"""Muon (Jordan et al. 2024) for many small matrices: those of one shape are orthogonalised together.

LoRA splits a model into dozens of factors, each too small to occupy a processor; one by one they took a quarter of a
training step. The arithmetic is that of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`. Matrices that are
shared out between processes are made whole for it, on each of them.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adaptmedseg.training.sharding import like, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton–Schulz iteration
STEPS = 5
EPS = 1e-7


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Matrices (n, r, c), r ≤ c, to approximately orthonormal rows, by Newton–Schulz iterations in `dtype`."""
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class BatchedMuon(Optimizer):
    """Orthogonalised momentum for two-dimensional parameters, with AdamW's scale of updates and decoupled decay.

    `dtype` is what it is orthogonalised in: bfloat16 turns the last bits of float32 gradients into different updates.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ):
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        wrong = [p.shape for group in self.param_groups for p in group["params"] if p.ndim != 2]
        if wrong:
            raise ValueError(f"Muon takes matrices only, not a parameter of shape {tuple(wrong[0])}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((min(parameter.shape), max(parameter.shape)), []).append(parameter)
            for parameters in alike.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, float]) -> None:
        gradients = [cast(Tensor, p.grad) for p in parameters]
        buffers = [self._buffer(p) for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
        wide = [x.mT if x.shape[0] > x.shape[1] else x for x in map(whole, nesterov)]
        updates = orthogonalise(torch.stack(wide), self.dtype)
        updates = updates.to(parameters[0].dtype)
        # The root mean square of AdamW's updates is about 0.2 (Liu et al. 2025, arXiv:2502.16982).
        rate = group["lr"] * 0.2 * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        moves = [like(p, u.mT if p.shape[0] > p.shape[1] else u) for p, u in zip(parameters, updates, strict=True)]
        torch._foreach_add_(parameters, moves, alpha=-rate)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]

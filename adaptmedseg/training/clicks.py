"""Simulated corrections: a click into what a mask has wrong, as an interactive user would give it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adaptmedseg.models.prompts import Prompts

PADDING = -1


def click_on_errors(
    logits: Tensor, target: Tensor, view: tuple[int, ...], generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """One click a prompt, drawn evenly from the cells that its mask has wrong.

    Args:
        logits: (n, d, h, w), or (n, h, w), on the decoder's map.
        target: the same shape, the fraction of foreground in each cell; from a half on it is foreground.
        view: voxels (d, h, w), or pixels (h, w), of the input view.
        generators: n, one a prompt, where some may be the same; of the CPU, so that every device draws alike.

    Returns:
        Points (n, 1, 3), voxels (d, h, w) of the view, and labels (n, 1): 1 where foreground was missed, 0 where it was
        made up, −1 (padding) for a mask without errors.
    """
    found, truth = logits > 0, target >= 0.5
    wrong = (found != truth).flatten(1)
    keys = torch.stack([torch.rand(wrong.shape[1], generator=g) for g in generators]).to(wrong.device)
    cell = torch.where(wrong, keys, -1.0).argmax(1)
    missed = truth.flatten(1).gather(1, cell[:, None])
    labels = torch.where(wrong.any(1, keepdim=True), missed.long(), PADDING)
    places = torch.stack(torch.unravel_index(cell, logits.shape[1:]), dim=-1).float()
    scale = torch.tensor(view, device=places.device) / torch.tensor(logits.shape[1:], device=places.device)
    return ((places + 0.5) * scale - 0.5)[:, None], labels


def with_click(prompts: Prompts, points: Tensor, labels: Tensor) -> Prompts:
    """Prompts with one more point each, (n, 1, 3) with labels (n, 1)."""
    if prompts.points is None or prompts.labels is None:
        return replace(prompts, points=points, labels=labels)
    return replace(
        prompts, points=torch.cat([prompts.points, points], 1), labels=torch.cat([prompts.labels, labels], 1)
    )

"""Segmentation losses on logits; each prompt counts the same."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − soft Dice of each prompt: logits and target (n, d, h, w), target in [0, 1], to (n,).

    As in SegVol, `smooth` stands in the denominator alone: an empty target gives a loss of 1 and no gradient, so that
    the cross-entropy beside it is all that teaches absence.
    """
    probs, target = torch.sigmoid(logits).flatten(1), target.flatten(1)
    overlap = (probs * target).sum(1)
    return 1 - 2 * overlap / (probs.sum(1) + target.sum(1) + smooth)


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each prompt: logits and target (n, d, h, w) to (n,)."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice + BCE, the mean over prompts, as SegVol was trained with."""
    logits, target = logits.float(), target.float()
    return (dice_loss(logits, target) + bce_loss(logits, target)).mean()


def target_on_map(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Binary masks (n, d, h, w) at the view's size to the fraction of foreground in each cell of the decoder's map.

    Averaging keeps boundaries at sub-cell precision, at a fraction of the cost of upsampling the logits.
    """
    return F.adaptive_avg_pool3d(masks[:, None].float(), (size[0], size[1], size[2]))[:, 0]

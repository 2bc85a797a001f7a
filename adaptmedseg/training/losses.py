"""Segmentation losses on logits; each prompt counts the same."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.training.learning_config import LossConfig

DICE_AND_BCE = LossConfig()


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


def focal_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Focal loss (Lin et al. 2017, arXiv:1708.02002) of each prompt: logits and target (n, d, h, w) to (n,).

    The cross-entropy of a voxel weighed by |target − probability|^gamma, which for binary targets is (1 − p_t)^gamma
    and leaves a cell that is part foreground at rest where its probability is that part.
    """
    miss = (target - torch.sigmoid(logits)).abs().clamp(min=1e-6)  # at 0 a power below 1 has no finite slope
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (miss**gamma * entropy).flatten(1).mean(1)


def prompt_losses(logits: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    """The loss of each prompt: logits and target (n, d, h, w) to (n,), in float32."""
    logits, target = logits.float(), target.float()
    losses = logits.new_zeros(len(logits))
    if config.dice:
        losses = losses + config.dice * dice_loss(logits, target)
    if config.voxels:
        gamma = config.focal_gamma
        voxels = bce_loss(logits, target) if gamma is None else focal_loss(logits, target, gamma)
        losses = losses + config.voxels * voxels
    return losses


def over_images(losses: Tensor, image_index: Tensor, config: LossConfig) -> Tensor:
    """Losses (n,) of prompts about images (n,) to one number: the mean, or the mean over images of their highest."""
    if config.over == "mean":
        return losses.mean()
    images = torch.unique(image_index)
    return torch.stack([losses[image_index == image].max() for image in images]).mean()


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice + BCE, the mean over prompts, as SegVol was trained with."""
    return prompt_losses(logits, target, DICE_AND_BCE).mean()


def target_on_map(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Binary masks (n, d, h, w) or (n, h, w) at the view's size to the share of foreground in each cell of the
    decoder's map.

    Averaging keeps boundaries at sub-cell precision, at a fraction of the cost of upsampling the logits.
    """
    stacked = masks[:, None].float()
    if len(size) == 2:
        return F.adaptive_avg_pool2d(stacked, (size[0], size[1]))[:, 0]
    return F.adaptive_avg_pool3d(stacked, (size[0], size[1], size[2]))[:, 0]


def overlap_losses(estimates: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Squared errors (n,) of SAM's estimates (n,) of the overlap (intersection over union) of its masks, logits > 0,
    with the target, both (n, *map), as in Kirillov et al. 2023. No gradient reaches the masks."""
    found, truth = (logits.detach() > 0).flatten(1), (target >= 0.5).flatten(1)
    union = (found | truth).sum(1)
    overlaps = torch.where(union == 0, 1.0, (found & truth).sum(1) / union.clamp(min=1))
    return (estimates.float() - overlaps).square()

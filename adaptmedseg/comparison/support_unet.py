"""The baseline that a support set has to beat: a plain 2D U-Net, trained from scratch on the supports alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

from adaptmedseg.data.pictures.frame import Frame
from adaptmedseg.evaluation.slices.by_support import Segment
from adaptmedseg.inference.support.frozen import working_size
from adaptmedseg.inference.support.jitter import jittered
from adaptmedseg.inference.support.supports import Support

BATCH = 4
STRIDE = 16  # of the network's coarsest level: sides are multiples of it
LARGEST = 256
LEARNING_RATE = 3e-3


def train_unet(supports: Sequence[Support], structure: str, seconds: float, seed: int) -> Segment:
    """Train MONAI's U-Net (16 to 128 channels, residual units) for so many seconds of the processor's time, with the
    changes of `jittered` and flips, on Dice and cross-entropy; at least one step."""
    side = min(working_size([(s.image.shape[0], s.image.shape[1]) for s in supports]), LARGEST)
    size = -(-side // STRIDE) * STRIDE
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = UNet(2, 3, 1, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2)
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    started = time.process_time()
    while True:
        spent = (time.process_time() - started) / max(seconds, 1e-9)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * max(1 - spent, 0.05)
        chosen = [supports[i] for i in rng.integers(len(supports), size=BATCH)]
        images, masks = _batch(chosen, structure, size, rng)
        loss = _loss(network(images)[:, 0], masks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if spent >= 1:
            break
    return _segment(network.eval(), size)


def _batch(supports: Sequence[Support], structure: str, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    images, masks = [], []
    for support in supports:
        image, mask = jittered(support.image, support.masks[structure], rng)
        if rng.random() < 0.5:
            image, mask = image[:, ::-1].copy(), mask[:, ::-1].copy()
        images.append(_square(image, size))
        masks.append(Frame((mask.shape[0], mask.shape[1]), size).mask(mask).float())
    return torch.stack(images), torch.stack(masks)


def _square(image: np.ndarray, size: int) -> Tensor:
    """Colours (h, w, 3), uint8, standardised, in a square (3, s, s), zero below and to the right."""
    inner = Frame((image.shape[0], image.shape[1]), size).image(image).float()
    inner = (inner - inner.mean()) / inner.std().clamp(min=1e-3)
    return F.pad(inner, (0, size - inner.shape[-1], 0, size - inner.shape[-2]))


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    chance = torch.sigmoid(logits)
    shared, total = (chance * target).sum((1, 2)), (chance + target).sum((1, 2))
    return F.binary_cross_entropy_with_logits(logits, target) + (1 - (2 * shared + 1) / (total + 1)).mean()


def _segment(network: nn.Module, size: int) -> Segment:
    def segment(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = network(_square(image, size)[None])
        return (Frame((image.shape[0], image.shape[1]), size).logits(logits)[0, 0] > 0).numpy()

    return segment

"""MRI's artefacts by TorchIO: motion, ghosting and thick slices. They change images alone, never masks."""

import torch
import torchio as tio
from torch import Tensor

from adaptmedseg.training.config import AugmentConfig

MOTION_DEGREES, MOTION_MM = 5.0, 4.0
GHOSTS, GHOST_INTENSITY = (2, 6), (0.2, 0.7)
THICKER = (1.5, 4.0)


def build_artefacts(config: AugmentConfig) -> list[tio.Transform]:
    """The transforms that a configuration asks for; each draws for itself whether it happens."""
    steps: list[tio.Transform] = []
    if config.anisotropy:
        steps.append(tio.RandomAnisotropy(downsampling=THICKER, p=config.anisotropy))
    if config.motion:
        steps.append(tio.RandomMotion(MOTION_DEGREES, MOTION_MM, num_transforms=2, p=config.motion))
    if config.ghosting:
        steps.append(tio.RandomGhosting(GHOSTS, axes=(1, 2), intensity=GHOST_INTENSITY, p=config.ghosting))
    return steps


def apply_artefacts(steps: list[tio.Transform], image: Tensor, seed: int) -> Tensor:
    """Artefacts on a view (1, d, h, w); the seed alone decides the draw. Other random streams are left as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        subject = tio.Subject(image=tio.ScalarImage(tensor=image))
        for step in steps:
            subject = step(subject)
    return subject.image.data.to(torch.float32)

"""Random changes of a training view, by MONAI's transforms and, for artefacts, TorchIO's."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torchio as tio
from monai.transforms import (
    Compose,
    MapTransform,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.utils import convert_to_tensor
from torch import Tensor

from adaptmedseg.training.artefacts import apply_artefacts, build_artefacts
from adaptmedseg.training.config import AugmentConfig

IMAGE, MASKS = "image", "masks"


class RandomCurved(MapTransform, Randomizable):
    """Map intensities in [0, 1] through a random piecewise-linear curve that need not rise; zero, the air, stays zero.

    After the non-linear intensity changes of Models Genesis (Zhou et al. 2019): tissues keep their borders and lose
    their contrast's sign.
    """

    def __init__(self, keys: list[str], prob: float, knots: int = 5):
        super().__init__(keys)
        self.prob = prob
        self.knots = np.linspace(0, 1, knots, dtype=np.float32)

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        curved = self.R.random() < self.prob
        values = self.R.random(len(self.knots)).astype(np.float32)
        values[0] = 0
        out = dict(data)
        for key in self.keys if curved else ():
            out[key] = torch.from_numpy(np.interp(np.asarray(data[key]), self.knots, values).astype(np.float32))
        return out


@dataclass(frozen=True)
class Augmentation:
    """Changes of place and intensity, then artefacts."""

    changes: Compose
    artefacts: list[tio.Transform]


def build_augmentation(config: AugmentConfig, size: tuple[int, ...]) -> Augmentation:
    """Transforms of {image: (c, d, h, w), masks: (1, d, h, w)}, or of both without d; masks are a packed label map,
    never interpolated. MRI's artefacts are for volumes alone."""
    tilt, dims = math.radians(config.rotate), len(size)
    # Volumes are anisotropic: turns out of the axial plane are kept to a third of those within it.
    affine = RandAffined(
        [IMAGE, MASKS],
        prob=config.spatial,
        rotate_range=(tilt, tilt / 3, tilt / 3) if dims == 3 else tilt,
        shear_range=(config.shear,) * (dims * (dims - 1)),
        translate_range=tuple(config.translate * n for n in size),
        scale_range=(config.scale,) * dims,
        spatial_size=size,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
        cache_grid=True,
    )
    affine.rand_affine.resampler.dtype = torch.float32  # MONAI's float64 takes half as long again
    steps = [
        affine,
        RandGaussianSmoothd([IMAGE], prob=config.blur, sigma_x=(0.3, 0.8), sigma_y=(0.3, 1), sigma_z=(0.3, 1)),
        RandScaleIntensityd([IMAGE], prob=0.7, factors=config.intensity),
        RandShiftIntensityd([IMAGE], prob=0.7, offsets=config.intensity / 2),
    ]
    if config.curve:
        steps.append(RandomCurved([IMAGE], prob=config.curve))
    if config.bias_field:
        steps.append(RandBiasFieldd([IMAGE], prob=0.7, coeff_range=(-config.bias_field, config.bias_field)))
    if config.gamma:
        steps.append(RandAdjustContrastd([IMAGE], prob=0.6, gamma=(1 - config.gamma, 1 / (1 - config.gamma))))
    if config.noise:
        steps.append(RandGaussianNoised([IMAGE], prob=0.5, std=config.noise))
    return Augmentation(Compose(steps), build_artefacts(config))


def augment(transform: Augmentation, image: Tensor, masks: np.ndarray, seed: int) -> tuple[Tensor, np.ndarray]:
    """Apply a transform to a view (c, d, h, w) and its boolean masks (k, d, h, w), or to both without d; the seed alone
    decides the draw."""
    packed = np.zeros(masks.shape[1:], np.float32)
    for bit, mask in enumerate(masks):
        packed += mask * np.float32(2**bit)
    transform.changes.set_random_state(seed=seed)
    out = transform.changes({IMAGE: image, MASKS: torch.from_numpy(packed)[None]})
    labels = np.asarray(out[MASKS][0]).round().astype(np.int64)
    unpacked = np.stack([(labels >> bit) & 1 for bit in range(len(masks))]).astype(bool)
    plain = convert_to_tensor(out[IMAGE], dtype=torch.float32, track_meta=False)  # a MetaTensor slows all that follows
    if transform.artefacts:
        plain = apply_artefacts(transform.artefacts, plain.clamp(0, 1), seed)
    return plain.clamp(0, 1), unpacked

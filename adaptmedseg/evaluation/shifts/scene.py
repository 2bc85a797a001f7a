"""What a shift changes: a normalised image, and the true masks that move with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torchio as tio

Kind = Literal["corruption", "geometry"]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """An image in [0, 1], float32 (d, h, w), as a model sees it, with masks (d, h, w) of structures, and the spacing in
    mm. `mirrored` says that left and right changed places, and with them the names of sided structures."""

    image: np.ndarray
    masks: Mapping[str, np.ndarray]
    spacing: Spacing
    mirrored: bool = False

    def with_image(self, image: np.ndarray) -> "Scene":
        """The same anatomy under another image, cut to [0, 1]."""
        return replace(self, image=np.clip(np.nan_to_num(image), 0, 1).astype(np.float32))

    def transformed(self, transform: tio.Transform) -> np.ndarray:
        """The image after a TorchIO transform, not cut; axes stay (d, h, w), the transform's millimetres are real."""
        affine = np.diag([*self.spacing, 1.0])
        image = tio.ScalarImage(tensor=torch.from_numpy(self.image)[None].clone(), affine=affine)
        return transform(tio.Subject(image=image)).image.data[0].numpy()


@dataclass(frozen=True)
class Shift:
    """A change with `levels` of growing severity. `apply` gets one level and a generator that is the same at every
    level of a case, so that only the strength differs."""

    name: str
    kind: Kind
    levels: tuple[float, ...]
    unit: str
    apply: Callable[[Scene, float, np.random.Generator], Scene]

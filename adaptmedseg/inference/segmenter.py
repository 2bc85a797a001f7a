"""From a normalised crop to probabilities on the same voxels: what evaluation, validation and prediction share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.data.views import ResizeMode, resize_image
from adaptmedseg.models.prompts import Prompts, text_prompts


class PromptableModel(Protocol):
    """What inference needs of a model: an embedding that depends on the image alone, and masks from prompts."""

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor: ...

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor: ...


@contextmanager
def inference_precision(device: torch.device, bf16: bool) -> Iterator[None]:
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        yield


class CropSegmenter:
    """The zoom-out view: one normalised crop (d, h, w), encoded once, asked as often as one likes.

    Masks are thresholded on the crop's own voxels: the decoder's logits are interpolated trilinearly to them.
    """

    def __init__(
        self,
        model: PromptableModel,
        size: tuple[int, int, int],
        resize: ResizeMode,
        device: torch.device,
        bf16: bool = True,
    ):
        self.model, self.size, self.resize, self.device, self.bf16 = model, size, resize, device, bf16
        self._embedding: Tensor | None = None
        self._modality = ""
        self._shape: tuple[int, ...] = ()

    def set_crop(self, crop: np.ndarray, modality: str) -> None:
        """Encode a crop (d, h, w) in [0, 1]."""
        view = resize_image(torch.from_numpy(crop)[None, None].to(self.device), self.size, self.resize)
        with inference_precision(self.device, self.bf16):
            self._embedding = self.model.embed(view, [modality]).float()
        self._modality, self._shape = modality, crop.shape

    def to_view(self, coords: Tensor) -> Tensor:
        """Voxel coordinates (..., 3) of the crop to those of the view; voxel centres at integers."""
        scale = torch.tensor([n / m for n, m in zip(self.size, self._shape, strict=True)])
        return (coords + 0.5) * scale - 0.5

    def logits(self, prompts: Prompts) -> Tensor:
        """Mask logits (n, *map) on the decoder's map, float32; prompts in coordinates of the view."""
        if self._embedding is None:
            raise RuntimeError("set_crop comes first")
        with inference_precision(self.device, self.bf16):
            return self.model.segment(self._embedding, prompts.to(self.device)).float()

    def probabilities(self, prompts: Prompts) -> Iterator[np.ndarray]:
        """One probability map (d, h, w) on the crop's voxels after another: memory stays at one structure."""
        for logits in self.logits(prompts):
            full = F.interpolate(logits[None, None], size=self._shape, mode="trilinear", align_corners=False)
            yield torch.sigmoid(full[0, 0]).cpu().numpy()

    def masks_by_name(self, structures: list[str]) -> dict[str, np.ndarray]:
        """Boolean masks (d, h, w) of structures asked by name alone."""
        prompts = text_prompts([structures], [self._modality])
        return {name: p > 0.5 for name, p in zip(structures, self.probabilities(prompts), strict=True)}

"""A frozen SAM as support sets use it: pictures in, features out; prompts in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.data.pictures.frame import Frame
from adaptmedseg.inference.precision import inference_precision
from adaptmedseg.inference.support.filters import local_features
from adaptmedseg.models.adapted_sam import PictureModel
from adaptmedseg.models.prompts import Prompts, StructurePrompt, batch_prompts

WORKING = (128, 512)  # least and most pixels along a working picture's longest side


@dataclass(frozen=True, eq=False)
class Encoded:
    """What is known of one picture of `shape` (h, w).

    `image`: the working picture (h', w', 3), uint8, on which maps are made; `frame`: how it lies in the square that the
    encoder saw; `embedding` (c, g, g), float32; `inside` (g, g): the cells that show the picture, not padding.
    """

    shape: tuple[int, int]
    image: np.ndarray
    frame: Frame
    embedding: Tensor
    inside: Tensor

    @cached_property
    def local(self) -> Tensor:
        """Fixed filters of the working picture (k, h', w'), float16, on the CPU."""
        return local_features(self.image).half()

    @property
    def features(self) -> Tensor:
        """One row a cell inside (n, c)."""
        return self.embedding[:, self.inside].mT

    @property
    def positions(self) -> Tensor:
        """Where the cells inside lie in the picture (n, 2), as fractions of its height and width."""
        cells = len(self.inside)
        height, width = (n * cells / self.frame.size for n in self.frame.inner)
        return (self.inside.nonzero() + 0.5) / self.inside.new_tensor([height, width], dtype=torch.float32)

    def spread(self, values: Tensor) -> Tensor:
        """Values of the cells inside (k, n) to maps (k, h', w') on the working picture, linear between cells."""
        maps = values.new_zeros(len(values), *self.inside.shape)
        maps[:, self.inside] = values
        # Beyond the picture's border cells would pull towards zero: they repeat the last ones inside.
        rows, columns = (int(self.inside.any(dim=axis).sum()) for axis in (1, 0))
        maps = F.pad(
            maps[None, :, :rows, :columns],
            (0, self.inside.shape[1] - columns, 0, self.inside.shape[0] - rows),
            mode="replicate",
        )
        return self.frame.logits(maps)[0]


class FrozenSam:
    """Encodes pictures and decodes prompts; `working` is the longest side, in pixels, of working pictures."""

    def __init__(self, model: PictureModel, device: torch.device, working: int = WORKING[1], *, bf16: bool = True):
        self.model = model.to(device).eval()
        self.device, self.working, self.bf16 = device, working, bf16

    def frame(self, shape: tuple[int, int]) -> Frame:
        """How a picture (h, w) lies in the square that the encoder sees."""
        return Frame(shape, self.model.config.image_size, self.model.config.fit)

    def encode(self, image: np.ndarray) -> Encoded:
        """A picture's colours (h, w, 3), uint8."""
        shape = (image.shape[0], image.shape[1])
        given = self.frame(shape)
        with inference_precision(self.device, self.bf16):
            square = self.model.normalise(given.image(image).to(self.device))
            embedding = self.model.encode(square[None])[0].float()
        working = Frame(shape, self.working)
        resized = working.image(image).movedim(0, -1).numpy()
        shown = self.cells(torch.ones(1, *shape), given)[0]
        inside = shown >= shown.max().clamp(max=0.5)
        inner = (resized.shape[0], resized.shape[1])
        return Encoded(shape, resized, self.frame(inner), embedding, inside)

    def cells(self, masks: Tensor, frame: Frame) -> Tensor:
        """Masks (n, h, w) on a picture to the share (n, g, g) of each cell that they cover."""
        h, w = frame.inner
        inner = F.interpolate(masks[None].float(), (h, w), mode="area")
        square = F.pad(inner, (0, frame.size - w, 0, frame.size - h))
        h, w = self.model.prompt_encoder.grid_size
        return F.adaptive_avg_pool2d(square, (h, w))[0].to(self.device)

    def decode(self, encoded: Encoded, asked: Sequence[StructurePrompt], masks: Tensor | None = None) -> Tensor:
        """Logits (n, h', w') of n prompts of one kind on the working picture; their coordinates are its pixels (h, w).

        masks (n, h', w'): logits of an earlier answer to each prompt.
        """
        batch = batch_prompts(asked, [0] * len(asked), ["picture"])
        frame = encoded.frame
        points, boxes = (None if x is None else frame.coordinates(x) for x in (batch.points, batch.boxes))
        earlier = None if masks is None else self._map(masks, frame)
        prompts = Prompts(
            batch.image_index, batch.structures, ["picture"], False, points, batch.labels, boxes, earlier
        ).to(self.device)
        with inference_precision(self.device, self.bf16):
            logits = self.model.decode(encoded.embedding[None], prompts).logits
        return frame.logits(logits.float())[:, 0].cpu()

    def _map(self, masks: Tensor, frame: Frame) -> Tensor:
        """Logits (n, h', w') on the working picture to the decoder's map, very negative in the padding."""
        h, w = frame.inner
        inner = F.interpolate(masks[None].float(), (h, w), mode="bilinear", align_corners=False)
        square = F.pad(inner, (0, frame.size - w, 0, frame.size - h), value=float(masks.min()))
        h, w = self.model.prompt_encoder.grid_size
        return F.adaptive_avg_pool2d(square, (4 * h, 4 * w))[0]


def working_size(shapes: Sequence[tuple[int, int]]) -> int:
    """The longest side of working pictures for pictures of these shapes: their median, within limits."""
    return int(np.clip(np.median([max(shape) for shape in shapes]), *WORKING))

"""Training samples of slices and pictures: an image, and some of its annotated structures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.data.pictures.dataset import SliceItem
from adaptmedseg.data.pictures.frame import Frame
from adaptmedseg.models.sam import PIXEL_MEAN, SamConfig, normalise_pixels
from adaptmedseg.training.augment import augment, build_augmentation
from adaptmedseg.training.choice import Choice
from adaptmedseg.training.sampling import SampleStream
from adaptmedseg.training.slice_config import SliceTrainConfig


@dataclass(frozen=True)
class SliceView:
    """One image as the model looks at it, without the square's empty part: `image` (3, h', w'), uint8, and the boolean
    masks (s, s) of the structures that can be asked. `dataset` is what balanced sampling counts by. `embedding` (c, g,
    g) is there where it was computed beforehand."""

    modality: str
    dataset: str
    image: Tensor
    masks: dict[str, np.ndarray]
    embedding: Tensor | None = None

    @property
    def structures(self) -> list[str]:
        """All that this image can teach."""
        return sorted(self.masks)


def view_of(
    item: SliceItem, dataset: str, config: SamConfig, wanted: Sequence[str], least: int, *, absent: bool = False
) -> SliceView:
    """Read and resize an image; structures of fewer than `least` pixels of the square are left out, unless what is
    annotated and not there is to be learnt, too (`absent`)."""
    frame = Frame(item.shape, config.image_size, config.fit)
    masks = {name: frame.mask(item.mask(name)).numpy() for name in item.annotated if name in wanted}
    masks = {name: mask for name, mask in masks.items() if absent or np.count_nonzero(mask) >= least}
    return SliceView(item.modality, dataset, frame.image(item.image()), masks)


class SliceStream(SampleStream):
    """Batches of images (b, 3, s, s), normalised for a SAM, with masks (n, s, s)."""

    def __init__(self, views: Sequence[SliceView], model: SamConfig, config: SliceTrainConfig):
        self.views = [view for view in views if view.masks]
        if not self.views:
            raise ValueError("no image has a structure to train on")
        super().__init__([view.modality for view in self.views], config.batch_size, config.prompts, config.seed)
        self.model, self.config = model, config
        self.transform = build_augmentation(config.augment, (model.image_size, model.image_size))
        self.padding = torch.tensor(PIXEL_MEAN)[:, None, None] / 255  # zero after normalisation
        self.choice = Choice(self.views, config.data.balance, config.seed)

    def draw(self, position: int, rng: np.random.Generator) -> tuple[str, Tensor, dict[str, np.ndarray]]:
        view = self.views[self.choice.case(position)]
        names = self.choice.structures(view.structures, self.config.structures_per_image, rng)
        if view.embedding is not None:
            return view.modality, view.embedding.float(), {name: view.masks[name] for name in names}
        size = self.model.image_size
        inside = view.image.float() / 255 - self.padding
        image = F.pad(inside, (0, size - inside.shape[-1], 0, size - inside.shape[-2])) + self.padding
        masks = np.stack([view.masks[name] for name in names])
        image, masks = augment(self.transform, image, masks, int(rng.integers(2**31)))
        for axis in (-1, -2):  # asked by place, not by name: left and right need no exchange
            if rng.random() < self.config.augment.mirror:
                image, masks = image.flip(axis), np.flip(masks, axis).copy()
        return view.modality, normalise_pixels(image * 255, self.model), dict(zip(names, masks, strict=True))

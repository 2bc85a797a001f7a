"""Training samples: a view of a case, some of its annotated structures, and prompts for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.data.views import ResizeMode, resize_image, resize_labels
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.training.augment import augment, build_augmentation
from adaptmedseg.training.config import AugmentConfig, PromptConfig
from adaptmedseg.training.simulate import simulate_boxes, simulate_points

MIN_VOXELS = 8  # fewer voxels of a structure in a view are noise, not a target


@dataclass(frozen=True)
class CachedView:
    """The zoom-out view of one case: image (d, h, w) float16, labels (d, h, w) as bit masks.

    `bits` gives the bit of each structure that is annotated and present, `mirrored` its name after a left-right flip.
    """

    modality: str
    image: Tensor
    labels: np.ndarray
    bits: dict[str, int]
    mirrored: dict[str, str]

    def mask(self, name: str) -> np.ndarray:
        """The boolean mask (d, h, w) of a structure."""
        return (self.labels >> self.bits[name]) & 1 == 1


def cache_view(
    case: PreparedCase,
    structures: list[str] | None,
    size: tuple[int, int, int],
    mode: ResizeMode,
    mirror: Callable[[str], str],
) -> CachedView:
    """Resize a prepared case to the network's input; structures of a few voxels in the view are left out."""
    image = resize_image(torch.from_numpy(case.image())[None, None], size, mode)[0, 0].half()
    stored = torch.from_numpy(case.labels().astype(np.int64))[None, None]
    labels = resize_labels(stored, size)[0, 0].numpy().astype(case.labels().dtype)
    wanted = [name for name in case.annotated if structures is None or name in structures]
    bits = {name: case.structures.index(name) for name in wanted}
    bits = {name: bit for name, bit in bits.items() if np.count_nonzero((labels >> bit) & 1) >= MIN_VOXELS}
    return CachedView(case.modality, image, labels, bits, {name: mirror(name) for name in bits})


@dataclass(frozen=True)
class Batch:
    """Views (b, 1, d, h, w), prompts over them, and the boolean masks (n, d, h, w) they ask for."""

    images: Tensor
    prompts: Prompts
    masks: Tensor


class BatchStream(IterableDataset):
    """An endless stream of batches. Batch i depends on the seed and i alone, whatever worker makes it."""

    def __init__(
        self,
        views: list[CachedView],
        batch_size: int,
        structures_per_image: int,
        prompts: PromptConfig,
        augmentation: AugmentConfig,
        seed: int,
    ):
        super().__init__()
        self.views = [view for view in views if view.bits]
        if not self.views:
            raise ValueError("no view has a structure to train on")
        self.batch_size = batch_size
        self.structures_per_image = structures_per_image
        self.shares = prompts.model_dump()
        self.augmentation = augmentation
        d, h, w = self.views[0].image.shape
        self.transform = build_augmentation(augmentation, (d, h, w))
        self.seed = seed

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        index, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while True:
            yield self.batch(index)
            index += step

    def batch(self, index: int) -> Batch:
        rng = np.random.default_rng([self.seed, index])
        kind = str(rng.choice(list(self.shares), p=list(self.shares.values())))
        images, masks, names, image_index, modalities = [], [], [], [], []
        for row in range(self.batch_size):
            view = self.views[self._case(index * self.batch_size + row)]
            image, drawn = self._sample(view, rng)
            images.append(image)
            modalities.append(view.modality)
            for name, mask in drawn.items():
                names.append(name)
                masks.append(mask)
                image_index.append(row)
        stacked = np.stack(masks)
        points, labels = simulate_points(stacked, rng) if "points" in kind else (None, None)
        boxes = simulate_boxes(stacked, rng) if "box" in kind else None
        prompts = Prompts(torch.tensor(image_index), names, modalities, "text" in kind, points, labels, boxes)
        return Batch(torch.stack(images), prompts, torch.from_numpy(stacked))

    def _case(self, position: int) -> int:
        """The case at a position of the stream: every epoch is a fresh permutation."""
        epoch, offset = divmod(position, len(self.views))
        return int(np.random.default_rng([self.seed, 7, epoch]).permutation(len(self.views))[offset])

    def _sample(self, view: CachedView, rng: np.random.Generator) -> tuple[Tensor, dict[str, np.ndarray]]:
        present = sorted(view.bits)
        count = min(self.structures_per_image, len(present))
        names = [present[i] for i in rng.choice(len(present), count, replace=False)]
        masks = np.stack([view.mask(name) for name in names])
        image, masks = augment(self.transform, view.image.float()[None], masks, int(rng.integers(2**31)))
        if rng.random() < self.augmentation.mirror:
            image, masks, names = image.flip(-1), masks[..., ::-1].copy(), [view.mirrored[name] for name in names]
        return image, dict(zip(names, masks, strict=True))

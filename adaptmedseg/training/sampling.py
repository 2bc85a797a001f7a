"""Training samples: a view of a case, some of its annotated structures, and prompts for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from adaptmedseg.models.prompts import Prompts
from adaptmedseg.training.augment import augment, build_augmentation
from adaptmedseg.training.choice import Choice
from adaptmedseg.training.config import AugmentConfig, BalanceConfig, PromptConfig
from adaptmedseg.training.simulate import simulate_boxes, simulate_points
from adaptmedseg.training.views import View

EVERY_CASE_ONCE = BalanceConfig()


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
        views: Sequence[View],
        batch_size: int,
        structures_per_image: int,
        prompts: PromptConfig,
        augmentation: AugmentConfig,
        seed: int,
        balance: BalanceConfig = EVERY_CASE_ONCE,
        zoom_in: float = 0.0,
    ):
        super().__init__()
        self.views = [view for view in views if (view.structures if zoom_in else view.bits)]
        if not self.views:
            raise ValueError("no view has a structure to train on")
        self.batch_size = batch_size
        self.structures_per_image = structures_per_image
        self.shares = prompts.model_dump()
        self.augmentation = augmentation
        d, h, w = self.views[0].load().image.shape
        self.transform = build_augmentation(augmentation, (d, h, w))
        self.seed = seed
        self.zoom_in = zoom_in
        self.choice = Choice(self.views, balance, seed)

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
            view = self.views[self.choice.case(index * self.batch_size + row)]
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

    def _sample(self, view: View, rng: np.random.Generator) -> tuple[Tensor, dict[str, np.ndarray]]:
        # No number is drawn where nothing is to be decided, so that a stream of views alone stays what it was.
        can = bool(self.zoom_in) and view.windows is not None and bool(view.windows.places)
        closer = can and (not view.bits or rng.random() < self.zoom_in)
        image, masks, names = self._window(view, rng) if closer else self._view(view, rng)
        image, masks = augment(self.transform, image[None], masks, int(rng.integers(2**31)))
        if rng.random() < self.augmentation.mirror:
            image, masks, names = image.flip(-1), masks[..., ::-1].copy(), [view.mirrored[name] for name in names]
        return image, dict(zip(names, masks, strict=True))

    def _view(self, view: View, rng: np.random.Generator) -> tuple[Tensor, np.ndarray, list[str]]:
        """The whole crop and some of its structures."""
        loaded = view.load()
        names = self.choice.structures(sorted(loaded.bits), self.structures_per_image, rng)
        return loaded.image.float(), np.stack([loaded.mask(name) for name in names]), names

    def _window(self, view: View, rng: np.random.Generator) -> tuple[Tensor, np.ndarray, list[str]]:
        """A window round a structure, with that structure first and others that it shows."""
        windows = view.windows
        if windows is None:
            raise ValueError("zoom_in needs views with windows")
        (centre,) = self.choice.structures(windows.structures, 1, rng)
        image, masks = windows.draw(centre, rng)
        others = [name for name in windows.present(masks) if name != centre]
        more = self.structures_per_image - 1
        names = [centre, *(self.choice.structures(others, more, rng) if others and more else [])]
        return image, masks[[windows.structures.index(name) for name in names]], names

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
from adaptmedseg.training.config import AugmentConfig, BalanceConfig
from adaptmedseg.training.embeddings import EmbeddedViews
from adaptmedseg.training.learning_config import PromptConfig
from adaptmedseg.training.objective import Question
from adaptmedseg.training.simulate import of_kind, points_inside, simulate_boxes, simulate_points
from adaptmedseg.training.views import View

EVERY_CASE_ONCE = BalanceConfig()
OF_STEP, OF_SAMPLE = 17, 13  # streams of random numbers, apart from those of `Choice`


@dataclass(frozen=True)
class Batch:
    """Views (b, 1, d, h, w), the kinds of prompt asked over them, and the boolean masks (n, d, h, w) they ask for; of
    pictures (b, 3, h, w) and (n, h, w).

    Where they are `embedded`, images are embeddings (b, c, d', h', w'). All kinds ask for the same structures of the
    same images. `seeds`, one an image, are for what is drawn later, while a step is made.
    """

    images: Tensor
    kinds: tuple[Prompts, ...]
    masks: Tensor
    seeds: tuple[int, ...]
    embedded: bool = False

    @property
    def prompts(self) -> Prompts:
        """The first kind."""
        return self.kinds[0]

    def question(self, device: torch.device) -> Question:
        """The batch on a device."""
        kinds = [kind.to(device) for kind in self.kinds]
        return Question(self.images.to(device), self.masks.to(device), kinds, self.seeds, self.embedded)


@dataclass(frozen=True)
class Share:
    """Which part of every step's batch one process makes: `pieces` of the batch's `of` equal pieces, from `first` on.

    A process has one piece, or several where gradients are accumulated.
    """

    first: int = 0
    pieces: int = 1
    of: int = 1


ALL = Share()


@dataclass(frozen=True)
class Sample:
    """One view (1, d, h, w), or its embedding, and its share of a batch's prompts; masks (n, d, h, w) and what
    `Prompts` holds of them."""

    modality: str
    image: Tensor
    names: list[str]
    masks: Tensor
    points: Tensor | None
    labels: Tensor | None
    boxes: Tensor | None
    seed: int


class SampleStream(IterableDataset):
    """An endless stream of batches of `batch_size` views, a batch a step.

    A sample depends on the seed and its place in the stream alone, and what a batch has in common (the kind of prompt)
    on the seed and the step: not on the worker or the process that makes it, nor on how a batch is cut into pieces.
    Iteration gives the pieces of `share`, from step `start` on.
    """

    def __init__(self, modalities: Sequence[str], batch_size: int, prompts: PromptConfig, seed: int):
        """`modalities` are those of all views."""
        super().__init__()
        self.modalities = list(modalities)
        self.batch_size = batch_size
        self.prompts = prompts
        self.seed = seed
        self.share = ALL
        self.start = 0

    @property
    def embedded(self) -> bool:
        """Whether images are given as embeddings."""
        return False

    def draw(self, position: int, rng: np.random.Generator) -> tuple[str, Tensor, dict[str, np.ndarray]]:
        """The view at a position of the stream, changed at random: its modality, the image (or its embedding, where
        they are `embedded`), and the boolean masks of some of its structures."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        index, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while True:
            steps, piece = divmod(index, self.share.pieces)
            yield self.batch(self.start + steps, self.share.first + piece, self.share.of)
            index += step

    def batch(self, step: int, piece: int = 0, of: int = 1) -> Batch:
        """The batch of a step, or one of its `of` equal pieces."""
        common = np.random.default_rng([self.seed, OF_STEP, step])
        shares = self.prompts.shares
        kinds = [
            str(k) for k in common.choice(list(shares), self.prompts.kinds, replace=False, p=list(shares.values()))
        ]
        n_inside = points_inside(common, self.prompts.points_each)
        size = self.batch_size // of
        first = step * self.batch_size + piece * size
        samples = [self.sample(position, kinds, n_inside) for position in range(first, first + size)]
        asked = Prompts(
            torch.tensor([row for row, sample in enumerate(samples) for _ in sample.names]),
            [name for sample in samples for name in sample.names],
            [sample.modality for sample in samples],
            points=_joined([s.points for s in samples]),
            labels=_joined([s.labels for s in samples]),
            boxes=_joined([s.boxes for s in samples]),
        )
        return Batch(
            torch.stack([s.image for s in samples]),
            tuple(of_kind(asked, kind) for kind in kinds),
            torch.cat([s.masks for s in samples]),
            tuple(s.seed for s in samples),
            self.embedded,
        )

    def sample(self, position: int, kinds: Sequence[str], n_inside: int) -> "Sample":
        """The view at a position of the stream, changed at random, with what some kinds of prompt take."""
        rng = np.random.default_rng([self.seed, OF_SAMPLE, position])
        modality, image, drawn = self.draw(position, rng)
        masks = np.stack(list(drawn.values()))
        points = labels = boxes = None
        if any("points" in kind for kind in kinds):
            points, labels = simulate_points(masks, n_inside, rng)
        if any("box" in kind for kind in kinds):
            boxes = simulate_boxes(masks, rng, self.prompts.box_jitter)
        seed = int(rng.integers(2**31))
        return Sample(modality, image, list(drawn), torch.from_numpy(masks), points, labels, boxes, seed)


class BatchStream(SampleStream):
    """Batches of views of volumes."""

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
        self.views = [view for view in views if (view.structures if zoom_in else view.bits)]
        if not self.views:
            raise ValueError("no view has a structure to train on")
        super().__init__([view.modality for view in self.views], batch_size, prompts, seed)
        self.structures_per_image = structures_per_image
        self.augmentation = augmentation
        d, h, w = self.views[0].load().image.shape
        self.transform = build_augmentation(augmentation, (d, h, w))
        self.zoom_in = zoom_in
        self.choice = Choice(self.views, balance, seed)
        self.embeddings: EmbeddedViews | None = None  # of all views, to be given in the place of images

    @property
    def embedded(self) -> bool:
        return self.embeddings is not None

    def draw(self, position: int, rng: np.random.Generator) -> tuple[str, Tensor, dict[str, np.ndarray]]:
        case = self.choice.case(position)
        view = self.views[case]
        drawn = self._sample(view, rng) if self.embeddings is None else self._stored(self.embeddings, case, rng)
        return view.modality, *drawn

    def _sample(self, view: View, rng: np.random.Generator) -> tuple[Tensor, dict[str, np.ndarray]]:
        # No number is drawn where nothing is to be decided, so that a stream of views alone stays what it was.
        can = bool(self.zoom_in) and view.windows is not None and bool(view.windows.places)
        closer = can and (not view.bits or rng.random() < self.zoom_in)
        image, masks, names = self._window(view, rng) if closer else self._view(view, rng)
        image, masks = augment(self.transform, image[None], masks, int(rng.integers(2**31)))
        if rng.random() < self.augmentation.mirror:
            image, masks, names = image.flip(-1), masks[..., ::-1].copy(), [view.mirrored[name] for name in names]
        return image, dict(zip(names, masks, strict=True))

    def _stored(
        self, embeddings: EmbeddedViews, case: int, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, np.ndarray]]:
        """A stored embedding (c, d', h', w') of a case, and some of the structures that its view shows."""
        stored = embeddings.draw(case, rng)
        names = self.choice.structures(sorted(stored.names), self.structures_per_image, rng)
        return stored.embedding.float(), {name: stored.mask(name) for name in names}

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


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """The parts of all samples, which all have one or all have none."""
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None

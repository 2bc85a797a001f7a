"""What is asked of a model: images, and prompts that each name a structure of one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_ROWS = ("image_index", "points", "labels", "boxes", "masks")


@dataclass(frozen=True)
class Prompts:
    """n prompts over a batch of b images; coordinates are voxels (d, h, w), or pixels (h, w), of the input view.

    image_index (n,): the image each prompt asks about. structures: n canonical names. modalities: b canonical names.
    use_text: whether the structure's name enters as a text prompt (the same for all n).
    points (n, p, 3) with labels (n, p): 1 inside, 0 outside, −1 padding. boxes (n, 2, 3): lower and upper corner. In 2D
    the last axis has length 2. masks (n, *map): logits of an earlier answer, on the decoder's map.
    """

    image_index: Tensor
    structures: list[str]
    modalities: list[str]
    use_text: bool = True
    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.structures)

    @property
    def has_places(self) -> bool:
        """Whether anything beside names is given."""
        return any(value is not None for value in (self.points, self.boxes, self.masks))

    def part(self, start: int, stop: int) -> "Prompts":
        """The prompts start ≤ i < stop, over the same images."""
        kept = {name: value[start:stop] for name in _ROWS if (value := getattr(self, name)) is not None}
        return replace(self, structures=self.structures[start:stop], **kept)

    def select(self, rows: Tensor) -> "Prompts":
        """The prompts where the boolean mask `rows` (n,) is true, over the same images."""
        kept = {name: value[rows] for name in _ROWS if (value := getattr(self, name)) is not None}
        structures = [name for name, keep in zip(self.structures, rows.tolist(), strict=True) if keep]
        return replace(self, structures=structures, **kept)

    def to(self, device: torch.device) -> "Prompts":
        moved = {name: value.to(device) for name in _ROWS if (value := getattr(self, name)) is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class TaskUpdate:
    """What task tokens add to n prompts on their way through the decoder; None adds nothing.

    names (n, c): to the embeddings of the structures' names. mask_tokens (n, 4, c): to the decoder's mask tokens after
    its transformer. weights (n, c'): to the weights that the upscaled map is multiplied by.
    """

    names: Tensor | None = None
    mask_tokens: Tensor | None = None
    weights: Tensor | None = None

    def part(self, start: int, stop: int) -> "TaskUpdate":
        """What is added to the prompts start ≤ i < stop."""
        return TaskUpdate(*(None if x is None else x[start:stop] for x in (self.names, self.mask_tokens, self.weights)))


NO_UPDATE = TaskUpdate()


@dataclass(frozen=True)
class StructurePrompt:
    """One structure asked of one image, in whatever ways: by its name as text, points, a box, or several of them.

    Coordinates are voxels (d, h, w) of the crop, the foreground box of the normalised volume, voxel centres at
    integers. points (p, 3) with labels (p,): 1 inside, 0 outside. box (2, 3): lower and upper corner.
    """

    structure: str
    text: bool = True
    points: Tensor | None = None
    labels: Tensor | None = None
    box: Tensor | None = None

    @property
    def kind(self) -> tuple[bool, int, bool]:
        """Prompts of one kind can be asked in one batch: text, number of points, box."""
        return self.text, 0 if self.points is None else len(self.points), self.box is not None


def batch_prompts(prompts: Sequence[StructurePrompt], image_index: Sequence[int], modalities: list[str]) -> Prompts:
    """Prompts of one kind as one batch over images; the coordinates stay as they are."""
    first = prompts[0]
    points, labels, boxes = (
        None if getattr(first, name) is None else torch.stack([getattr(p, name) for p in prompts]).float()
        for name in ("points", "labels", "box")
    )
    names = [p.structure for p in prompts]
    return Prompts(torch.tensor(image_index, dtype=torch.long), names, modalities, first.text, points, labels, boxes)


def text_prompts(structures_per_image: list[list[str]], modalities: list[str]) -> Prompts:
    """Every listed structure of every image, asked by name alone."""
    index = [i for i, names in enumerate(structures_per_image) for _ in names]
    flat = [name for names in structures_per_image for name in names]
    return Prompts(torch.tensor(index, dtype=torch.long), flat, modalities)

"""The structures and modalities that an adapted model has tokens for, and which tokens a prompt asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adaptmedseg.models.prompts import Prompts

UNKNOWN = -1


@dataclass(frozen=True)
class TaskTable:
    """The tasks asked of b images, each once: indices (b, k), −1 where an image is asked less than k, and the column
    (n,) of each prompt in its image's row, −1 for a structure without a token."""

    tasks: Tensor
    column: Tensor

    @property
    def padding(self) -> Tensor | None:
        """(b, k): true where a column only fills; None where nothing does."""
        padding = self.tasks < 0
        return padding if padding.any() else None

    def of_prompts(self, values: Tensor, image_index: Tensor) -> Tensor:
        """Values (b, k, ...) of the tasks to those of the prompts (n, ...); zero for a structure without a token."""
        rows = values[image_index, self.column.clamp(min=0)]
        known = (self.column >= 0).reshape(-1, *[1] * (rows.ndim - 1))
        return rows * known

    def index_of_prompts(self, image_index: Tensor) -> Tensor:
        """The task (n,) of each prompt, −1 for a structure without a token."""
        return torch.where(self.column < 0, UNKNOWN, self.tasks[image_index, self.column.clamp(min=0)])


@dataclass(frozen=True)
class Vocabulary:
    """Tasks and modalities in the order of their tokens.

    `swapped` sends a name to the name whose token is used in its stead, or to None for no token: for finding out what
    tokens are worth. It is empty in all other use.
    """

    tasks: tuple[str, ...]
    modalities: tuple[str, ...]
    swapped: Mapping[str, str | None] = field(default_factory=dict)

    def task(self, structure: str) -> int:
        """The index of a structure's token, −1 without one."""
        return self._index(structure, self.tasks)

    def modality(self, modality: str) -> int:
        """The index of a modality's tokens, −1 without any."""
        return self._index(modality, self.modalities)

    def _index(self, name: str, names: tuple[str, ...]) -> int:
        meant = self.swapped.get(name, name)
        return names.index(meant) if meant in names else UNKNOWN

    def modality_index(self, prompts: Prompts) -> Tensor:
        """(b,): each image's modality."""
        index = [self.modality(name) for name in prompts.modalities]
        return torch.tensor(index, device=prompts.image_index.device)

    def task_table(self, prompts: Prompts) -> TaskTable:
        """The tasks that prompts ask of their images, in the order of the vocabulary whatever theirs."""
        images = prompts.image_index.tolist()
        asked = [self.task(name) for name in prompts.structures]
        rows = [
            sorted({task for image, task in zip(images, asked, strict=True) if image == row and task != UNKNOWN})
            for row in range(len(prompts.modalities))
        ]
        width = max([1, *map(len, rows)])
        column = [
            rows[image].index(task) if task != UNKNOWN else UNKNOWN for image, task in zip(images, asked, strict=True)
        ]
        device = prompts.image_index.device
        table = torch.tensor([row + [UNKNOWN] * (width - len(row)) for row in rows], device=device)
        return TaskTable(table, torch.tensor(column, dtype=torch.long, device=device))

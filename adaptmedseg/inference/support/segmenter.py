"""Structures of new pictures from a support set: the Python interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.inference.prediction import label_dtype
from adaptmedseg.inference.support.consistency import neighbours_agree
from adaptmedseg.inference.support.frozen import Encoded, FrozenSam, working_size
from adaptmedseg.inference.support.supports import SupportSet
from adaptmedseg.inference.support.task import SupportTask, show
from adaptmedseg.models.adapted_sam import PictureModel
from adaptmedseg.models.prompts import StructurePrompt

Method = Literal["support set", "prior", "nearest prototype"]
METHODS: tuple[Method, ...] = ("support set", "prior", "nearest prototype")


@dataclass(frozen=True, eq=False)
class SupportAnswer:
    """One structure of one picture: `logits` (h, w), float32, on its own pixels, above zero where the structure is;
    `expected_dice`: that of `SupportTask`, on left-out supports."""

    structure: str
    logits: np.ndarray
    expected_dice: float

    @property
    def mask(self) -> np.ndarray:
        """Boolean mask (h, w)."""
        return self.logits > 0

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities (h, w), float32."""
        return 1 / (1 + np.exp(-np.clip(self.logits, -80, 80)))


class SupportSegmenter:
    """Learns structures from a support set by looking at it, then finds them in pictures; the network stays as it is.

    >>> segmenter = SupportSegmenter(sam, SupportSet(supports), torch.device("cpu"))
    >>> segmenter.segment(image)[0].mask

    A new structure costs what it takes to encode the supports and to calibrate on them (`SupportTask`): seconds.
    """

    def __init__(
        self,
        model: PictureModel,
        supports: SupportSet,
        device: torch.device,
        structures: Sequence[str] | None = None,
        *,
        bf16: bool = True,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ):
        """`structures`: those to look for; all that the supports show by default. UserError for others."""
        wanted = list(structures) if structures is not None else supports.structures
        showing = {name: supports.showing(name) for name in wanted}
        size = working_size([support.image.shape[:2] for support in supports.supports])
        self.sam = FrozenSam(model, device, size, bf16=bf16)
        used = [s for s in supports.supports if any(s in found for found in showing.values())]
        total, encoded = len(used) + len(wanted), {}
        for support in used:
            encoded[id(support)] = self.sam.encode(support.image)
            if progress is not None:
                progress(len(encoded), total)
        self.tasks: dict[str, SupportTask] = {}
        for name, found in showing.items():
            shown = [show(self.sam, support, encoded[id(support)], name) for support in found]
            self.tasks[name] = SupportTask(self.sam, name, shown, seed)
            if progress is not None:
                progress(len(used) + len(self.tasks), total)

    def segment(
        self,
        image: np.ndarray,
        given: Mapping[str, StructurePrompt] | None = None,
        method: Method = "support set",
    ) -> list[SupportAnswer]:
        """All structures of a picture (h, w, 3), uint8, which is taken to show them: each fills about as much of it as
        of the supports (`Extent`), unless a user's prompt says where it is.

        `given`: a user's own points or box for some of them, in the picture's pixels (h, w). `method`: the whole of it,
        the prior alone, or the baseline.
        """
        query = self.sam.encode(image)
        asked = {name: _on_working(prompt, query) for name, prompt in (given or {}).items()}
        return [
            self._answer(task, query, _logits(task, query, asked.get(name), method))
            for name, task in self.tasks.items()
        ]

    def segment_stack(self, images: Sequence[np.ndarray]) -> list[list[SupportAnswer]]:
        """All structures of neighbouring slices (h, w, 3), of one shape, in two passes: what slices say of their
        neighbours is what is expected in the second one (`neighbours_agree`)."""
        queries = [self.sam.encode(image) for image in images]
        answers: list[list[SupportAnswer]] = [[] for _ in images]
        for task in self.tasks.values():
            first = [task.logits(query) for query in queries]
            agreed = neighbours_agree(first, [query.embedding for query in queries])
            for number, (query, expected) in enumerate(zip(queries, agreed, strict=True)):
                logits = task.decided(query, expected + task.prior.threshold)
                answers[number].append(self._answer(task, query, logits))
        return answers

    def _answer(self, task: SupportTask, query: Encoded, logits: Tensor) -> SupportAnswer:
        whole = F.interpolate(logits[None, None], query.shape, mode="bilinear", align_corners=False)[0, 0]
        return SupportAnswer(task.structure, whole.numpy(), task.expected_dice)


def _logits(task: SupportTask, query: Encoded, given: StructurePrompt | None, method: Method) -> Tensor:
    if method == "nearest prototype":
        return task.prototype_logits(query)
    found = task.prior_logits(query) if method == "prior" else task.logits(query, given)
    return found if given is not None else task.extent.applied(found)


def _on_working(prompt: StructurePrompt, query: Encoded) -> StructurePrompt:
    """A prompt in the picture's pixels to one in its working picture's."""
    scale = torch.tensor([new / old for new, old in zip(query.image.shape, query.shape, strict=False)])
    points, box = (None if x is None else x * scale for x in (prompt.points, prompt.box))
    return StructurePrompt(prompt.structure, text=False, points=points, labels=prompt.labels, box=box)


def label_map(answers: Sequence[SupportAnswer]) -> np.ndarray:
    """Labels (h, w) 1, 2, ... in the order of the answers; where structures overlap, the surer one."""
    logits = np.stack([answer.logits for answer in answers])
    best = logits.argmax(0)
    return np.where(logits.max(0) > 0, best + 1, 0).astype(label_dtype(len(answers)))

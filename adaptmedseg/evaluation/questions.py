"""Ways of asking a model about the structures of a case, each with the origin of its prompts.

All but names are made from the truth and called 'oracle': they say how a model answers to a prompt of that quality,
not what it does by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

import numpy as np
import torch

from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.evaluation.clicks import Click, next_click
from adaptmedseg.inference.prompt_origin import NONE, TEXT, joined, oracle_box, oracle_clicks, oracle_points
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.training.simulate import box_of


@dataclass(frozen=True)
class Answered:
    """One structure's mask, boolean (d, h, w) on the case's crop, and where its prompt came from."""

    structure: str
    origin: str
    mask: np.ndarray


class Question(Protocol):
    """A way of asking: the answers for structures of a case whose image the segmenter holds, in the order of names.

    Structures that cannot be asked this way (no voxel in the crop to make a prompt from) are left out.
    """

    def ask(
        self, segmenter: CropSegmenter, case: PreparedCase, names: Sequence[str], zoom: bool
    ) -> Iterator[Answered]: ...


@dataclass(frozen=True)
class ByName:
    """By the structure's name alone."""

    def ask(self, segmenter: CropSegmenter, case: PreparedCase, names: Sequence[str], zoom: bool) -> Iterator[Answered]:
        for result in segmenter.segment([StructurePrompt(name) for name in names], zoom):
            yield Answered(result.structure, TEXT, result.logits > 0)


@dataclass(frozen=True)
class FixedOutput:
    """Networks with one output a structure are asked for nothing; the name picks the output."""

    def ask(self, segmenter: CropSegmenter, case: PreparedCase, names: Sequence[str], zoom: bool) -> Iterator[Answered]:
        for answered in ByName().ask(segmenter, case, names, zoom):
            yield Answered(answered.structure, NONE, answered.mask)


@dataclass(frozen=True)
class FromTruth:
    """By prompts made from the truth: its box and `points` voxels inside of it, each where asked for, with or without
    the name.

    Each coordinate of the box is moved by a whole number of voxels drawn evenly from -`shift` to `shift`, and cut to
    the crop. `seed`, case and structure alone decide the draws, so that all models are asked the same.
    """

    text: bool = True
    box: bool = False
    shift: int = 0
    points: int = 0
    seed: int = 0

    @property
    def origin(self) -> str:
        parts = [(TEXT, self.text), (oracle_box(self.shift), self.box), (oracle_points(self.points), self.points)]
        return joined(name for name, used in parts if used)

    def ask(self, segmenter: CropSegmenter, case: PreparedCase, names: Sequence[str], zoom: bool) -> Iterator[Answered]:
        present = [name for name in names if case.voxels_in_crop[name]]
        prompts = [self.prompt(name, case.mask(name), case.id) for name in present]
        for result in segmenter.segment(prompts, zoom):
            yield Answered(result.structure, self.origin, result.logits > 0)

    def prompt(self, structure: str, truth: np.ndarray, case: str) -> StructurePrompt:
        """The prompt for a truth (d, h, w) that is not empty."""
        rng = np.random.default_rng([self.seed, crc32(case.encode()), crc32(structure.encode())])
        points = labels = box = None
        if self.points:
            inside = rng.choice(np.flatnonzero(truth), self.points)
            points = torch.from_numpy(np.stack(np.unravel_index(inside, truth.shape), axis=-1)).float()
            labels = torch.ones(self.points, dtype=torch.long)
        if self.box:
            box = torch.from_numpy(self._box(truth, rng))
        return StructurePrompt(structure, self.text, points, labels, box)

    def _box(self, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        box = box_of(truth)
        if box is None:
            raise ValueError("an empty truth has no box")
        moved = box + rng.integers(-self.shift, self.shift + 1, size=(2, 3)).astype(np.float32)
        return np.sort(np.clip(moved, 0, np.array(truth.shape, np.float32) - 1), axis=0)


@dataclass(frozen=True)
class Clicks:
    """Simulated clicks, one after another, each in the depth of the largest error of the answer before it.

    With the name, the first answer is that to the name alone; without it, the first click goes into the truth. Every
    answer on the way is given, so that one call makes a whole curve.
    """

    count: int
    text: bool = True

    def ask(self, segmenter: CropSegmenter, case: PreparedCase, names: Sequence[str], zoom: bool) -> Iterator[Answered]:
        truths = {name: case.mask(name) for name in names if case.voxels_in_crop[name]}
        answers = {name: np.zeros_like(truth) for name, truth in truths.items()}
        clicks: dict[str, list[Click]] = {name: [] for name in truths}
        for number in range(0 if self.text else 1, self.count + 1):
            if number:
                for name, truth in truths.items():
                    click = next_click(answers[name], truth, case.spacing)
                    clicks[name] += [] if click is None else [click]
            origin = joined([*([TEXT] if self.text else []), *([oracle_clicks(number)] if number else [])])
            prompts = [_clicked(name, made, self.text) for name, made in clicks.items()]
            for result in segmenter.segment(prompts, zoom):
                answers[result.structure] = result.logits > 0
                yield Answered(result.structure, origin, answers[result.structure])


def _clicked(structure: str, clicks: Sequence[Click], text: bool) -> StructurePrompt:
    if not clicks:
        return StructurePrompt(structure, text)
    points = torch.tensor([click.position for click in clicks], dtype=torch.float32)
    return StructurePrompt(structure, text, points, torch.tensor([int(click.inside) for click in clicks]))

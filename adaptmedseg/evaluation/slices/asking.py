"""Ways of asking a model of pictures about the structures of an image: by class, or by prompts made from the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np
import torch

from adaptmedseg.data.pictures.dataset import SliceDataset, SliceItem
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.slices.scores import Answer, item_records
from adaptmedseg.inference.picture_loading import LoadedPictureModel
from adaptmedseg.inference.pictures import PicturePredictor
from adaptmedseg.inference.prompt_origin import ORACLE_BOX, TEXT, oracle_points
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.training.simulate import box_of

Way = Literal["class", "oracle box", "oracle point"]
WAYS: tuple[Way, ...] = ("class", "oracle box", "oracle point")
ORIGINS: dict[Way, str] = {"class": TEXT, "oracle box": ORACLE_BOX, "oracle point": oracle_points(1)}


@dataclass(frozen=True)
class SliceMethod:
    """A model under the name it has in tables."""

    name: str
    loaded: LoadedPictureModel


@dataclass(frozen=True)
class Queries:
    """The images of a set to score, and the structures asked for."""

    dataset: SliceDataset
    items: Sequence[SliceItem]
    structures: Sequence[str]


def refuse_seen(method: SliceMethod, queries: Queries) -> None:
    """UserError where a model was trained on one of the images."""
    for item in queries.items:
        if item.image_sha256 in method.loaded.seen:
            raise UserError(
                f"{queries.dataset.name}/{item.id}: model '{method.name}' was trained on this image, so that its score "
                "would be no test; choose another --split or set"
            )


def prompt_of(truth: np.ndarray, structure: str, way: Way, image: str) -> StructurePrompt:
    """A prompt for a truth (h, w) that is not empty; image and structure alone decide where a point falls."""
    if way == "class":
        return StructurePrompt(structure, text=False)
    if way == "oracle box":
        box = box_of(truth)
        assert box is not None
        return StructurePrompt(structure, text=False, box=torch.from_numpy(box))
    rng = np.random.default_rng([crc32(image.encode()), crc32(structure.encode())])
    place = np.unravel_index(int(rng.choice(np.flatnonzero(truth))), truth.shape)
    point = torch.tensor([[float(number) for number in place]])
    return StructurePrompt(structure, text=False, points=point, labels=torch.ones(1, dtype=torch.long))


def names_to_ask(method: SliceMethod, queries: Queries, way: Way) -> list[str]:
    """The structures that a model can be asked about in one way. UserError where it knows none of them by class."""
    names = list(queries.structures)
    if way == "class":
        names = [name for name in names if name in method.loaded.classes]
        if not names:
            known = ", ".join(method.loaded.classes) or "none"
            raise UserError(f"model '{method.name}': knows no class of {queries.dataset.name} (classes: {known})")
    return names


def score_prompts(
    method: SliceMethod,
    queries: Queries,
    way: Way,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Scores of a model. By class it is asked for absent structures too, and what it leaves over is scored as
    background; a prompt from the truth needs something to be made from. UserError for images that it was trained on,
    and for a class that it has not."""
    refuse_seen(method, queries)
    names = names_to_ask(method, queries, way)
    predictor = PicturePredictor(method.loaded, device)
    records: list[Record] = []
    for done, item in enumerate(queries.items, 1):
        shown = item.annotated if way == "class" else item.present()
        asked = [prompt_of(item.mask(name), name, way, item.id) for name in names if name in shown]
        predictor.set_image(item.picture())
        answers = predictor.predict(asked) if asked else []
        found = [Answer(method.name, ORIGINS[way], answer.structure, answer.mask) for answer in answers]
        records += item_records(queries.dataset.name, item, found, background=way == "class")
        if progress is not None:
            progress(done, len(queries.items))
    return records

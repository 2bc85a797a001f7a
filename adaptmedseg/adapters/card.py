"""What an adapter file says of itself, and the seal over all that it holds."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from adaptmedseg.checkpoints.store import tensors_hash
from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.models.adapter_config import AdapterConfig
from adaptmedseg.models.segvol import Size3

NOT_STATED = "not stated"
Millimetres = Annotated[float, Field(gt=0)]


class Preprocessing(BaseModel):
    """How a volume becomes the model's input: input size (d, h, w), way of resizing, rule of intensities."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    spatial_size: Size3
    resize: str
    normalisation: Normalisation


@dataclass(frozen=True)
class About:
    """What a card says that the model can't tell: a name, the licence in free text, the training images' median spacing
    in mm (d, h, w), and their normalisation."""

    name: str = "adapter"
    licence: str = NOT_STATED
    spacing_mm: tuple[float, float, float] | None = None
    normalisation: Normalisation = SEGVOL


class AdapterCard(BaseModel):
    """`base` is the base's name or path at training, `base_hash` what counts. `created` is a date in UTC.

    `tasks` and `modalities` are the vocabulary in the order of the tokens. `spacing_mm` is the median over the training
    images (d, h, w), where it is known; `training` sums the training up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    created: str
    base: str
    base_hash: str
    config: AdapterConfig
    tasks: list[str]
    modalities: list[str]
    preprocessing: Preprocessing
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres] | None
    licence: str
    training: dict[str, object]

    @field_validator("tasks", "modalities")
    @classmethod
    def each_once(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("a name stands twice")
        return names


def seal_of(card: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a card's text and all tensors of its file."""
    return hashlib.sha256(f"{card}\n{tensors_hash(tensors)}".encode()).hexdigest()

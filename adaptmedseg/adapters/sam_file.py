"""An adaptation of a SAM as one small safetensors file: trained tensors, its card, and a seal over all of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from adaptmedseg.adapters.card import NOT_STATED, seal_of
from adaptmedseg.adapters.file import SEAL
from adaptmedseg.checkpoints.store import read_tensors, weights_hash, write_tensors
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted_sam import AdaptedSam
from adaptmedseg.models.adapter_config import SamAdapterConfig
from adaptmedseg.models.sam import Sam

SAM_ADAPTER_FORMAT = "adaptmedseg-sam-adapter-1"


class SamAdapterCard(BaseModel):
    """`base` is the base's name or path at training, `base_hash` what counts; `classes` those that are asked by name;
    `training` sums the training up. `created` is a date in UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    created: str
    base: str
    base_hash: str
    config: SamAdapterConfig
    classes: list[str]
    licence: str
    training: dict[str, object]


def save_sam_adapter(
    path: Path, model: AdaptedSam, base: str, name: str, training: Mapping[str, object], licence: str = NOT_STATED
) -> None:
    """Write what was trained, in float32, `base` being the name or path of what it was trained on."""
    tensors = {key: tensor.detach().clone() for key, tensor in model.trained_tensors().items()}
    card = SamAdapterCard(
        name=name,
        created=datetime.now(UTC).date().isoformat(),
        base=base,
        base_hash=weights_hash(model.base),
        config=model.adapter_config,
        classes=list(model.classes),
        licence=licence,
        training=dict(training),
    ).model_dump_json()
    write_tensors(path, tensors, {"format": SAM_ADAPTER_FORMAT, "card": card, SEAL: seal_of(card, tensors)})


def read_sam_adapter(path: Path) -> tuple[SamAdapterCard, dict[str, Tensor]]:
    """Card and tensors of a file, its seal checked. UserError for anything but a whole and unchanged adapter file."""
    tensors, metadata = read_tensors(path, SAM_ADAPTER_FORMAT)
    try:
        card = SamAdapterCard.model_validate_json(metadata["card"])
        seal = metadata[SEAL]
    except (KeyError, ValidationError):
        raise UserError(f"{path}: its adapter card is damaged; copy the file again") from None
    if seal != seal_of(metadata["card"], tensors):
        raise UserError(f"{path}: was changed after it was written (it does not fit its {SEAL}); copy the file again")
    return card, tensors


def load_sam_adapter(path: Path, base: Sam) -> AdaptedSam:
    """Put an adapter on its base, changed in place. UserError for another base and tensors that don't fit the card."""
    card, tensors = read_sam_adapter(path)
    found = weights_hash(base)
    if found != card.base_hash:
        raise UserError(
            f"{path}: was trained on a base with hash {card.base_hash[:12]}, and '{card.base}' is now another one "
            f"({found[:12]}); put the base of the training back there, or train the adapter again"
        )
    model = AdaptedSam(base, card.config, card.classes)
    wanted = model.trained_tensors()
    wrong = sorted(wanted.keys() ^ tensors.keys()) or [n for n in wanted if wanted[n].shape != tensors[n].shape]
    if wrong:
        raise UserError(f"{path}: its tensors don't fit its own card (first: {wrong[0]}); copy the file again")
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(tensors[key])
    return model

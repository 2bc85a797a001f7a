"""An adaptation as one small safetensors file: trained tensors, vocabulary, and the base it belongs to."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from adaptmedseg.checkpoints.store import read_tensors, weights_hash, write_tensors
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig
from adaptmedseg.models.segvol import SegVol

ADAPTER_FORMAT = "adaptmedseg-adapter-1"


@dataclass(frozen=True)
class AdapterCard:
    """What an adapter file says of itself. `base` is the base's name or path at training, `base_hash` what counts."""

    base: str
    base_hash: str
    config: AdapterConfig
    tasks: list[str]
    modalities: list[str]
    training: dict[str, object]


def save_adapter(path: Path, model: AdaptedSegVol, base: str, training: dict[str, object]) -> None:
    """Write the trained tensors of a model and what is needed to put them on their base again."""
    card = {
        "base": base,
        "base_hash": weights_hash(model.base),
        "config": model.config.model_dump(),
        "tasks": model.tasks,
        "modalities": model.modalities,
        "training": training,
    }
    write_tensors(path, dict(model.trained_tensors()), {"format": ADAPTER_FORMAT, "card": json.dumps(card)})


def read_card(path: Path) -> AdapterCard:
    """The card alone. UserError for anything but a whole adapter file."""
    return _parse_card(path, read_tensors(path, ADAPTER_FORMAT)[1])


def _parse_card(path: Path, metadata: dict[str, str]) -> AdapterCard:
    try:
        card = json.loads(metadata["card"])
        return AdapterCard(**{**card, "config": AdapterConfig.model_validate(card["config"])})
    except (KeyError, TypeError, ValidationError, json.JSONDecodeError):
        raise UserError(f"{path}: its adapter card is damaged; copy the file again") from None


def load_adapter(path: Path, base: SegVol) -> AdaptedSegVol:
    """Put an adapter on its base (changed in place). UserError for a wrong base or tensors that don't fit."""
    tensors, metadata = read_tensors(path, ADAPTER_FORMAT)
    card = _parse_card(path, metadata)
    found = weights_hash(base)
    if found != card.base_hash:
        raise UserError(
            f"{path}: was trained on a base with hash {card.base_hash[:12]} ('{card.base}'), not on the one given "
            f"({found[:12]}); give that base with --base"
        )
    model = AdaptedSegVol(base, card.config, card.tasks, card.modalities)
    wanted = model.trained_tensors()
    wrong = sorted(wanted.keys() ^ tensors.keys()) or [n for n in wanted if wanted[n].shape != tensors[n].shape]
    if wrong:
        raise UserError(
            f"{path}: its tensors don't fit its own card (first difference: {wrong[0]}); copy the file again"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
    return model

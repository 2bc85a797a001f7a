"""An adaptation as one small safetensors file: trained tensors, its card, a witness, and a seal over all of it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from adaptmedseg.adapters.card import About, AdapterCard, Preprocessing, seal_of
from adaptmedseg.adapters.witness import IMAGE, LOGITS, deviation, make_witness
from adaptmedseg.checkpoints.foreign import own_format
from adaptmedseg.checkpoints.store import read_tensors, weights_hash, write_tensors
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.segvol import SegVol

ADAPTER_FORMAT = "adaptmedseg-adapter-2"
ADAPTER_FORMATS = "adaptmedseg-adapter-"  # how the names of all versions begin
SEAL = "sha256"
DEFAULT_ABOUT = About()


def save_adapter(
    path: Path, model: AdaptedSegVol, base: str, training: Mapping[str, object], about: About = DEFAULT_ABOUT
) -> None:
    """Write a model's first adapter, `base` being the name or path of what it was trained on.

    The file holds float16, to which the model is rounded first: what was saved and what is loaded are equal to the bit.
    Raises UserError where a trained value is beyond float16 (training went astray) or the adapter is scaled.
    """
    adapter = model.adapters[model.name]
    if adapter.switch.scale != 1:
        raise UserError(f"{path}: the adapter is scaled by {adapter.switch.scale:g}; set its scale to 1 to write it")
    tensors = _rounded(path, model)
    with model.adapters.applied([]):
        base_hash = weights_hash(model.base)
    config = model.base.config
    card = AdapterCard(
        name=about.name,
        created=datetime.now(UTC).date().isoformat(),
        base=base,
        base_hash=base_hash,
        config=model.config,
        tasks=model.tasks,
        modalities=model.modalities,
        preprocessing=Preprocessing(
            spatial_size=config.spatial_size, resize=config.resize, normalisation=about.normalisation
        ),
        spacing_mm=about.spacing_mm,
        licence=about.licence,
        training=dict(training),
    ).model_dump_json()
    tensors |= make_witness(model)
    write_tensors(path, tensors, {"format": ADAPTER_FORMAT, "card": card, SEAL: seal_of(card, tensors)})


def _rounded(path: Path, model: AdaptedSegVol) -> dict[str, Tensor]:
    """The trained tensors in float16, the model's own rounded to them."""
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, own in model.trained_tensors().items():
            stored = own.detach().half() if own.is_floating_point() else own.detach()
            if not bool(torch.isfinite(stored).all()):
                raise UserError(
                    f"{path}: {name} holds values that are not finite or beyond float16, so that nothing was written; "
                    "train again with a smaller optimiser.lr"
                )
            tensors[name] = stored
        for name, own in model.trained_tensors().items():
            own.copy_(tensors[name])
    return tensors


def read_adapter(path: Path) -> tuple[AdapterCard, dict[str, Tensor]]:
    """Card and tensors (trained ones and the witness) of a file, its seal checked.

    UserError for anything but a whole and unchanged adapter file.
    """
    found = own_format(path)
    if found and found != ADAPTER_FORMAT and found.startswith(ADAPTER_FORMATS):
        raise UserError(
            f"{path}: holds {found}, which this version no longer reads ({ADAPTER_FORMAT}); train the adapter again"
        )
    tensors, metadata = read_tensors(path, ADAPTER_FORMAT)
    try:
        card = AdapterCard.model_validate(json.loads(metadata["card"]))
        seal = metadata[SEAL]
    except (KeyError, ValidationError, json.JSONDecodeError):
        raise UserError(f"{path}: its adapter card is damaged; copy the file again") from None
    if seal != seal_of(metadata["card"], tensors):
        raise UserError(
            f"{path}: its card or tensors were changed after it was written (they do not fit its {SEAL}); copy the "
            "file again"
        )
    return card, tensors


def read_card(path: Path) -> AdapterCard:
    """The card alone; errors as in `read_adapter`."""
    return read_adapter(path)[0]


def load_adapter(path: Path, base: SegVol) -> AdaptedSegVol:
    """Put an adapter on its base (changed in place), and see that it computes what it computed when it was written.

    Raises UserError for a wrong base, another preprocessing, tensors that don't fit the card, or another output.
    """
    card, tensors = read_adapter(path)
    check_base(path, card, base)
    model = AdaptedSegVol(base, card.config, card.tasks, card.modalities, card.name)
    _fill(path, model.trained_tensors(), tensors)
    off = deviation(model, tensors)
    if off > 1:
        raise UserError(
            f"{path}: does not compute what it computed when it was written (off by {off:.3g} times the tolerance); "
            "use the version of adaptmedseg that wrote it, or train it again"
        )
    return model


def add_from_file(path: Path, model: AdaptedSegVol, name: str | None = None) -> str:
    """Put a further adapter from a file beside those of a model; returns its name, the card's where none is given.

    Raises UserError as `load_adapter` does, and for an adapter with context priors, of which a model has one.
    """
    card, tensors = read_adapter(path)
    with model.adapters.applied([]):
        check_base(path, card, model.base)
    name = name or card.name
    model.add_adapter(name, card.config, card.modalities)
    _fill(path, dict(model.adapters[name].tensors()), tensors)
    return name


def check_base(path: Path, card: AdapterCard, base: SegVol) -> None:
    """UserError where a base is not the one that an adapter was trained on, or is given other input."""
    found = weights_hash(base)
    if found != card.base_hash:
        raise UserError(
            f"{path}: was trained on a base with hash {card.base_hash[:12]} ('{card.base}'), not on the one given "
            f"({found[:12]}); give that base with --base"
        )
    for key in ("spatial_size", "resize"):
        wanted, given = getattr(card.preprocessing, key), getattr(base.config, key)
        if wanted != given:
            raise UserError(f"{path}: was trained with {key} {wanted}, and the base has {given}; use the base it had")


def _fill(path: Path, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    trained = tensors.keys() - {IMAGE, LOGITS}
    wrong = sorted(wanted.keys() ^ trained) or [n for n in wanted if wanted[n].shape != tensors[n].shape]
    if wrong or len(tensors) - len(trained) != 2:
        first = wrong[0] if wrong else IMAGE
        raise UserError(f"{path}: its tensors don't fit its own card (first difference: {first}); copy the file again")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])

"""Finding an adapter's base, and writing a new base that holds an adapter."""

from pathlib import Path
from typing import Literal

from adaptmedseg.adapters.card import AdapterCard
from adaptmedseg.adapters.file import load_adapter, read_adapter
from adaptmedseg.adapters.named import WHOLE
from adaptmedseg.checkpoints.store import load_base, model_path, recorded_hash, save_base, weights_hash
from adaptmedseg.errors import UserError

BaseState = Literal["ok", "missing", "another"]


def base_state(card: AdapterCard, base: str | None = None) -> BaseState:
    """Whether the base that a card (or `base`) names is here and is the one that the adapter was trained on.

    The hash that base files record is believed; files without one are read.
    """
    name = base or card.base
    recorded = recorded_hash(model_path(name))
    if recorded is None:
        try:
            recorded = weights_hash(load_base(name)[0])
        except UserError:
            return "missing"
    return "ok" if recorded == card.base_hash else "another"


def merge_into_base(path: Path, out: Path, base: str | None = None, *, drop_gate: bool = False) -> dict[str, object]:
    """Write a base whose weights hold the adapter; returns its card, which says where it comes from.

    Raises UserError where that base would not compute what the adapter does: with context priors or tokens, with
    adapters that are not linear, and with a gate, unless `drop_gate` gives it up; and for an `out` that exists.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out")
    card, tensors = read_adapter(path)
    layers = {layer.kind for layer in card.config.layers}
    beside = sorted({name.split(".")[0] for name in tensors} - layers - {WHOLE, "witness"})
    if beside:
        raise UserError(
            f"{path}: has {beside[0].replace('_', ' ')}, which run beside the base and which no weight can hold, so "
            "that a new base would not compute the same; use the adapter as it is, with --model"
        )
    if card.config.gate_by_modality and not drop_gate:
        kept = ", ".join(card.modalities)
        raise UserError(
            f"{path}: its gate lets {kept} in and gives all other images to the base, while a merged base would adapt "
            "every image; pass --drop-gate to accept that, or use the adapter as it is"
        )
    model, base_card = load_base(base or card.base)
    adapted = load_adapter(path, model)
    adapted.adapters.merge()
    merged: dict[str, object] = {
        "name": card.name,
        "licence": card.licence,
        "started_from": base_card,
        # Where bases say how they see intensities; the adapter's way is that of its card.
        "training": {**card.training, "normalisation": card.preprocessing.normalisation.model_dump(mode="json")},
        "merged_from": {"adapter": card.name, "base": card.base, "base_hash": card.base_hash, "created": card.created},
    }
    if card.config.gate_by_modality:
        merged["note"] = "the adapter's gate was dropped: images of every modality are adapted, CT too"
    save_base(out, model, merged)
    return merged

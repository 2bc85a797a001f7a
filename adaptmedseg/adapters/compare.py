"""What two adapters have in common: their configurations, and the changes that they make to weights."""

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptmedseg.adapters.card import AdapterCard
from adaptmedseg.adapters.counts import WITNESS
from adaptmedseg.adapters.low_rank import LOOSE_LAYERS, loose_down, scaling

LINEAR_KINDS = ("lora", "rslora", "qv_lora", "loose_lora")
NEVER_COMPARED = {"name", "created", "training"}


@dataclass(frozen=True)
class Change:
    """A change of one weight as a product `up` (c', r) times `down` (r, c); a tensor that adds no change of a weight,
    as a token, stands as a column `up` times (1, 1)."""

    up: Tensor
    down: Tensor

    def dot(self, other: "Change") -> float:
        """The inner product of the two changes, without multiplying either out."""
        return float(((self.up.mT @ other.up) * (self.down @ other.down.mT)).sum())

    def plus(self, other: "Change") -> "Change":
        """Both changes of one weight."""
        return Change(torch.cat([self.up, other.up], 1), torch.cat([self.down, other.down]))

    def fits(self, other: "Change") -> bool:
        return len(self.up) == len(other.up) and self.down.shape[1] == other.down.shape[1]


@dataclass(frozen=True)
class PartComparison:
    """Two adapters in one part of the model. `shared` changes are in both and of one size, `apart` the others.

    Over the shared ones: `cosine` between the changes seen as one long vector, and `ratio`, the second's norm over the
    first's; NaN where there is nothing to compare.
    """

    part: str
    shared: int
    apart: int
    cosine: float
    ratio: float


def changes(card: AdapterCard, tensors: Mapping[str, Tensor]) -> dict[str, Change]:
    """Everything that an adapter changes. LoRA's factors are multiplied out in thought, for it is their product that
    counts: other factors can make the same change."""
    found: dict[str, Change] = {}
    grouped: dict[tuple[str, str, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind in LINEAR_KINDS:
            target, _, role = rest.rpartition(".")
            role, _, rows = role.partition("_")
            grouped.setdefault((kind, target, rows), {})[role] = tensor.double()
        elif kind != WITNESS:
            found[f"{kind}.{rest}"] = Change(tensor.double().reshape(-1, 1), torch.ones(1, 1, dtype=torch.double))
    for (kind, target, rows), roles in grouped.items():
        down = roles["down"] if "down" in roles else loose_down([roles[name] for name in LOOSE_LAYERS])
        up = _strength(card, kind, target) * roles["up"]
        name = f"layers.{target}.{rows}"
        found[name] = found[name].plus(Change(up, down)) if name in found else Change(up, down)
    return found


def _strength(card: AdapterCard, kind: str, target: str) -> float:
    for layer in card.config.layers:
        if layer.kind == kind and any(fnmatch.fnmatch(target, pattern) for pattern in layer.targets):
            return scaling(layer.kind, layer.rank, layer.alpha)
    raise ValueError(f"no entry of the card names {kind} on {target}")


def compare_changes(first: Mapping[str, Change], second: Mapping[str, Change]) -> list[PartComparison]:
    """Part by part: 'layers image_encoder', 'train mask_decoder', 'priors pool', ..."""
    parts: dict[str, list[str]] = {}
    for name in dict.fromkeys([*first, *second]):
        kind, part = name.split(".")[:2]
        parts.setdefault(f"{kind} {part}", []).append(name)
    return [_compare_part(part, names, first, second) for part, names in parts.items()]


def _compare_part(
    part: str, names: list[str], first: Mapping[str, Change], second: Mapping[str, Change]
) -> PartComparison:
    both = [name for name in names if name in first and name in second and first[name].fits(second[name])]
    mixed = sum(first[name].dot(second[name]) for name in both)
    a, b = (math.sqrt(max(0.0, sum(side[name].dot(side[name]) for name in both))) for side in (first, second))
    cosine = mixed / (a * b) if a and b else math.nan
    return PartComparison(part, len(both), len(names) - len(both), cosine, b / a if a else math.nan)


def differences(first: AdapterCard, second: AdapterCard) -> dict[str, tuple[object, object]]:
    """What two cards state differently, by dotted key; names, dates and summaries of training left out."""
    a, b = (_flat("", card.model_dump(mode="json", exclude=NEVER_COMPARED)) for card in (first, second))
    return {key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)}


def _flat(prefix: str, value: object) -> dict[str, object]:
    if isinstance(value, dict):
        pairs = [(f"{prefix}.{key}" if prefix else key, inner) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        pairs = [(f"{prefix}.{number}", inner) for number, inner in enumerate(value)]
    else:
        return {prefix: value}
    return {key: leaf for name, inner in pairs for key, leaf in _flat(name, inner).items()}

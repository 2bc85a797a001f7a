"""How many parameters an adapter trains, and where."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

WITNESS = "witness"


@dataclass(frozen=True)
class PartCount:
    """Parameters of one kind ('rslora', ..., 'train' for those trained whole, 'priors') in one part of the model, as
    stored: `tensors`, `parameters` and `bytes`."""

    kind: str
    part: str
    tensors: int
    parameters: int
    bytes: int


def count_parameters(tensors: Mapping[str, Tensor]) -> list[PartCount]:
    """Counts by kind and part, in the order of first appearance, of tensors named as in adapter files; no data is read,
    so that tensors on the meta device serve too."""
    groups: dict[tuple[str, str], list[Tensor]] = {}
    for name, tensor in tensors.items():
        kind, part = name.split(".")[:2]
        if kind != WITNESS:
            groups.setdefault((kind, part), []).append(tensor)
    return [
        PartCount(kind, part, len(found), sum(t.numel() for t in found), sum(t.nbytes for t in found))
        for (kind, part), found in groups.items()
    ]


def total(counts: Iterable[PartCount]) -> int:
    """Parameters in all."""
    return sum(count.parameters for count in counts)


def kinds_of(counts: Iterable[PartCount]) -> list[str]:
    """The kinds that occur, each once."""
    return list(dict.fromkeys(count.kind for count in counts))

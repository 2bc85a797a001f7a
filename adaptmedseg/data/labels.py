"""Which label values stand for which structures, and label maps as bit masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adaptmedseg.data.registry import Registry
from adaptmedseg.errors import UserError

BACKGROUND = "background"
MAX_STRUCTURES = 64
LabelNames = Mapping[int, str] | Mapping[str, str] | Mapping[int | str, str]


@dataclass(frozen=True)
class LabelScheme:
    """`values`: the label values whose union is each structure, in bit order; `dropped`: values read as background.

    `derived` has the structures that no label names and that are the union of others: for each of their parts its
    label values. A case annotates such a structure only where it annotates every part.
    """

    values: dict[str, tuple[int, ...]]
    dropped: tuple[int, ...] = ()
    derived: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    @property
    def structures(self) -> tuple[str, ...]:
        """Canonical names; the position is the structure's bit in the label masks."""
        return tuple(self.values)

    @property
    def known_values(self) -> frozenset[int]:
        """Every value that a label map may hold."""
        return frozenset({0, *self.dropped}.union(*self.values.values()))

    def bit_mask(self, labels: np.ndarray) -> np.ndarray:
        """Label map (any shape, unsigned) to bit masks of the same shape: bit i is set where structures[i] is.

        Values that the scheme does not know are background here; `unknown` finds them.
        """
        highest = max(255, *self.known_values, int(labels.max(initial=0)))
        table = np.zeros(highest + 1, dtype=bit_dtype(len(self.values)))
        for bit, values in enumerate(self.values.values()):
            table[list(values)] |= table.dtype.type(1 << bit)
        if labels.dtype == table.dtype == np.uint8:  # bytes to bytes: several times as fast as an index
            return np.frombuffer(labels.tobytes().translate(table[:256].tobytes()), np.uint8).reshape(labels.shape)
        return table[labels]

    def unknown(self, counts: Mapping[int, int]) -> list[int]:
        """The values of a label map (see `value_counts`) that have no name here, ascending."""
        return sorted(set(counts) - self.known_values)

    def voxels(self, counts: Mapping[int, int]) -> dict[str, int]:
        """Voxels of every structure from the voxels of every label value."""
        return {name: sum(counts.get(value, 0) for value in values) for name, values in self.values.items()}

    def has_all_parts(self, name: str, counts: Mapping[int, int]) -> bool:
        """Whether every part of a derived structure occurs; True for a structure that labels name themselves."""
        return all(any(counts.get(value) for value in part) for part in self.derived.get(name, ()))


def value_counts(labels: np.ndarray) -> dict[int, int]:
    """Voxels of every value of an unsigned label map of any shape, zero included."""
    named = labels[labels != 0]  # most voxels are background, and only the others are worth a histogram
    if labels.dtype.itemsize > 2:
        values, counts = np.unique(named, return_counts=True)
    else:
        histogram = np.bincount(named)
        values = np.flatnonzero(histogram)
        counts = histogram[values]
    rest = {0: labels.size - named.size} if named.size < labels.size else {}
    return rest | {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def bit_dtype(count: int) -> np.dtype:
    """The smallest unsigned dtype with `count` bits. Raises UserError above 64 structures."""
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64):
        if count <= np.iinfo(dtype).bits:
            return np.dtype(dtype)
    raise UserError(f"{count} structures are more than one data set can hold ({MAX_STRUCTURES}); name fewer.")


def label_scheme(given: LabelNames, described: Mapping[str, Any] | None, registry: Registry) -> LabelScheme:
    """Join the user's labels with those of a data set's own description; the user's win.

    Args:
        given: ``{1: "liver"}``, with keys ``int`` or ``"1+2"`` for a union; the name ``background`` drops a value.
        described: ``labels`` of a dataset.json, as MSD (``{"1": "liver"}``) or nnU-Net writes it
            (``{"liver": 1, "whole": [1, 2]}``).
        registry: resolves synonyms to canonical names.

    Raises:
        UserError: no label is named, a key is no value, a name is unknown, or value 0 is given a name.
    """
    own = _by_structure(given, registry)
    theirs = _by_structure(_described_labels(described or {}, given), registry)
    merged = {**theirs, **own}
    dropped = tuple(sorted(merged.pop(BACKGROUND, ())))
    if not merged:
        raise UserError('No label is named; give the labels, for example --label 1="prostate".')
    bit_dtype(len(merged))
    return LabelScheme(merged, dropped)


def scheme_of(structures: Iterable[str], labels: Mapping[int, str], registry: Registry) -> LabelScheme:
    """The scheme of chosen structures where a set's labels are known.

    Args:
        structures: canonical names or synonyms, in bit order: what labels name, or a union of it by the registry's
            hierarchy ("prostate" where peripheral and transition zone are labelled).
        labels: ``{1: "peripheral zone", ...}``; values that no chosen structure uses are read as background.
        registry: resolves names and hierarchy.

    Raises:
        UserError: a structure is neither labelled nor a union of labelled ones, or a name is unknown.
    """
    named = _by_structure(labels, registry)
    values: dict[str, tuple[int, ...]] = {}
    derived: dict[str, tuple[tuple[int, ...], ...]] = {}
    for structure in structures:
        name = registry.structure(structure).name
        parts = registry.covering(name, named)
        if parts is None:
            raise UserError(
                f"'{name}' is not annotated here and is no union of {', '.join(named)}; choose one of these."
            )
        values[name] = tuple(sorted({value for part in parts for value in named[part]}))
        if parts != (name,):
            derived[name] = tuple(named[part] for part in parts)
    bit_dtype(len(values))
    used = {value for group in values.values() for value in group}
    return LabelScheme(values, tuple(sorted(set(labels) - used)), derived)


def _by_structure(labels: LabelNames, registry: Registry) -> dict[str, tuple[int, ...]]:
    """Canonical structure name to its values; entries that share a name form a union."""
    table: dict[str, tuple[int, ...]] = {}
    for key, name in labels.items():
        canonical = BACKGROUND if name.strip().lower() == BACKGROUND else registry.structure(name).name
        table[canonical] = tuple(sorted({*table.get(canonical, ()), *_values(key, name)}))
    return table


def _values(key: int | str, name: str) -> tuple[int, ...]:
    parts = str(key).split("+")
    if not all(part.strip().isdigit() for part in parts):
        raise UserError(f"Label key {key!r} of {name!r} is no label value; write 1 or, for a union, 1+2.")
    values = tuple(int(part) for part in parts)
    if 0 in values:
        raise UserError(f"Label value 0 is the background and cannot be {name!r}; number structures from 1.")
    return values


def _described_labels(labels: Mapping[str, Any], given: LabelNames) -> dict[int | str, str]:
    """A dataset.json's labels as ``{"1+2": name}``, without the background and the values that the user names."""
    taken = {str(key).strip() for key in given}
    table: dict[int | str, str] = {}
    for left, right in labels.items():
        if isinstance(right, str) and str(left).isdigit():
            key, name = str(left), right
        else:
            values = right if isinstance(right, list) else [right]
            key, name = "+".join(str(value) for value in values), str(left)
        if name.strip().lower() == "ignore" and key not in taken:
            raise UserError(
                f"dataset.json marks label {key} as 'ignore', which is no structure and no background; "
                f"leave such cases out, or count it as background with --label {key}={BACKGROUND}."
            )
        if key != "0" and key not in taken:
            table[key] = name
    return table

"""One registry of structures and modalities, so that a structure is one task whichever data set it comes from.

The vocabulary itself is the data file `structures.yaml`. Lookup ignores case, underscores and hyphens.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeVar

import yaml

from adaptmedseg.errors import UserError

Family = Literal["CT", "MR", "photo"]
Entry = TypeVar("Entry", "Structure", "Modality")
_SIDES = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Structure:
    """A structure: canonical name, synonyms, left/right partner (or None), and the parts whose union it is."""

    name: str
    synonyms: tuple[str, ...] = ()
    mirror: str | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Modality:
    """An imaging modality: canonical name, family and synonyms."""

    name: str
    family: Family
    synonyms: tuple[str, ...] = ()


def normalise_name(name: str) -> str:
    """The form under which names are compared: lower case, with underscores and hyphens as single blanks."""
    return re.sub(r"[\s_\-]+", " ", name).strip().lower()


class Registry:
    """Structures and modalities by name; `extended` adds a user's own structures without changing this one.

    Raises:
        ValueError: two entries share a name or synonym.
    """

    def __init__(self, structures: Iterable[Structure], modalities: Iterable[Modality]) -> None:
        self.structures = tuple(structures)
        self.modalities = tuple(modalities)
        self._structures = _index(self.structures)
        self._modalities = _index(self.modalities)

    def structure(self, name: str) -> Structure:
        """The structure called `name`. Raises UserError with the closest known names where there is none."""
        found = self._structures.get(normalise_name(name))
        if found is None:
            raise _unknown("structure", name, self._structures, "name it with --new-structure when preparing data")
        return found

    def modality(self, name: str) -> Modality:
        """The modality called `name`. Raises UserError with the known names where there is none."""
        found = self._modalities.get(normalise_name(name))
        if found is None:
            known = ", ".join(modality.name for modality in self.modalities)
            raise _unknown("modality", name, self._modalities, f"choose one of {known}")
        return found

    def knows_structure(self, name: str) -> bool:
        """Whether `name` is a structure's name or synonym."""
        return normalise_name(name) in self._structures

    def mirror(self, name: str) -> str:
        """The structure's name after a left-right flip: its partner's, or its own where it has none."""
        structure = self.structure(name)
        return structure.mirror or structure.name

    def covering(self, name: str, annotated: Collection[str]) -> tuple[str, ...] | None:
        """The annotated structures whose union is `name`: itself, or its parts, or the parts of these.

        Args:
            name: a structure's name or synonym.
            annotated: canonical names of what is annotated.

        Returns:
            Canonical names, or None where the annotated structures do not make up the whole of it.
        """
        structure = self.structure(name)
        if structure.name in annotated:
            return (structure.name,)
        found = [self.covering(part, annotated) for part in structure.parts]
        if not found or any(parts is None for parts in found):
            return None
        return tuple(dict.fromkeys(name for parts in found if parts for name in parts))

    def extended(self, extra: Mapping[str, Mapping[str, Any]]) -> Registry:
        """A registry with the user's own structures added.

        Args:
            extra: name to a mapping with the optional keys ``synonyms``, ``mirror`` and ``parts``, as stored under
                ``extra_structures`` in a prepared data set's manifest. Names already known are skipped.

        Raises:
            UserError: a synonym of a new structure already belongs to another one.
        """
        new = {name: fields for name, fields in extra.items() if not self.knows_structure(name)}
        added = [_structure({"name": name, **fields}) for name, fields in new.items()]
        try:
            return Registry((*self.structures, *added), self.modalities)
        except ValueError as error:
            raise UserError(f"The new structures clash with known ones: {error}; choose another name.") from error


@cache
def default_registry() -> Registry:
    """The registry that ships with the package."""
    text = resources.files("adaptmedseg.data").joinpath("structures.yaml").read_text(encoding="utf-8")
    table = yaml.safe_load(text)
    structures = [_structure(entry) for entry in table["structures"]]
    structures += [side for entry in table["paired"] for side in _pair(entry)]
    modalities = [
        Modality(entry["name"], entry["family"], tuple(entry.get("synonyms", ()))) for entry in table["modalities"]
    ]
    return Registry(structures, modalities)


def structure(name: str) -> Structure:
    """`Registry.structure` of the shipped registry."""
    return default_registry().structure(name)


def modality(name: str) -> Modality:
    """`Registry.modality` of the shipped registry."""
    return default_registry().modality(name)


def mirror(name: str) -> str:
    """`Registry.mirror` of the shipped registry."""
    return default_registry().mirror(name)


def _structure(entry: Mapping[str, Any]) -> Structure:
    return Structure(
        entry["name"], tuple(entry.get("synonyms", ())), entry.get("mirror"), tuple(entry.get("parts", ()))
    )


def _pair(entry: Mapping[str, Any]) -> list[Structure]:
    """The left and right structure of one paired entry, with the usual spellings of the side."""
    names = [entry["name"], *entry.get("synonyms", ())]
    pair = []
    for side, other in _SIDES.items():
        spellings = [form for name in names for form in (f"{side} {name}", f"{name} {side}")]
        spellings += [form for name in names for form in (f"{side[0]} {name}", f"{name} {side[0]}")]
        pair.append(Structure(spellings[0], tuple(spellings[1:]), mirror=f"{other} {entry['name']}"))
    return pair


def _forms(entry: Structure | Modality) -> set[str]:
    return {normalise_name(form) for form in (entry.name, *entry.synonyms)}


def _index(entries: Iterable[Entry]) -> dict[str, Entry]:
    index: dict[str, Entry] = {}
    for item in entries:
        for name in _forms(item):
            if name in index:
                raise ValueError(f"{name!r} names both {index[name].name!r} and {item.name!r}")
            index[name] = item
    return index


def _unknown(kind: str, name: str, known: Mapping[str, Structure] | Mapping[str, Modality], remedy: str) -> UserError:
    close = dict.fromkeys(known[match].name for match in get_close_matches(normalise_name(name), list(known), 5, 0.6))
    hint = f" (closest: {', '.join(close)})" if close else ""
    return UserError(f"Unknown {kind} {name!r}{hint}; check the spelling or {remedy}.")

"""One schema of prompts for volumes and for single images: what to segment, and where, in millimetres or in voxels.

`docs/prompts.md` describes it for users. A document says once in which space its coordinates are, so that no number has
to be guessed at. Everything wrong with a document is told in one sentence.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from adaptmedseg.data.registry import structure as find_structure
from adaptmedseg.errors import UserError

Space = Literal["world_mm", "voxel"]
Canonical = Callable[[str], str]

# What to give instead, by pydantic's type of error.
_EXPECTED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "string_type": "a text",
    "list_type": "a list in brackets",
    "model_type": "an object in braces",
    "dict_type": "an object in braces",
}


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PointPrompt(_Schema):
    """A point (x, y, z), or (x, y) in two dimensions, that lies inside the structure or outside of it."""

    position: list[float]
    label: Literal["positive", "negative"] = "positive"


class BoxPrompt(_Schema):
    """Any two opposite corners (x, y, z), or (x, y) in two dimensions."""

    min: list[float]
    max: list[float]


class StructurePrompts(_Schema):
    """One structure and all that is asked about it together.

    `text`: its name enters as text prompt. `task`: its task token must be used (true); where it is left out, the token
    is used if the model has one.
    """

    structure: str
    text: bool = True
    task: bool | None = None
    points: list[PointPrompt] = []
    box: BoxPrompt | None = None

    def coordinates(self) -> dict[str, list[float]]:
        """Everything that has coordinates, by its place in the entry."""
        found = {f"points[{i}].position": point.position for i, point in enumerate(self.points)}
        if self.box is not None:
            found |= {"box.min": self.box.min, "box.max": self.box.max}
        return found


class PromptDocument(_Schema):
    """The file itself.

    `space`: "world_mm" (millimetres, RAS+: right, anterior, superior) or "voxel" (indices along the file's own axes in
    its own order, from 0, voxel centres at integers).
    """

    version: Literal[1]
    space: Space
    prompts: list[StructurePrompts]


@dataclass(frozen=True)
class PromptSet:
    """Prompts that were checked; structures are canonical names. `source` is where they came from, for messages."""

    prompts: tuple[StructurePrompts, ...]
    space: Space = "world_mm"
    source: str = "prompts"

    @property
    def structures(self) -> list[str]:
        return [entry.structure for entry in self.prompts]

    @property
    def located(self) -> bool:
        """Whether any prompt has coordinates, so that it belongs to one image."""
        return any(entry.coordinates() for entry in self.prompts)

    def place(self, index: int) -> str:
        """Where entry `index` stands, for messages."""
        return _place(self.source, index, self.prompts[index].structure)


def prompt_schema() -> dict[str, Any]:
    """The JSON Schema of a prompt document."""
    return PromptDocument.model_json_schema()


def _registered(name: str) -> str:
    return find_structure(name).name


def read_prompts(path: Path, canonical: Canonical = _registered) -> PromptSet:
    """Read a file of prompts. `canonical` turns a structure's name into the known one or raises UserError.

    Raises:
        UserError: the file cannot be read, is no JSON or breaks a rule of the schema.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSON file of prompts") from None
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: is not valid JSON ({reason}); see docs/prompts.md for the form") from None
    return parse_prompts(document, str(path), canonical)


def parse_prompts(document: object, source: str = "prompts", canonical: Canonical = _registered) -> PromptSet:
    """Check a document that was read already, such as a dict; raises UserError as `read_prompts` does."""
    try:
        parsed = PromptDocument.model_validate(document)
    except ValidationError as error:
        raise UserError(_sentence(source, document, error)) from None
    if not parsed.prompts:
        raise UserError(f"{source}: prompts is empty; name at least one structure")
    entries: list[StructurePrompts] = []
    for index, entry in enumerate(parsed.prompts):
        place = _place(source, index, entry.structure)
        try:
            name = canonical(entry.structure)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        if name in [other.structure for other in entries]:
            raise UserError(f"{place}: structure '{name}' is asked twice; put all its points and its box in one entry")
        _check_entry(place, entry, parsed.space)
        entries.append(entry.model_copy(update={"structure": name}))
    _check_axes(source, entries, parsed.space)
    return PromptSet(tuple(entries), parsed.space, source)


def text_prompt_set(names: Sequence[str], source: str = "prompts") -> PromptSet:
    """Structures asked by their (canonical) names alone."""
    return PromptSet(tuple(StructurePrompts(structure=name) for name in names), source=source)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise ValueError(f"key '{twice[0]}' stands twice in one object")
    return dict(pairs)


def _place(source: str, index: int, structure: str) -> str:
    return f"{source}: prompts[{index}] ({' '.join(structure.split())})"


def _check_entry(place: str, entry: StructurePrompts, space: Space) -> None:
    """What pydantic cannot say well: boxes without extent, points that say nothing, nothing asked.

    In voxels, corners with one coordinate in common are a box of one slice, for they are centres of voxels.
    """
    if entry.box is not None:
        flat = [axis for axis, a, b in zip("xyz", entry.box.min, entry.box.max, strict=False) if a == b]
        if len(flat) > (space == "voxel" and len(entry.box.min) == 3):
            raise UserError(
                f"{place}: box is empty, for its corners have the same {flat[0]}; give opposite corners, which differ "
                "along every axis"
            )
    if entry.points and all(point.label == "negative" for point in entry.points):
        raise UserError(f"{place}: has only negative points; add a positive one inside the structure")
    if not (entry.text or entry.task or entry.points or entry.box):
        raise UserError(f"{place}: asks for nothing; set text to true or give points or a box")


def _check_axes(source: str, entries: Sequence[StructurePrompts], space: Space) -> None:
    """Every coordinate has three numbers, or every one two and voxels as space."""
    expected = 0
    for index, entry in enumerate(entries):
        for part, position in entry.coordinates().items():
            count = len(position)
            place = f"{_place(source, index, entry.structure)}: {part}"
            if count not in (2, 3) or (count == 2 and space == "world_mm"):
                world = "3 (x, y, z), or for a picture pixels and the space 'voxel'"
                wanted = world if space == "world_mm" else "3 (x, y, z), or 2 (x, y) for an image of one slice"
                raise UserError(f"{place} has {count} numbers; give {wanted}")
            if expected and count != expected:
                raise UserError(f"{place} has {count} numbers where others have {expected}; give all alike")
            expected = count


def _sentence(source: str, document: object, error: ValidationError) -> str:
    """The first error of a document as one sentence."""
    first = error.errors()[0]
    location, kind, value = list(first["loc"]), first["type"], first["input"]
    if not location:
        return f"{source}: holds {type(document).__name__}; give an object with version, space and prompts"
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    named = _structure_at(document, location)
    hint = f" ({named})" if named else ""
    if kind == "missing":
        return f"{source}: {path}{hint} is missing; add it"
    if kind == "extra_forbidden":
        return f"{source}: {path}{hint} is no known key; the keys here are {', '.join(_keys_at(location))}"
    expected = first.get("ctx", {}).get("expected") if kind == "literal_error" else _EXPECTED.get(kind)
    return f"{source}: {path}{hint} is {reprlib.repr(value)}; give {expected or first['msg']}"


def _structure_at(document: object, location: Sequence[int | str]) -> str:
    """The structure of the entry that an error is in, where it has a name."""
    if len(location) < 2 or not isinstance(document, dict):
        return ""
    entry = document["prompts"][location[1]]
    return str(entry["structure"]) if isinstance(entry, dict) and isinstance(entry.get("structure"), str) else ""


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """The keys that the object round an unknown key may have."""
    parents = [part for part in location[:-1] if isinstance(part, str)]
    models: dict[str, type[BaseModel]] = {"prompts": StructurePrompts, "points": PointPrompt, "box": BoxPrompt}
    return list(models.get(parents[-1] if parents else "", PromptDocument).model_fields)

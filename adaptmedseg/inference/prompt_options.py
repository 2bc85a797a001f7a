"""Prompts from a command line: names, points and boxes in short notation, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptmedseg.errors import UserError
from adaptmedseg.inference.prompt_file import Canonical, PromptSet, Space, parse_prompts

POINT_FORM = "NAME:x,y,z (in pictures NAME:x,y) for a point inside, -NAME:x,y,z for one outside"
BOX_FORM = "NAME:x0,y0,z0,x1,y1,z1 (in pictures NAME:x0,y0,x1,y1)"
SPACES: dict[str, Space] = {"world": "world_mm", "voxel": "voxel"}


def prompts_from_options(
    structures: Sequence[str], points: Sequence[str], boxes: Sequence[str], space: str, canonical: Canonical
) -> PromptSet:
    """Names with the points and boxes given to them; names that have only points or a box come after the others.

    Raises:
        UserError: an option has another form, and as `parse_prompts`.
    """
    if space not in SPACES:
        raise UserError(f"--space {space}: is unknown; give world (RAS millimetres) or voxel (the file's own indices)")
    entries: dict[str, dict[str, Any]] = {}
    for name in structures:
        if canonical(name) in entries:
            raise UserError(f"structure '{canonical(name)}' is named twice; name each once")
        entries[canonical(name)] = {"structure": canonical(name)}
    for text in points:
        name, numbers = _numbers("--point", text, POINT_FORM)
        label = "negative" if name.startswith("-") else "positive"
        entry = _entry(entries, canonical(name.removeprefix("-").strip()))
        entry.setdefault("points", []).append({"position": numbers, "label": label})
    for text in boxes:
        name, numbers = _numbers("--box", text, BOX_FORM)
        if name.startswith("-"):
            raise UserError(
                f"--box {text}: a box has no outside form; write {BOX_FORM}, and points for what is outside"
            )
        if len(numbers) not in (4, 6):
            raise UserError(f"--box {text}: has {len(numbers)} numbers; write {BOX_FORM}")
        entry, half = _entry(entries, canonical(name)), len(numbers) // 2
        if "box" in entry:
            raise UserError(f"--box {text}: '{canonical(name)}' has a box already; give one a structure")
        entry["box"] = {"min": numbers[:half], "max": numbers[half:]}
    document = {"version": 1, "space": SPACES[space], "prompts": list(entries.values())}
    return parse_prompts(document, "command line", canonical)


def _entry(entries: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    return entries.setdefault(name, {"structure": name})


def _numbers(option: str, text: str, form: str) -> tuple[str, list[float]]:
    name, colon, values = text.rpartition(":")
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError:
        numbers = []
    if not colon or not name.strip() or not numbers:
        raise UserError(f"{option} {text}: write {form}")
    return name.strip(), numbers

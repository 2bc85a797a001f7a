"""Names of models with random weights: "fresh:small", or "fresh:small@3" for those that seed 3 draws."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from adaptmedseg.errors import UserError

Config = TypeVar("Config")
SEEDS = 2**63  # torch's generators take no larger one
_NAME = re.compile(r"(fresh:[\w-]+)(?:@(\d+))?")


def is_fresh(name: str) -> bool:
    """Whether a name is one of random weights, known or not."""
    return _NAME.fullmatch(name) is not None


def seeded(name: str, seed: int) -> str:
    """The name with a seed, so that it means the same weights wherever it is read; names of files as they are."""
    found = _NAME.fullmatch(name)
    return f"{name}@{seed}" if found and found[2] is None else name


def fresh_config(name: str, known: Mapping[str, Config], seed: int) -> tuple[Config, str, int] | None:
    """Configuration, name without seed, and seed of random weights; None where the name is not a known one.

    UserError for a seed that nothing can be drawn with.
    """
    found = _NAME.fullmatch(name)
    if found is None or found[1] not in known:
        return None
    drawn_by = seed if found[2] is None else int(found[2])
    if drawn_by >= SEEDS:
        raise UserError(f"'{name}': its seed is too large; give one below {SEEDS}")
    return known[found[1]], found[1], drawn_by

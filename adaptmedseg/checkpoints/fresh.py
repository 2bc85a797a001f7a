"""Names of models with random weights: "fresh:small", or "fresh:small@3" for those that seed 3 draws."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

Config = TypeVar("Config")
_NAME = re.compile(r"(fresh:[\w-]+)(?:@(\d+))?")


def is_fresh(name: str) -> bool:
    """Whether a name is one of random weights, known or not."""
    return _NAME.fullmatch(name) is not None


def seeded(name: str, seed: int) -> str:
    """The name with a seed, so that it means the same weights wherever it is read; names of files as they are."""
    found = _NAME.fullmatch(name)
    return f"{name}@{seed}" if found and found[2] is None else name


def fresh_config(name: str, known: Mapping[str, Config], seed: int) -> tuple[Config, str, int] | None:
    """Configuration, name without seed, and seed of random weights; None where the name is not a known one."""
    found = _NAME.fullmatch(name)
    if found is None or found[1] not in known:
        return None
    return known[found[1]], found[1], seed if found[2] is None else int(found[2])

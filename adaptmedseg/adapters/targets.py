"""Choosing parts of a model by shell patterns."""

import fnmatch
import re
from collections.abc import Iterable

from adaptmedseg.errors import UserError


def choose(patterns: Iterable[str], available: Iterable[str], key: str, what: str) -> list[str]:
    """The available names that match at least one pattern, in their order.

    Raises UserError for a pattern that matches nothing, with the configuration's `key` and what there is.
    """
    names = list(available)
    chosen: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            there = ", ".join(alike(names)) or "none"
            raise UserError(f"{key}: '{pattern}' matches no {what}; there are {there}")
        chosen.update(hits)
    return [name for name in names if name in chosen]


def alike(names: Iterable[str]) -> list[str]:
    """Names with their numbers as *, each once: 'blocks.0.mlp' and 'blocks.1.mlp' are 'blocks.*.mlp'."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))

"""Choosing parts of a model by shell patterns."""

import fnmatch
import re
from collections.abc import Iterable
from difflib import SequenceMatcher

from adaptmedseg.errors import UserError

MOST_NAMES = 6  # in a sentence


def choose(patterns: Iterable[str], available: Iterable[str], key: str, what: str) -> list[str]:
    """The available names that match at least one pattern, in their order.

    Raises UserError for a pattern that matches nothing, with the configuration's `key` and what there is.
    """
    names = list(available)
    chosen: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise UserError(f"{key}: '{pattern}' matches no {what}; {_there(pattern, alike(names))}")
        chosen.update(hits)
    return [name for name in names if name in chosen]


def _there(pattern: str, names: list[str]) -> str:
    """What there is: all of few names, of many those most like the pattern."""
    if len(names) <= MOST_NAMES:
        return f"there are {', '.join(names) or 'none'}"
    words = re.findall(r"\w+", pattern)

    def unlike(name: str) -> tuple[int, float]:
        return -sum(word in name for word in words), -SequenceMatcher(None, pattern, name).ratio()

    return f"the nearest of {len(names)} are {', '.join(sorted(names, key=unlike)[:MOST_NAMES])}"


def alike(names: Iterable[str]) -> list[str]:
    """Names with their numbers as *, each once: 'blocks.0.mlp' and 'blocks.1.mlp' are 'blocks.*.mlp'."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))

"""The ledger of prompts: in words, where each prompt came from. Every score and every mask carries such an origin.

An origin is one part or several joined by " + ", for example "text + task token + user box":

- `text`: the structure's name; `task token`: the model's own token for it, which comes with the name;
- `user box`, `user points`: given by whoever asked;
- `oracle box`, `oracle box ± 5 voxels` (each face moved at random), `3 oracle points`, `3 oracle clicks` (each on the
  largest error so far): made from the ground truth, so that a score with them is none of the product;
- `4 supports`: so many labelled images of a support set, from which the task was learnt without re-training;
- `none`: a network with a fixed output, which is asked for nothing.
"""

import re
from collections.abc import Iterable

TEXT, TASK_TOKEN, NONE = "text", "task token", "none"
USER_BOX, USER_POINTS = "user box", "user points"
ORACLE_BOX = "oracle box"
JOIN = " + "
_KNOWN = re.compile(
    rf"{TEXT}|{TASK_TOKEN}|{NONE}|{USER_BOX}|{USER_POINTS}|"
    rf"{ORACLE_BOX}( ± [0-9]+ voxels?)?|[0-9]+ oracle (point|click)s?|[0-9]+ supports?"
)


def oracle_box(shift: int = 0) -> str:
    """The truth's own box, or one whose faces were each moved by up to `shift` voxels."""
    return f"{ORACLE_BOX} ± {_count(shift, 'voxel')}" if shift else ORACLE_BOX


def oracle_points(count: int) -> str:
    """Points drawn inside of the truth."""
    return _count(count, "oracle point")


def oracle_clicks(count: int) -> str:
    """Clicks that each correct the largest error left by the ones before."""
    return _count(count, "oracle click")


def supports(count: int) -> str:
    """Labelled images of a support set."""
    return _count(count, "support")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def joined(parts: Iterable[str]) -> str:
    """An origin from its parts; with none of them `none`."""
    return JOIN.join(parts) or NONE


def with_task_token(origin: str) -> str:
    """The same question to a model that has a token for the structure."""
    before, name, after = origin.partition(TEXT)
    return f"{TEXT}{JOIN}{TASK_TOKEN}{after}" if name and not before else joined([TASK_TOKEN, origin])


def check_origin(origin: str) -> None:
    """Raise ValueError for what is no origin."""
    if not all(_KNOWN.fullmatch(part) for part in origin.split(JOIN)):
        raise ValueError(f"prompt_origin: {origin!r} is none that is known; see adaptmedseg.inference.prompt_origin")


def is_oracle(origin: str) -> bool:
    """Whether any part of a prompt was made from the ground truth."""
    return "oracle" in origin


def question_of(origin: str) -> str:
    """What was given, whatever the model made of it: the origin without the model's own token.

    Methods are compared where these are the same: a base that reads a name and an adapter that has a token for it were
    asked alike.
    """
    return joined(part for part in origin.split(JOIN) if part != TASK_TOKEN)

"""Support sets: labelled images that say what a new task is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaptmedseg.errors import UserError

MOST = 64  # images of a support set, as in GMISeg
TOGETHER = 6  # supports that are looked at together; predictions of larger sets are averaged over subsets, as in GMISeg


@dataclass(frozen=True, eq=False)
class Support:
    """One labelled image: colours (h, w, 3), uint8, and boolean masks (h, w) of the structures that it annotates.

    `group` is what is left out together in calibration: the patient, where it is known. UserError for a mask of another
    size than the image.
    """

    name: str
    group: str
    image: np.ndarray
    masks: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        for structure, mask in self.masks.items():
            if mask.shape != self.image.shape[:2]:
                (h, w), (height, width) = mask.shape, self.image.shape[:2]
                raise UserError(
                    f"support {self.name}: the mask of '{structure}' is {w}×{h} pixels and the image {width}×{height}; "
                    "draw it on the image, or resize it by nearest neighbour"
                )


class SupportSet:
    """Supports to choose from, of which 1 to 64 make a task. `source` is what errors call them."""

    def __init__(self, supports: Sequence[Support], source: str = "the support set"):
        """UserError for none, and where all masks of an image are empty."""
        if not supports:
            raise UserError(f"{source}: holds no labelled image; give 1 to {MOST} images with their masks")
        for support in supports:
            if not any(mask.any() for mask in support.masks.values()):
                raise UserError(
                    f"{source}: the mask of support {support.name} is empty, so that it shows no task; draw it or "
                    "leave the image out"
                )
        self.supports, self.source = tuple(supports), source

    @property
    def structures(self) -> list[str]:
        """Those that some support shows, in the order of their first appearance."""
        return list(dict.fromkeys(name for s in self.supports for name, mask in s.masks.items() if mask.any()))

    def showing(self, structure: str) -> list[Support]:
        """The supports with pixels of a structure. UserError where there are none."""
        found = [s for s in self.supports if structure in s.masks and s.masks[structure].any()]
        if not found:
            raise UserError(
                f"{self.source}: no support shows '{structure}'; it shows {', '.join(self.structures)}, so leave it "
                "out or add a labelled image"
            )
        if len(found) > MOST:
            raise UserError(
                f"{self.source}: {len(found)} images show '{structure}', and a support set has 1 to {MOST}; draw some "
                f"of them, --shots {MOST}"
            )
        return found

    def drawn(self, count: int, rng: np.random.Generator) -> SupportSet:
        """`count` of the supports, of as many groups as there are. UserError where there are fewer."""
        if count > len(self.supports):
            raise UserError(
                f"{self.source}: {count} supports are asked for, and there are {len(self.supports)}; ask for fewer"
            )
        chosen = drawn_indices([support.group for support in self.supports], count, rng)
        return SupportSet([self.supports[index] for index in chosen], self.source)


def drawn_indices(groups: Sequence[str], count: int, rng: np.random.Generator) -> list[int]:
    """`count` places in `groups`, of as many groups as there are, in ascending order."""
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for index in rng.permutation(len(groups)).tolist():
        seen[groups[index]] = seen.get(groups[index], 0) + 1
        ranked.append((seen[groups[index]], len(ranked), index))
    return sorted(index for _, _, index in sorted(ranked)[:count])


def subsets(count: int, rng: np.random.Generator, size: int = TOGETHER) -> list[list[int]]:
    """The numbers 0 to count − 1 in even parts of at most `size`, drawn at random; each is in one of them."""
    parts = np.array_split(rng.permutation(count), -(-count // size))
    return [sorted(part.tolist()) for part in parts]


def others(groups: Sequence[str], index: int, rng: np.random.Generator, size: int = TOGETHER) -> list[int]:
    """At most `size` supports to predict support `index` from: of other groups, or of its own where that is all."""
    found = [i for i, group in enumerate(groups) if group != groups[index]]
    found = found or [i for i in range(len(groups)) if i != index]
    return sorted(rng.choice(found, min(size, len(found)), replace=False).tolist()) if found else []

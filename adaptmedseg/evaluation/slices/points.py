"""Points of support-size curves: every number of supports is judged by the same structures of the same images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaptmedseg.evaluation import wording
from adaptmedseg.evaluation.records import Record

Item = tuple[str, str]  # case and structure
Draws = dict[int, dict[Item, float]]


@dataclass(frozen=True)
class Common:
    """What all points of a set's curves have scores of, in order; `left_out` are structures that some of them have
    scores of, and not all."""

    dataset: str
    items: tuple[Item, ...]
    left_out: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many images the points are means over."""
        return len({case for case, _ in self.items})

    @property
    def structures(self) -> list[str]:
        """What the points are means over, sorted."""
        return sorted({structure for _, structure in self.items})

    @property
    def sentence(self) -> str:
        """What the points are means over, in words."""
        missing = f"; not of {wording.listing(self.left_out)}, which some of them lack" if self.left_out else ""
        if not self.items:
            return (
                f"{self.dataset}: the numbers of supports have no image in common, so that there is no curve{missing}."
            )
        images = wording.count(self.images, "image")
        return (
            f"{self.dataset}: all numbers of supports are compared on the same {images} of "
            f"{wording.listing(self.structures)}{missing}."
        )


@dataclass(frozen=True)
class Point:
    """Mean Dice, over structures, of one method with so many supports: mean and standard deviation over draws. It is of
    what the set's points have in `common`."""

    method: str
    shots: int
    mean: float
    sd: float | None
    draws: int
    common: Common

    @property
    def dataset(self) -> str:
        """The set's name."""
        return self.common.dataset


def support_points(records: Sequence[Record]) -> list[Point]:
    """Points of the curves over the size of the support set, in the order of the records.

    Structures that few images show have no large support sets, and scores that were added later may be of other
    images: only what every point of a set has (`common_items`) is averaged, or the curve would tell of its cases.
    """
    points, common = [], common_items(records)
    for (dataset, method, shots), draws in _scores(records).items():
        items = common[dataset].items
        if items:
            means = [mean_over_structures({item: of_draw[item] for item in items}) for of_draw in draws.values()]
            sd = float(np.std(means, ddof=1)) if len(means) > 1 else None
            points.append(Point(method, shots, float(np.mean(means)), sd, len(means), common[dataset]))
    return points


def common_items(records: Sequence[Record]) -> dict[str, Common]:
    """By set, what all methods with all numbers of supports have scores of in all draws."""
    found: dict[str, list[set[Item]]] = defaultdict(list)
    for (dataset, _, _), draws in _scores(records).items():
        found[dataset] += [set(of_draw) for of_draw in draws.values()]
    common = {}
    for dataset, items in found.items():
        shared, structures = set.intersection(*items), {structure for _, structure in set.union(*items)}
        left_out = structures - {structure for _, structure in shared}
        common[dataset] = Common(dataset, tuple(sorted(shared)), tuple(sorted(left_out)))
    return common


def _scores(records: Sequence[Record]) -> dict[tuple[str, str, int], Draws]:
    """Dice by set, method and number of supports, then by draw, then by case and structure."""
    scores: dict[tuple[str, str, int], Draws] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        if record.prompt_origin.endswith(("support", "supports")) and record.dice is not None:
            key = (record.dataset, record.method, int(record.prompt_origin.split()[0]))
            scores[key][record.fold or 0][record.case, record.structure] = record.dice
    return scores


def mean_over_structures(scores: dict[Item, float]) -> float:
    """The mean over structures of the mean over images."""
    by_structure: dict[str, list[float]] = defaultdict(list)
    for (_, structure), score in scores.items():
        by_structure[structure].append(score)
    return float(np.mean([np.mean(values) for values in by_structure.values()]))

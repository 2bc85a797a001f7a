"""Task-diversity curves: Dice on tasks that no model learned, over the number of structures that each learned from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from adaptmedseg.evaluation import style, wording
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.slices.points import Item, mean_over_structures
from adaptmedseg.evaluation.slices.scores import BACKGROUND
from adaptmedseg.evaluation.slices.tables import markdown


@dataclass(frozen=True)
class DiversityPoint:
    """Mean Dice of the models that learned `learned` structures, over the `structures` of a set that none of the models
    learned, on the images that all were scored on; asked as `origin` says."""

    dataset: str
    origin: str
    learned: int
    methods: tuple[str, ...]
    mean: float
    images: int
    structures: tuple[str, ...]

    @property
    def of(self) -> str:
        """The structures, by name where they are few."""
        names = self.structures
        return wording.listing(names) if len(names) < 3 else wording.count(len(names), "structure")


def diversity_points(records: Sequence[Record], learned: Mapping[str, frozenset[str]]) -> list[DiversityPoint]:
    """Points by set and way of asking, in the order of the records and of rising numbers of structures.

    Args:
        records: scores.
        learned: by method, the structures that its model is known to have learned; other methods play no part.

    Returns:
        No point of a set where fewer than two different numbers are to be compared.
    """
    known = frozenset[str]().union(*learned.values())
    scores: dict[tuple[str, str], dict[str, dict[Item, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        new = record.structure not in known and record.structure != BACKGROUND
        if record.method in learned and record.dice is not None and new:
            scores[record.dataset, record.prompt_origin][record.method][record.case, record.structure] = record.dice
    points = []
    for (dataset, origin), methods in scores.items():
        by_number: dict[int, list[str]] = defaultdict(list)
        for method in methods:
            by_number[len(learned[method])].append(method)
        shared = sorted(set.intersection(*(set(of_method) for of_method in methods.values())))
        if len(by_number) < 2 or not shared:
            continue
        structures = tuple(sorted({structure for _, structure in shared}))
        images = len({case for case, _ in shared})
        for number, names in sorted(by_number.items()):
            mean = float(
                np.mean([mean_over_structures({item: methods[name][item] for item in shared}) for name in names])
            )
            points.append(DiversityPoint(dataset, origin, number, tuple(names), mean, images, structures))
    return points


def diversity_table(points: Sequence[DiversityPoint]) -> str:
    """The points as a Markdown table."""
    rows = [
        [
            point.dataset, point.of, wording.origin(point.origin), ", ".join(point.methods),
            str(point.learned), str(point.images), wording.score(point.mean),
        ]
        for point in points
    ]  # fmt: skip
    header = ["set", "never learned", "prompt", "models", "structures learned", "images", "Dice"]
    return markdown(header, rows, 4)


def diversity_svg(points: Sequence[DiversityPoint]) -> str:
    """SVG of the curves, a line a set and way of asking."""
    with style.settings():
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        several = len({point.origin for point in points}) > 1
        for place, (dataset, origin) in enumerate(dict.fromkeys((point.dataset, point.origin) for point in points)):
            line = [point for point in points if (point.dataset, point.origin) == (dataset, origin)]
            asked = f", {wording.origin(origin)}" if several else ""
            axes.plot(
                [point.learned for point in line],
                [point.mean for point in line],
                color=style.colour(place),
                marker=style.marker(place),
                markersize=5, linewidth=1.6, label=f"{dataset}: {line[0].of}{asked}",
            )  # fmt: skip
        numbers = sorted({point.learned for point in points})
        axes.set_xticks(numbers, [str(n) for n in numbers])
        axes.set_xlabel("structures learned from")
        axes.set_ylabel("Dice on structures never learned")
        axes.set_ylim(bottom=0)
        style.quiet_grid(axes, "y")
        figure.legend(loc="outside upper left", frameon=False, fontsize=9)
        return style.to_svg(figure)

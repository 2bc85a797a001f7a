"""What an adapter's card says of the data and the base that it was trained with."""

from collections.abc import Sequence
from statistics import median

from adaptmedseg.adapters.card import NOT_STATED, About
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.training.config import TrainConfig

Spacing = tuple[float, float, float]


def median_spacing(cases: Sequence[PreparedCase]) -> Spacing:
    """The median over cases of the spacing in mm, axis by axis (d, h, w)."""
    d, h, w = (round(median(case.spacing[axis] for case in cases), 4) for axis in range(3))
    return d, h, w


def stated_licences(datasets: Sequence[PreparedDataset]) -> dict[str, str]:
    """The licence that each data set states, by its name."""
    return {dataset.name: str(dataset.manifest.get("licence") or NOT_STATED) for dataset in datasets}


def base_licence(card: dict[str, object]) -> str:
    """The licence that a base's card, or that of the base it came from, states."""
    if "licence" in card:
        return str(card["licence"])
    before = card.get("started_from")
    return base_licence(before) if isinstance(before, dict) else NOT_STATED


def about_adapter(
    config: TrainConfig,
    card: dict[str, object],
    licences: dict[str, str],
    spacing: Spacing,
    base: str,
    before: str = "",
) -> About:
    """Name, licences, spacing and normalisation for the card of an adapter trained on a base with this card and name.

    `before` are the licences that the adapter it grew from states, those of the base among them.
    """
    first = before or f"base {base}: {base_licence(card)}"
    named = [f"{name}: {licence}" for name, licence in licences.items()]
    text = "; ".join(dict.fromkeys([*first.split("; "), *named]))
    return About(config.name, text, spacing, config.data.normalise)

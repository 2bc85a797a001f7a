"""A configuration proposed for a checked folder: a shipped one, changed where the data ask for it, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adaptmedseg.data.registry import Family
from adaptmedseg.doctor.advice import FEW_VIEW_VOXELS, Advice
from adaptmedseg.errors import UserError
from adaptmedseg.training.config import TrainConfig

MINUTES_A_CASE, FEWEST_MINUTES, MOST_MINUTES = 0.5, 10, 240
ZOOM_IN = 0.5


def propose(start: Path, name: str, prepared: str, advice: Advice, cases: int, family: Family | None) -> str:
    """YAML text of a configuration, with the reason beside every value that was changed.

    Args:
        start: the configuration to start from.
        name: the experiment's name.
        prepared: where the prepared data set is going to be.
        advice: of the check.
        cases: the number of good cases.
        family: CT or MR, where known.
    """
    values = yaml.safe_load(start.read_text(encoding="utf-8"))
    changes: dict[str, tuple[Any, str]] = {
        "name": (name, ""),
        "data.paths": ([prepared], "the folder that `adaptmedseg prepare` is going to make"),
        "budget.steps": (None, ""),
        "budget.minutes": (
            int(min(max(FEWEST_MINUTES, MINUTES_A_CASE * cases), MOST_MINUTES)),
            f"for {cases} cases on two CPU cores; a graphics processor needs a fraction",
        ),
        "structures_per_image": (min(3, max(1, len(advice.annotating))), "no more than there are"),
    }
    if advice.smallest < FEW_VIEW_VOXELS:
        changes["data.zoom_in"] = (
            ZOOM_IN,
            "small structures are specks in the view of the whole crop; predict with --zoom",
        )
    if advice.uneven:
        changes["data.balance.structure"] = (2.0, "structures are annotated in unlike numbers of cases")
    if family == "CT":
        changes["augment.bias_field"] = (0.0, "CT has no bias field")
        changes["data.normalise"] = ({"rule": "segvol", "n4": False}, "the rule that CT bases were taught")
    elif advice.hides_tissue:
        rule = {"rule": "percentile", "n4": False}
        changes["data.normalise"] = (rule, "SegVol's rule makes much of a structure black")
    for key, (value, _) in changes.items():
        _set(values, key.split("."), value)
    TrainConfig.model_validate(values)
    reasons = [f"#   {key}: {reason}" for key, (_, reason) in changes.items() if reason]
    head = ["# Proposed by `adaptmedseg check`; changed from the shipped configuration:", *reasons, ""]
    return "\n".join(head) + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, Mapping):
            raise UserError(
                f"the configuration holds {inner!r} at {key}, where keys are expected; start from another one"
            )
        values = inner  # type: ignore[assignment]
    values[keys[-1]] = value

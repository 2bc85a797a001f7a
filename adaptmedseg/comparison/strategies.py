"""Strategies of adaptation: one complete configuration each, or the word that nothing is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from adaptmedseg.errors import UserError
from adaptmedseg.training.config import NoTraining, TrainConfig
from adaptmedseg.training.config_file import load_config

Strategy = TrainConfig | NoTraining
ZERO_SHOT = NoTraining(name="zero_shot", train="nothing")


def load_strategy(path: Path, overrides: Mapping[str, object]) -> Strategy:
    """Read a strategy; `overrides` (dotted keys) are for those that train. UserError as in `load_config`."""
    if _trains_nothing(path):
        return load_config(path, NoTraining)
    return load_config(path, TrainConfig, dict(overrides))


def _trains_nothing(path: Path) -> bool:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return False  # `load_config` says what is wrong
    return isinstance(values, dict) and "train" in values


def load_strategies(paths: Sequence[Path], overrides: Mapping[str, object]) -> list[Strategy]:
    """All strategies in their order, the base without training before them where none of them is that.

    UserError for two of one name, whose scores would be mixed up.
    """
    found: list[Strategy] = []
    for path in paths:
        strategy = load_strategy(path, overrides)
        if strategy.name in [other.name for other in found]:
            raise UserError(f"{path}: another strategy is called '{strategy.name}' too; change its name")
        if not strategy.name.replace("_", "").replace("-", "").replace(" ", "").isalnum():
            raise UserError(f"{path}: the name '{strategy.name}' cannot name a folder; use letters, numbers and _")
        found.append(strategy)
    return found if any(isinstance(s, NoTraining) for s in found) else [ZERO_SHOT, *found]

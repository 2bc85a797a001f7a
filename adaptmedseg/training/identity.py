"""What makes two trainings the same: a checkpoint is gone on with by the training that wrote it alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptmedseg.checkpoints.store import model_path, weights_hash
from adaptmedseg.data.files import file_sha256
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.start import Start

# What may change from one start to the next: how long, how often looked at and kept, computed where. Data and base are
# compared by what they hold, for a folder may have moved.
FREE = {
    "budget", "validations", "checkpoint", "compute", "base", "data.paths", "data.cache_gib", "data.embeddings.folder",
    "grow.adapter", "tracking",
}  # fmt: skip
HASHED = ("base", "grow.adapter")
CASE = "data.paths: case"


def identity(config: TrainConfig, start: Start, cases: list[tuple[PreparedDataset, PreparedCase]]) -> dict[str, Any]:
    """Everything that decides what a training learns, by dotted keys: settings, base, cases."""
    keys = settings(config.model_dump(mode="json"))
    keys["base"] = None if start.base is None else weights_hash(start.base)
    keys["grow.adapter"] = None if config.grow is None else file_sha256(model_path(config.grow.adapter))
    for dataset, case in cases:
        keys[f"{CASE} {dataset.name}/{case.id}"] = {name: facts["sha256"] for name, facts in case.files.items()}
    return keys


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration, by dotted keys, without those that may change."""
    return {
        key: value
        for key, value in flat(values).items()
        if not any(key == free or key.startswith(f"{free}.") for free in FREE)
    }


def refuse_other(place: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """UserError, with the first key that differs, where a training is not the one that was started at `place`."""
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if not differing:
        return
    key = differing[0]
    if key in HASHED or key.startswith(CASE):
        what = f"{key} was added" if key not in before else f"{key} is gone" if key not in now else f"{key} has changed"
    else:
        what = f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
    raise UserError(f"{place}: was started with another configuration ({what}); set it back or choose another --out")


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} to {'a.b': 1}; lists are values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{above}{key}.")
        else:
            found[above + key] = value
    return found

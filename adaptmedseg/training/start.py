"""What a training starts from: a base, a fresh adapter on it, or a trained adapter that grows."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from adaptmedseg.adapters.card import AdapterCard
from adaptmedseg.adapters.file import load_adapter, read_card
from adaptmedseg.checkpoints.fresh import seeded
from adaptmedseg.checkpoints.store import load_base, model_path
from adaptmedseg.data.registry import normalise_name
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.growing import grow, growing_parts, only_tokens_learn
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.training.config import GrowConfig, TrainConfig

FRESH_TOKEN = "fresh"


@dataclass(frozen=True)
class Start:
    """`base` with its name and card; where a trained adapter grows, `adapter` is on that base already, and
    `card_of_adapter` is its file's."""

    base: SegVol | None = None
    base_name: str = ""
    card: dict[str, object] = field(default_factory=dict)
    adapter: AdaptedSegVol | None = None
    card_of_adapter: AdapterCard | None = None


def load_start(config: TrainConfig) -> Start:
    """Load what a configuration starts from. UserError for files that can't be used."""
    if config.model == "unet":
        return Start()
    if config.grow is None:
        assert config.base is not None  # the configuration was checked
        return Start(*_named_base(config.base, config.seed))
    path = model_path(config.grow.adapter)
    card = read_card(path)
    base, name, base_card = _named_base(config.base or card.base, config.seed)
    return Start(base, name, base_card, load_adapter(path, base), card)


def _named_base(name: str, seed: int) -> tuple[SegVol, str, dict[str, object]]:
    name = seeded(name, seed)
    base, card = load_base(name)
    return base, name, card


def grow_adapter(config: GrowConfig, model: AdaptedSegVol, structures: list[str], modalities: list[str]) -> None:
    """Add what the configuration names, in place. UserError where it does not fit the data or the adapter."""
    try:
        growing_parts(model)
    except ValueError as error:
        raise UserError(f"grow.adapter {config.adapter}: {error}") from None
    tasks = _sources("tasks", config.tasks, model.tasks, structures)
    looks = _sources("modalities", config.modalities, model.modalities, modalities)
    for key, new, known, found in (
        ("tasks", tasks, model.tasks, structures),
        ("modalities", looks, model.modalities, modalities),
    ):
        missing = sorted(set(found) - set(new) - set(known))
        if missing:
            raise UserError(
                f"grow.{key}: the training data hold '{missing[0]}', for which {config.adapter} has no token; add "
                f"'{missing[0]}: {FRESH_TOKEN}' (or a relative) or train on other data"
            )
    grow(model, tasks, looks)


def _sources(key: str, asked: dict[str, str], known: list[str], found: list[str]) -> dict[str, str | None]:
    """New names, as the data have them, to the relatives they start from, as the adapter has them; None for fresh."""
    sources: dict[str, str | None] = {}
    for name, relative in asked.items():
        new = _match(name, found)
        if new is None:
            raise UserError(f"grow.{key}: no training case holds '{name}'; there are {', '.join(found)}")
        if new in known:
            raise UserError(f"grow.{key}: the adapter has a token for '{new}' already; leave it out")
        source = None if relative == FRESH_TOKEN else _match(relative, known)
        if source is None and relative != FRESH_TOKEN:
            raise UserError(
                f"grow.{key}.{name}: the adapter has no token for '{relative}'; choose one of {', '.join(known)}, or "
                f"{FRESH_TOKEN}"
            )
        sources[new] = source
    return sources


def _match(name: str, names: Iterable[str]) -> str | None:
    return next((known for known in names if normalise_name(known) == normalise_name(name)), None)


def what_learns(config: TrainConfig, model: nn.Module, before: tuple[int, int]) -> AbstractContextManager[None]:
    """The context to train in; `before` are the numbers of tasks and modalities before the adapter grew."""
    if config.grow is not None and config.grow.train == "tokens":
        return only_tokens_learn(cast(AdaptedSegVol, model), *before)
    return nullcontext()


def normalised_alike(config: TrainConfig, card: AdapterCard) -> TrainConfig:
    """The configuration with the normalisation that the adapter was trained with: its old answers depend on it."""
    data = config.data.model_copy(update={"normalise": card.preprocessing.normalisation})
    return config.model_copy(update={"data": data})


def history_of_growth(summary: dict[str, object], card: AdapterCard) -> dict[str, object]:
    """What a grown adapter's summary says of all its trainings: whatever any of them saw counts as seen."""
    before = cast(dict[str, list[str]], card.training)
    joined: dict[str, object] = {
        "grown_from": {"name": card.name, "created": card.created, "tasks": card.tasks, "training": card.training}
    }
    for key in ("structures", "modalities", "cases", "image_sha256"):
        joined[key] = list(dict.fromkeys([*before.get(key, []), *cast(list[str], summary[key])]))
    return joined

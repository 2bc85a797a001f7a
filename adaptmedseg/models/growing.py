"""Adding tasks and modalities to a trained adapted model, and learning their tokens alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.vocabulary import Vocabulary
from adaptmedseg.modules.context_priors import ContextPriors
from adaptmedseg.modules.priors.tokens import PriorPool, PromptTokens

Pool = PriorPool | PromptTokens


def grow(model: AdaptedSegVol, tasks: dict[str, str | None], modalities: dict[str, str | None]) -> None:
    """Give a model tokens for more names, in place; each name with the relative whose tokens it starts from, or None.

    Answers for the tasks and modalities that it had do not change, to the bit.

    Raises:
        ValueError: a name has a token already, a relative has none, or the model has no tokens at all.
    """
    known = model.vocabulary
    new_tasks = [_relative(name, relative, known.tasks) for name, relative in tasks.items()]
    new_modalities = [_relative(name, relative, known.modalities) for name, relative in modalities.items()]
    parts = growing_parts(model)
    for part in parts:
        part.grow(new_tasks, new_modalities)
    model.vocabulary = Vocabulary((*known.tasks, *tasks), (*known.modalities, *modalities))


def growing_parts(model: AdaptedSegVol) -> list[ContextPriors | PromptTokens]:
    """The parts that hold a model's tokens. ValueError where there are none, or where they cannot grow."""
    parts = [part for part in (model.priors, model.prompt_tokens) if part is not None]
    if not parts:
        raise ValueError("the adapter has neither context priors nor prompt tokens, so there is nothing to add to")
    if any("modality_head" in name for name in model.adapters[model.name].tensors()):
        raise ValueError("layer adapters hang on the modality head, whose size would change; leave it out of targets")
    return parts


def _relative(name: str, relative: str | None, known: tuple[str, ...]) -> int | None:
    """The index of a relative among the known names, None for a fresh start."""
    if name in known:
        raise ValueError(f"'{name}' has a token already; leave it out")
    if relative is not None and relative not in known:
        raise ValueError(f"'{relative}', from which '{name}' is to start, has no token; there are {', '.join(known)}")
    return None if relative is None else known.index(relative)


def pools(model: AdaptedSegVol) -> list[Pool]:
    """The tables of tokens that a model has."""
    found: list[Pool] = [] if model.priors is None else [model.priors.pool]
    return found if model.prompt_tokens is None else [*found, model.prompt_tokens]


def frozen_numbers(model: nn.Module) -> int:
    """How many numbers of the tables of tokens get no gradient, though their tables do."""
    if not isinstance(model, AdaptedSegVol):
        return 0
    return sum(table.frozen_numbers() for table in pools(model))


@contextmanager
def only_tokens_learn(model: AdaptedSegVol, old_tasks: int, old_modalities: int) -> Iterator[None]:
    """Within the block gradients reach tokens alone, and of those only the ones behind the old tasks and modalities."""
    tables = pools(model)
    tokens = {id(parameter) for table in tables for parameter in table.parameters()}
    before: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in tokens)
        for table in tables:
            table.frozen_tasks, table.frozen_modalities = old_tasks, old_modalities
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(True)
        for table in tables:
            table.frozen_tasks = table.frozen_modalities = 0

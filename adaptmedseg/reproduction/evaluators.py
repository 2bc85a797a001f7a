"""The ways in which a recipe's models are scored, and what each has to give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from adaptmedseg.evaluation.records import Record
from adaptmedseg.reproduction.receipt import ModelFacts, SetFacts
from adaptmedseg.reproduction.recipes import Kind, Recipe

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class GivenModel:
    """A model that was given: which kind it is, what it is, and what evaluators know of it beside."""

    kind: Kind
    facts: ModelFacts
    loaded: Any


@dataclass(frozen=True, eq=False)
class GivenSet:
    """A data set that was given, for each group of the recipe that it has cases of: structures annotated by its test
    cases, and what evaluators know of it beside."""

    facts: SetFacts
    structures: frozenset[str]
    opened: Any


class Evaluator(Protocol):
    """One way of scoring.

    All raise UserError for what cannot be read, is damaged, or was trained on the cases to be scored.
    """

    def model(self, file: str, base: str | None) -> GivenModel:
        """Load a model; the method in its facts is empty still."""
        ...

    def sets(self, folder: Path, group: str | None, recipe: Recipe) -> list[GivenSet]:
        """Open and check a data set: one entry a group that it has test cases of. `group`: what the user says it is."""
        ...

    def structure(self, name: str) -> str:
        """The name under which a published structure stands in data sets."""
        ...

    def score(
        self,
        recipe: Recipe,
        models: Mapping[str, GivenModel],
        sets: Sequence[GivenSet],
        structures: Sequence[str],
        device: torch.device,
        progress: Progress | None = None,
    ) -> list[Record]:
        """Scores by method; the records' modality is the group."""
        ...

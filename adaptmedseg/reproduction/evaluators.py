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
    cases, the ids of these, and what evaluators know of it beside."""

    facts: SetFacts
    structures: frozenset[str]
    cases: frozenset[str]
    opened: Any

    def shares_cases(self, other: GivenSet) -> bool:
        """Whether the two have test cases in common: by id in sets of one name, or as copies of one set."""
        first, second = self.facts, other.facts
        alike = first.name == second.name or first.fingerprint == second.fingerprint
        return alike and bool(self.cases & other.cases)


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

    def not_given(self, recipe: Recipe, model: GivenModel, structure: str) -> str:
        """Why a model, asked as the recipe asks, never answers about a structure; empty where it does."""
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

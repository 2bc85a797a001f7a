"""What there is to reproduce: published tables with their source, and what each of their rows needs.

The tables are data (`published/NAME.yaml`) and nothing else: no figure in them is one of this project.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adaptmedseg.errors import UserError

ALL = "all structures"
Kind = Literal["base", "lora", "priors", "sam", "sam2", "other"]


class Model(BaseModel):
    """A method of a published table: the kind of model it `is` ("other" is not part of this project), and in words what
    its row needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Kind = Field(alias="is")
    needs: str = ""


class Published(BaseModel):
    """One row of a table: by method, the figure of a structure in a group of data.

    `scale` times our measure is comparable with it: 100 where it is printed in percent. Without a `measure` it is that
    of the recipe.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    group: str
    structure: str
    values: dict[str, float]
    measure: str = ""
    scale: float = 1


class Recipe(BaseModel):
    """A published table. `data` and `models` say in words what is needed, `unknown` what the source leaves open, and
    `not_comparable`, by measure or by structure, why its figures cannot be put beside ours. `ask` is how our models are
    asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    source: str
    evaluator: Literal["volumes", "slices", "supports"]
    ask: str
    measure: str
    models: dict[str, Model]
    data: dict[str, str]
    unknown: list[str]
    not_comparable: dict[str, str] = {}
    rows: list[Published] = Field(min_length=1)

    @model_validator(mode="after")
    def rows_name_what_there_is(self) -> Recipe:
        """Each row is of a method and of data that the recipe tells of."""
        for row in self.rows:
            unknown = [method for method in row.values if method not in self.models]
            unknown += [group for group in row.group.split(" + ") if group not in self.data]
            if unknown:
                raise ValueError(f"{row.group}, {row.structure}: {unknown[0]!r} is not among models and data")
        return self

    @property
    def ours(self) -> list[str]:
        """The methods that this project has."""
        return [method for method, model in self.models.items() if model.kind != "other"]


def recipe_names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


@cache
def recipe(name: str) -> Recipe:
    """A recipe by its name. UserError for one that is not known."""
    if name not in recipe_names():
        raise UserError(f"'{name}': nothing is known of it; choose from {', '.join(recipe_names())}")
    text = _folder().joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return Recipe.model_validate({"name": name, **yaml.safe_load(text)})


def _folder() -> resources.abc.Traversable:
    return resources.files("adaptmedseg.reproduction.published")

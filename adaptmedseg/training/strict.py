"""What all parts of a training's configuration have in common."""

import os
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # torch's generators take no larger one
Name = Annotated[str, Field(min_length=1)]


Names = TypeVar("Names", list[str], tuple[str, ...])


def each_once(paths: Names) -> Names:
    """For folders of data sets. ValueError where one stands twice: its cases would be drawn twice as often."""
    known: set[str] = set()
    for path in paths:
        place = os.path.abspath(path)
        if place in known:
            raise ValueError(f"{os.path.normpath(path)} stands twice; name each set once")
        known.add(place)
    return paths


def not_empty(names: Names) -> Names:
    """For names of which null means all. ValueError where there are none."""
    if not names:
        raise ValueError("names nothing to learn; name structures, or set it to null for all")
    return names


def _kinds(annotation: Any) -> set[Any]:
    """The plain types within an annotation, whatever stands around them."""
    return {annotation}.union(*(_kinds(inner) for inner in get_args(annotation)))


class Strict(BaseModel):
    """Unknown keys are errors, and values stay what they were when they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def no_switch_as_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false for a number: pydantic would read them as 1 and 0."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise ValueError("Input should be a number, not true or false")
        return value

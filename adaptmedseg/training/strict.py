"""What all parts of a training's configuration have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Unknown keys are errors, and values stay what they were when they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

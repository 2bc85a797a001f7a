"""What a training step asks of a model, and what it counts as wrong: prompts and losses."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adaptmedseg.training.strict import Fraction, NotNegative, Strict

KINDS = ("text", "text_box", "text_points", "box", "points", "box_points")


class BoxJitterConfig(Strict):
    """How far a box prompt's corners are moved at random, as a fraction of the box's own extent along each axis.

    A structure is small below a thousandth of the view's voxels and large from a hundredth on.
    """

    small: Fraction = 0.05
    medium: Fraction = 0.05
    large: Fraction = 0.05


class PromptConfig(Strict):
    """What training asks of the structures it drew; prompts are made from labels, as in the reference.

    The six shares say how often each kind of prompt is drawn; `kinds` is how many different ones a step asks: six is
    the reference's step, one the cheapest. The loss is the mean over kinds. A prompt of points has up to `points_each`
    points inside. After `clicks` rounds of correction, each round puts one more point on each prompt, into what the
    mask so far has wrong, and asks again; all rounds count the same.
    """

    text: Fraction = 1.0
    text_box: Fraction = 0.0
    text_points: Fraction = 0.0
    box: Fraction = 0.0
    points: Fraction = 0.0
    box_points: Fraction = 0.0
    kinds: Annotated[int, Field(ge=1, le=6)] = 1
    points_each: Annotated[int, Field(ge=1, le=20)] = 4
    box_jitter: BoxJitterConfig = BoxJitterConfig()
    clicks: Annotated[int, Field(ge=0, le=10)] = 0

    @property
    def shares(self) -> dict[str, float]:
        """The share of each kind of prompt."""
        return {kind: getattr(self, kind) for kind in KINDS}

    @model_validator(mode="after")
    def sums_to_one(self) -> "PromptConfig":
        total = sum(self.shares.values())
        if abs(total - 1) > 1e-6:
            left_out = "" if "text" in self.model_fields_set else "; text is 1 where it is left out: set it too"
            raise ValueError(f"prompt shares sum to {total:g}, not to 1{left_out}")
        drawn = sum(share > 0 for share in self.shares.values())
        if self.kinds > drawn:
            raise ValueError(f"{self.kinds} kinds of prompt a step, but {drawn} with a share above 0: raise shares")
        return self


class LossConfig(Strict):
    """The loss of a prompt is `dice` times the Dice loss plus `voxels` times the voxels' own, averaged.

    The voxels' loss is the binary cross-entropy, or, where `focal_gamma` is given, the focal loss with that exponent
    (Lin et al. 2017, without class weights). `over` says which of an image's prompts count: all, by their mean, or the
    one with the highest loss alone, so that a small structure is not drowned by large ones that are learnt already.
    """

    dice: NotNegative = 1.0
    voxels: NotNegative = 1.0
    focal_gamma: NotNegative | None = None
    over: Literal["mean", "highest"] = "mean"

    @model_validator(mode="after")
    def counts_something(self) -> "LossConfig":
        if not self.dice and not self.voxels:
            raise ValueError("dice and voxels are both 0, so that nothing would be learnt: raise one of them")
        return self

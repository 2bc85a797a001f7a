"""The configuration of a training on slices and pictures."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from adaptmedseg.models.adapter_config import SamAdapterConfig
from adaptmedseg.training.config import (
    AugmentConfig,
    BalanceConfig,
    BudgetConfig,
    OptimiserConfig,
)
from adaptmedseg.training.learning_config import LossConfig, PromptConfig
from adaptmedseg.training.running_config import CheckpointConfig, ComputeConfig, SelectionConfig
from adaptmedseg.training.strict import Name, Seed, Strict, each_once, not_empty
from adaptmedseg.training.tracking_config import TrackingConfig


class SliceDataConfig(Strict):
    """Sets of slices (`adaptmedseg slices`), of the split 'train'. A structure of fewer than `least` pixels in the
    square that the model looks at is no target."""

    paths: Annotated[tuple[str, ...], AfterValidator(each_once)] = ()
    structures: Annotated[tuple[str, ...], AfterValidator(not_empty)] | None = None
    least: Annotated[int, Field(ge=1)] = 8
    balance: BalanceConfig = BalanceConfig()


class SliceTrainConfig(Strict):
    """One experiment on slices. Without `adapter` all weights of a SAM are trained, and the result is a new SAM.

    With `cache_embeddings` the frozen encoder's embeddings are computed once, before the training; then images cannot
    be changed at random, and the adapter is the decoder's alone. In each image `structures_per_image` of its structures
    are asked at once; they share its embedding. The rest is as in `TrainConfig`, but that prompts have no text: with
    `adapter.classes`, the share of "text" is that of asking by the class alone.
    """

    name: Name
    seed: Seed = 0
    model: Literal["sam"]
    base: str
    adapter: SamAdapterConfig | None = None
    cache_embeddings: bool = False
    data: SliceDataConfig = SliceDataConfig()
    budget: BudgetConfig
    batch_size: Annotated[int, Field(ge=1)] = 4
    structures_per_image: Annotated[int, Field(ge=1, le=16)] = 3
    precision: Literal["fp32", "bf16"] = "bf16"
    validations: Literal[0] = 0
    prompts: PromptConfig = PromptConfig(text=0, box=0.5, points=0.5)
    loss: LossConfig = LossConfig()
    tracking: TrackingConfig = TrackingConfig()
    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def selection(self) -> SelectionConfig:
        """The weights of the end: there are no validations to choose by."""
        return SelectionConfig()

    @model_validator(mode="after")
    def fits_pictures(self) -> "SliceTrainConfig":
        for name in ("motion", "ghosting", "anisotropy"):
            if getattr(self.augment, name):
                raise ValueError(f"augment.{name} is for volumes: set it to 0")
        classes = self.adapter is not None and self.adapter.classes
        asked = {kind for kind, share in self.prompts.shares.items() if share}
        if any("text" in kind for kind in asked - ({"text"} if classes else set())):
            raise ValueError("a SAM is not asked by text: set its shares in prompts to 0")
        if self.compute.parallel == "fsdp":
            raise ValueError("a SAM fits into each process: set compute.parallel to ddp")
        return self

    @model_validator(mode="after")
    def cached_images_stay_as_they_are(self) -> "SliceTrainConfig":
        if not self.cache_embeddings:
            return self
        if self.adapter is None:
            raise ValueError(
                "cache_embeddings needs a frozen encoder: give an adapter, such as {train: [mask_decoder.*]}"
            )
        chances = ("spatial", "curve", "mirror", "intensity", "gamma", "noise", "blur", "bias_field")
        moving = [name for name in chances if getattr(self.augment, name)]
        if moving:
            raise ValueError(
                f"embeddings are computed once, so that images cannot change: set augment.{moving[0]} to 0"
            )
        return self

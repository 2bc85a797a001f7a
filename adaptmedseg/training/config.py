"""The training configuration: one complete YAML an experiment, checked before anything runs."""

from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field, model_validator

from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.models.adapter_config import AdapterConfig
from adaptmedseg.training.learning_config import LossConfig, PromptConfig
from adaptmedseg.training.running_config import CheckpointConfig, ComputeConfig, SelectionConfig
from adaptmedseg.training.strict import Fraction, Name, NotNegative, Positive, Seed, Strict, each_once, not_empty
from adaptmedseg.training.tracking_config import TrackingConfig

Temperature = Annotated[float, Field(ge=1)]


class BalanceConfig(Strict):
    """Temperatures of sampling, 1 or more: a group of n is drawn in proportion to n^(1/T).

    1 takes every case once an epoch and every structure of an image as often as any other; a large T (or .inf) draws
    modalities, data sets within a modality, and structures equally often, however many cases each has. A structure's
    temperature works on the choice of cases and on the choice of structures within a case.
    """

    modality: Temperature = 1.0
    dataset: Temperature = 1.0
    structure: Temperature = 1.0


class EmbeddingsConfig(Strict):
    """Image embeddings that are computed once and trained on, for trainings that leave the image encoder alone.

    They are kept in `folder`, by default that of all trainings in the cache. With `draws` each case is stored that many
    times, each time with another draw of the augmentation; without, as it is, and nothing may change images.
    """

    folder: str | None = None
    draws: Annotated[int, Field(ge=0)] = 0


class DataConfig(Strict):
    """Prepared data sets to train on. Cases of the split 'train', or all but fold `fold` where a fold is named.

    `normalise` belongs to the model: it is kept in its file and replayed at prediction. `zoom_in` is the share of
    samples that are windows of full resolution round a structure instead of the whole crop. Views stay in memory up to
    `cache_gib`; those of further cases are made anew each time. `patients` is how many of each data set's patients to
    train on, drawn by `seed`, of which fewer are always among more; null for all.
    """

    paths: Annotated[list[str], AfterValidator(each_once)] = Field(default_factory=list)
    structures: Annotated[list[str], AfterValidator(not_empty)] | None = None
    fold: int | None = None
    patients: Annotated[int, Field(ge=1)] | None = None
    normalise: Normalisation = SEGVOL
    zoom_in: Fraction = 0.0
    balance: BalanceConfig = BalanceConfig()
    cache_gib: Positive = 8.0
    embeddings: EmbeddingsConfig | None = None

    @model_validator(mode="after")
    def windows_need_no_whole_crop(self) -> "DataConfig":
        if self.zoom_in and self.normalise.n4:
            raise ValueError("n4 corrects whole crops and windows are read alone: set zoom_in to 0 or n4 to false")
        return self


class BudgetConfig(Strict):
    """When training ends: after `steps`, or after `minutes` of training time, whichever is set."""

    steps: Annotated[int, Field(ge=1)] | None = None
    minutes: Positive | None = None

    @model_validator(mode="after")
    def one_of_them(self) -> "BudgetConfig":
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes, and leave the other out or set it to null")
        return self


class AugmentConfig(Strict):
    """Random changes of a training view; ranges are symmetric. Angles in degrees, the rest as fractions.

    `spatial` is the probability of an affine change, `mirror` that of a left-right flip, with left and right structures
    exchanged. `curve` is the probability of a random intensity curve, rising or not: it teaches shape before contrast.
    `motion`, `ghosting` and `anisotropy` are the probabilities of MRI's artefacts (TorchIO's).
    """

    spatial: Fraction = 0.9
    curve: Fraction = 0.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 15.0
    scale: Fraction = 0.2
    translate: Fraction = 0.1
    shear: Fraction = 0.05
    mirror: Fraction = 0.5
    intensity: Fraction = 0.2
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.3
    noise: Fraction = 0.04
    blur: Fraction = 0.2
    bias_field: Fraction = 0.0
    motion: Fraction = 0.0
    ghosting: Fraction = 0.0
    anisotropy: Fraction = 0.0


class OptimiserConfig(Strict):
    """Warm-up (a fraction of the budget) and cosine decay to zero; `ema` averages the weights.

    `matrices` chooses how matrices are trained: "muon" orthogonalises their updates, which takes the small ViT to the
    same loss in less than half of AdamW's steps; everything else is AdamW's.
    """

    lr: Positive = 1e-3
    matrices: Literal["muon", "adamw"] = "muon"
    weight_decay: NotNegative = 1e-2
    warmup: Fraction = 0.05
    clip: Annotated[float, Field(gt=0)] = 1.0  # infinite: gradients as they are
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99


class GrowConfig(Strict):
    """A trained adapter (file or run folder) that gets tokens for more tasks or modalities.

    `tasks` and `modalities` map each new name to a relative whose tokens it starts from, or to "fresh". `train` says
    what learns: "tokens", the new ones alone, so that old tasks answer as before, to the bit; or "all" of the adapter.
    """

    adapter: str
    tasks: dict[str, str] = Field(default_factory=dict)
    modalities: dict[str, str] = Field(default_factory=dict)
    train: Literal["tokens", "all"] = "tokens"

    @model_validator(mode="after")
    def adds_something(self) -> "GrowConfig":
        if not self.tasks and not self.modalities:
            raise ValueError("nothing is added: name tasks or modalities, such as tasks: {uterus: fresh}")
        return self


class NoTraining(Strict):
    """A strategy that trains nothing: the base as it is, for `adaptmedseg compare`."""

    name: str
    train: Literal["nothing"]


class TrainConfig(Strict):
    """One experiment. Without `adapter` all weights of the base are trained and the result is a new base.

    With `grow` the adapter is a trained one that gets more tokens; `base` is then the one that it names, unless given.
    `batch_size` counts the images of a step over all processes. `validations` is how often, evenly spread, the cases of
    the split 'val' are scored on the way. fp16 needs a GPU. At most 24 `structures_per_image`: their masks are moved
    together as the bits of one float32 map.
    """

    name: Name
    seed: Seed = 0
    model: Literal["segvol", "unet"] = "segvol"
    base: str | None = "small"
    adapter: AdapterConfig | None = AdapterConfig()
    grow: GrowConfig | None = None
    data: DataConfig = DataConfig()
    budget: BudgetConfig
    batch_size: Annotated[int, Field(ge=1)] = 2
    structures_per_image: Annotated[int, Field(ge=1, le=24)] = 3
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    validations: Annotated[int, Field(ge=0)] = 0
    prompts: PromptConfig = PromptConfig()
    loss: LossConfig = LossConfig()
    tracking: TrackingConfig = TrackingConfig()
    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    selection: SelectionConfig = SelectionConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="before")
    @classmethod
    def trains_something(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("train") == "nothing":
            raise ValueError("this strategy trains nothing; it is for `adaptmedseg compare`, so choose another one")
        return values

    @model_validator(mode="after")
    def unet_has_no_adapter(self) -> "TrainConfig":
        if self.model == "unet" and self.adapter is not None:
            raise ValueError("model 'unet' is trained from scratch and takes no adapter: set adapter to null")
        return self

    @model_validator(mode="after")
    def growing_brings_its_adapter(self) -> "TrainConfig":
        if self.grow is None:
            if self.base is None:
                raise ValueError("base is missing: name one, such as small")
        elif self.model == "unet" or self.adapter is not None:
            raise ValueError("grow takes its adapter from a file: set adapter to null and model to segvol")
        return self

    @model_validator(mode="after")
    def selection_needs_scores(self) -> "TrainConfig":
        if not self.validations and (self.selection.keep == "best" or self.selection.patience is not None):
            raise ValueError("selection chooses by validations, and there are none: set validations, such as 10")
        return self

    @model_validator(mode="after")
    def computed_in_one_way(self) -> "TrainConfig":
        compute = self.compute
        if compute.parallel == "fsdp":
            if self.model != "segvol" or self.adapter is not None or self.grow is not None:
                raise ValueError(
                    "fsdp shares the weights of a base that is trained whole between processes; an adapter or a U-Net "
                    "fits into each: set compute.parallel to ddp"
                )
            if self.precision == "fp16":
                raise ValueError("fsdp scales no gradients, as fp16 needs it: set precision to bf16")
        if compute.gradient_checkpointing and self.model == "unet":
            raise ValueError("the U-Net has no blocks to compute twice: set compute.gradient_checkpointing to false")
        if compute.gradient_checkpointing and compute.compile:
            raise ValueError(
                "blocks are either compiled or computed twice: set one of compute.compile and "
                "compute.gradient_checkpointing to false"
            )
        return self


class LoopConfig(Protocol):
    """What the training loop needs of a configuration, whatever model and data it is of."""

    @property
    def precision(self) -> str: ...
    @property
    def budget(self) -> BudgetConfig: ...
    @property
    def validations(self) -> int: ...
    @property
    def prompts(self) -> PromptConfig: ...
    @property
    def loss(self) -> LossConfig: ...
    @property
    def optimiser(self) -> OptimiserConfig: ...
    @property
    def selection(self) -> SelectionConfig: ...
    @property
    def compute(self) -> ComputeConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...

"""The training configuration: one complete YAML an experiment, checked before anything runs."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapter_config import AdapterConfig
from adaptmedseg.training.learning_config import LossConfig, PromptConfig
from adaptmedseg.training.strict import Fraction, Positive, Strict
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

    paths: list[str] = Field(default_factory=list)
    structures: list[str] | None = None
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
            raise ValueError("give either steps or minutes")
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
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    warmup: Fraction = 0.05
    clip: Positive = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99


class CheckpointConfig(Strict):
    """How often a training writes a checkpoint to go on from: every `minutes` by the clock on the wall, every `steps`,
    or whichever comes first; with neither, only when it is asked to stop. The last `keep` of them stay.

    They are removed when the training is done, unless it is `extendable`: then the last one stays, and the same
    training with a larger budget goes on from it.
    """

    minutes: Positive | None = 10.0
    steps: Annotated[int, Field(ge=1)] | None = None
    keep: Annotated[int, Field(ge=1)] = 2
    extendable: bool = False


class ComputeConfig(Strict):
    """How a training is computed. None of this changes what is learnt, but for rounding.

    `accumulate` cuts each process's share of a batch into that many pieces, computed one after the other, so that less
    memory is needed.
    """

    accumulate: Annotated[int, Field(ge=1)] = 1


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
    the split 'val' are scored on the way. At most 24 `structures_per_image`: their masks are moved together as the bits
    of one float32 map.
    """

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: Literal["segvol", "unet"] = "segvol"
    base: str | None = "small"
    adapter: AdapterConfig | None = AdapterConfig()
    grow: GrowConfig | None = None
    data: DataConfig = DataConfig()
    budget: BudgetConfig
    batch_size: Annotated[int, Field(ge=1)] = 2
    structures_per_image: Annotated[int, Field(ge=1, le=24)] = 3
    precision: Literal["fp32", "bf16"] = "bf16"
    validations: Annotated[int, Field(ge=0)] = 0
    prompts: PromptConfig = PromptConfig()
    loss: LossConfig = LossConfig()
    tracking: TrackingConfig = TrackingConfig()
    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
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


Config = TypeVar("Config", bound=BaseModel)


def load_config(path: Path, kind: type[Config], overrides: dict[str, object] | None = None) -> Config:
    """Read a YAML file as `kind`; `overrides` maps dotted keys to values. UserError names file, key and remedy."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file; give the path of a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())}); mend the file") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no keys; start from one of the shipped configurations")
    for key, value in (overrides or {}).items():
        _set(path, values, key.split("."), value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {key}: {first['msg']} (value: {first['input']!r})") from None


def _set(path: Path, values: dict, keys: list[str], value: object) -> None:
    """Set one dotted key; entries of a list go by their number."""
    whole = ".".join(keys)
    place: dict | list = values
    for depth, key in enumerate(keys[:-1], 1):
        _check_number(path, whole, keys[: depth - 1], place, key)
        inner = place.setdefault(key, {}) if isinstance(place, dict) else place[int(key)]
        if not isinstance(inner, dict | list):
            part = ".".join(keys[:depth])
            raise UserError(f"{path}: {whole}: cannot be set while {part} is {inner!r}; write {part} out in the file")
        place = inner
    _check_number(path, whole, keys[:-1], place, keys[-1])
    if isinstance(place, dict):
        place[keys[-1]] = value
    else:
        place[int(keys[-1])] = value


def _check_number(path: Path, whole: str, above: list[str], place: dict | list, key: str) -> None:
    """UserError where `place` is a list and `key` is not the number of one of its entries."""
    if isinstance(place, list) and (not key.isdecimal() or int(key) >= len(place)):
        count = "1 entry" if len(place) == 1 else f"{len(place)} entries"
        raise UserError(f"{path}: {whole}: {'.'.join(above)} has {count}, numbered from 0; write new ones in the file")

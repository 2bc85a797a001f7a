"""What an adaptation adds to a base: adapters on its layers, context priors, parameters trained whole, and the gate."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adaptmedseg.modules.context_priors import Answers, Fusion, Head

Kind = Literal["lora", "rslora", "qv_lora", "loose_lora", "med_sa"]


class LayerAdapterConfig(BaseModel):
    """One kind of adapter on all layers (for `med_sa`: blocks) whose name matches one of the shell patterns `targets`.

    `rank` is the inner width. `alpha` sets the strength: alpha / rank, for `rslora` alpha / √rank; where it is left out
    it equals the rank.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Kind = "rslora"
    rank: int = Field(8, ge=1)
    alpha: float = Field(8.0, gt=0, allow_inf_nan=False)
    targets: list[str] = Field(["image_encoder.blocks.*"], min_length=1)

    @model_validator(mode="before")
    @classmethod
    def alpha_is_the_rank(cls, values: Any) -> Any:
        """Fill in alpha where it is left out."""
        if isinstance(values, dict) and "rank" in values and "alpha" not in values:
            return {**values, "alpha": values["rank"]}
        return values


class PriorsConfig(BaseModel):
    """Context priors between encoder and decoder.

    `fusion`: "two-way" is Hermes' block, tokens and image attending to each other in turn; "joint" one self-attention
    over all of them. `head`: "multiplicative" multiplies a prototype a task with the upscaled image representation and
    adds that to the mask; "additive" updates the decoder's mask tokens. `blocks` fusion blocks follow each other.
    `width` is what tokens and image meet in, at most that of the image embedding, to which a narrower fusion is
    projected. `modality_tokens` a modality. `answers`: "independent" keeps tasks asked together from seeing each
    other; "together" lets them, as in Hermes. `modality_loss` weighs the head that tells modalities apart; 0 for none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    fusion: Fusion = "two-way"
    head: Head = "multiplicative"
    blocks: int = Field(2, ge=1, le=4)
    width: int = Field(192, ge=32, multiple_of=32)
    modality_tokens: int = Field(10, ge=1)
    answers: Answers = "independent"
    modality_loss: float = Field(0.01, ge=0, allow_inf_nan=False)


class SamAdapterConfig(BaseModel):
    """What is added to a SAM: `layers` and `train` as in `AdapterConfig`; with `classes` a mask token a class of the
    training data, all of which are then answered in one pass, without prompts, as in SAMed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    layers: list[LayerAdapterConfig] = []
    train: list[str] = []
    classes: bool = False

    @model_validator(mode="after")
    def something_is_trained(self) -> "SamAdapterConfig":
        if not self.layers and not self.train and not self.classes:
            raise ValueError("nothing would be trained: name layers, train or classes")
        return self


class AdapterConfig(BaseModel):
    """What is added to the base.

    `prompt_tokens` are tokens without fusion, one a task and one a modality, which act where prompts do: for learning
    tokens alone. `train` are shell patterns of the base's own parameters that are trained whole: the adapter holds its
    own copy of them. With `gate_by_modality` images of other modalities take the base's path untouched.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layers: list[LayerAdapterConfig] = [LayerAdapterConfig()]
    priors: PriorsConfig | None = PriorsConfig()
    prompt_tokens: bool = False
    train: list[str] = []
    gate_by_modality: bool = True

    @model_validator(mode="after")
    def something_is_trained(self) -> "AdapterConfig":
        if not self.layers and self.priors is None and not self.prompt_tokens and not self.train:
            raise ValueError("nothing would be trained: name layers, priors, prompt_tokens or train")
        return self

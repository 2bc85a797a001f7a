"""How a training is run: on what, with which checkpoints, and which of its weights are kept."""

from typing import Annotated, Literal

from pydantic import Field

from adaptmedseg.training.strict import Positive, Strict


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

    `accumulate` cuts each process's share of a batch into that many pieces, computed one after the other, and
    `gradient_checkpointing` computes the blocks of encoder and decoder a second time instead of keeping what is inside
    of them: both take less memory. `compile` hands the blocks to torch.compile. `parallel` says what several processes
    share: the batch (ddp), or weights and states of the optimiser as well (fsdp). `deterministic` has torch use
    algorithms that give the same bits every time, also on a GPU. `workers` make batches beside the process; null is
    one, and none on a CPU.
    """

    accumulate: Annotated[int, Field(ge=1)] = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    deterministic: bool = False
    workers: Annotated[int, Field(ge=0)] | None = None


class SelectionConfig(Strict):
    """Which weights a training gives: those of its end (`last`), or those with the `best` `metric` of all validations.

    With `patience` a training ends after that many validations without a better one. Metrics are of the split 'val':
    `val_dice`, the mean over structures of the mean over cases; `val_dice_modalities`, the mean of that over
    modalities; `val_dice_worst`, the lowest mean of a structure in a modality.
    """

    keep: Literal["last", "best"] = "last"
    metric: Literal["val_dice", "val_dice_modalities", "val_dice_worst"] = "val_dice"
    patience: Annotated[int, Field(ge=1)] | None = None

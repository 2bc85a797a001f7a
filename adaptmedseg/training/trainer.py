"""The training loop, over Accelerate: one model, one stream of batches, one budget."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adaptmedseg.models.growing import frozen_numbers
from adaptmedseg.training.config import OptimiserConfig, TrainConfig
from adaptmedseg.training.losses import segmentation_loss, target_on_map
from adaptmedseg.training.muon import BatchedMuon
from adaptmedseg.training.objective import ModalityObjective, TrainingForward
from adaptmedseg.training.sampling import BatchStream

Validate = Callable[[nn.Module], float]
Progress = Callable[[float, dict[str, float]], None]
LOG_EVERY = 10


def build_loader(stream: BatchStream, device: torch.device) -> DataLoader:
    """Batches made beside an accelerator's steps; on a CPU between them: a step there waits for its slowest thread."""
    if device.type == "cpu":
        return DataLoader(stream, batch_size=None)
    return DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4)


class WeightAverage:
    """Exponential moving average of the trained parameters, with a short memory at the start."""

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.parameters = parameters
        self.decay = decay
        self.steps = 0
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and average; a second call undoes it."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


@dataclass
class TrainResult:
    """What a training did: one row a logged step (step, minutes, loss, lr, and val_dice where measured), how
    many numbers it trained, and what is to be said of it."""

    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    minutes: float = 0.0
    trained: int = 0
    notes: list[str] = field(default_factory=list)


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up over the first `warmup` of the budget, cosine to zero over the rest; progress in [0, 1]."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def build_optimisers(model: nn.Module, config: OptimiserConfig) -> list[torch.optim.Optimizer]:
    """Optimisers over the parameters that require gradients: matrices decay; biases, norms and tokens don't.

    Muon takes the weights of linear layers and LoRA factors (Jordan et al. 2024, with AdamW's scale of updates, so that
    one learning rate serves both); embeddings, convolutions and vectors stay with AdamW.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tokens = {
        name for name in trained if "embed" in name or "token" in name or "prior." in name or name.endswith("_prior")
    }
    matrices = [p for name, p in trained.items() if p.ndim == 2 and min(p.shape) > 1 and name not in tokens]
    chosen = {id(p) for p in matrices}
    rest = [p for p in trained.values() if id(p) not in chosen]
    plain = [{"params": rest, "weight_decay": 0.0}]
    if config.matrices == "adamw" or not matrices:
        decayed = [{"params": matrices, "weight_decay": config.weight_decay}]
        return [torch.optim.AdamW(decayed + plain if matrices else plain, lr=config.lr)]
    muon = BatchedMuon(matrices, lr=config.lr, weight_decay=config.weight_decay)
    return [muon, torch.optim.AdamW(plain, lr=config.lr)] if rest else [muon]


class Trainer:
    """Trains the parameters of `model` that require gradients; afterwards the model holds their moving average."""

    def __init__(self, model: nn.Module, stream: BatchStream, config: TrainConfig, device: torch.device):
        self.config = config
        precision = "bf16" if config.precision == "bf16" else "no"
        AcceleratorState._reset_state(reset_partial_state=True)  # else a process is bound to its first run's precision
        if device.type == "cuda":
            torch.cuda.set_device(device)  # Accelerate takes the current one
        self.accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
        self.modality = ModalityObjective(model, [view.modality for view in stream.views])
        forward = TrainingForward(model, modalities=self.modality.active)
        self.model = model
        self.forward, *self.optimisers = self.accelerator.prepare(forward, *build_optimisers(model, config.optimiser))
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = WeightAverage(self.parameters, config.optimiser.ema)
        self.loader = build_loader(stream, device)

    def _progress(self, step: int, minutes: float) -> float:
        budget = self.config.budget
        return step / budget.steps if budget.steps else minutes / (budget.minutes or 1.0)

    def _step(self, batch) -> Tensor:
        device = self.accelerator.device
        with self.accelerator.autocast():
            output = self.forward(batch.images.to(device), batch.prompts.to(device))
        target = target_on_map(batch.masks.to(device), output.masks.shape[1:])
        loss = segmentation_loss(output.masks, target)
        if self.modality.active:
            loss = loss + self.modality.weight * self.modality.loss(output, batch.prompts)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, self.config.optimiser.clip)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return loss.detach()

    def run(
        self, validate: Validate | None = None, validations: int = 0, progress: Progress | None = None
    ) -> TrainResult:
        """Train until the budget is spent. `validate` runs `validations` times, evenly spread, on the averaged weights;
        neither its time nor the start of the workers counts against a budget in minutes."""
        result, recent, clock, checks = TrainResult(), [], 0.0, 0
        result.trained = sum(p.numel() for p in self.parameters) - frozen_numbers(self.model)
        result.notes += [self.modality.note] if self.modality.note else []
        made = iter(self.loader)
        batches = chain([next(made)], made)
        while (done := self._progress(result.steps, clock / 60)) < 1:
            started = time.perf_counter()
            self._set_learning_rate(done)
            recent.append(float(self._step(next(batches))))
            self.average.update()
            result.steps += 1
            clock += time.perf_counter() - started
            done = self._progress(result.steps, clock / 60)
            if result.steps % LOG_EVERY == 0 or done >= 1:
                result.history.append(self._row(result.steps, clock, recent))
                recent = []
                if validate is not None and done * validations >= checks + 1:
                    checks += 1
                    result.history[-1]["val_dice"] = self._validated(validate)
                if progress is not None:
                    progress(min(done, 1.0), result.history[-1])
        self.average.swap()
        self.accelerator.unwrap_model(self.forward, keep_fp32_wrapper=False)
        result.minutes = clock / 60
        return result

    def _set_learning_rate(self, done: float) -> None:
        settings = self.config.optimiser
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * learning_rate_factor(done, settings.warmup)

    def _row(self, step: int, clock: float, recent: list[float]) -> dict[str, float]:
        lr = self.optimisers[0].param_groups[0]["lr"]
        return {"step": step, "minutes": clock / 60, "loss": sum(recent) / len(recent), "lr": lr}

    def _validated(self, validate: Validate) -> float:
        self.average.swap()
        try:
            return validate(self.model)
        finally:
            self.average.swap()

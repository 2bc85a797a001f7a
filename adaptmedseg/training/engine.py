"""One step of a training, on however many processes and whatever devices, over Accelerate."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from adaptmedseg.errors import UserError
from adaptmedseg.models.growing import frozen_numbers
from adaptmedseg.training.average import WeightAverage
from adaptmedseg.training.computing import compiled, computed_twice, deterministic
from adaptmedseg.training.config import LoopConfig
from adaptmedseg.training.objective import ModalityObjective, Objective
from adaptmedseg.training.optimisers import build_optimisers, learning_rate_factor, step_all
from adaptmedseg.training.processes import Processes
from adaptmedseg.training.sampling import Batch
from adaptmedseg.training.sharding import shard
from adaptmedseg.training.state import TrainingState


class Engine:
    """Holds the prepared model, its optimisers and the average of its weights, and makes steps.

    `modalities` are those of the training data. The loss of a step is the mean over its prompts, wherever they are
    computed, so that it does not matter how many processes share a batch.
    """

    def __init__(self, model: nn.Module, modalities: list[str], config: LoopConfig, device: torch.device):
        self.config = config
        self.accelerator = _accelerator(config, device)
        self.processes = Processes(self.accelerator.process_index, self.accelerator.num_processes)
        self.modality = ModalityObjective(model, modalities)
        self.model = model
        shared_out = config.compute.parallel == "fsdp" and self.processes.count > 1
        self.plain = copy.deepcopy(model) if shared_out else None  # which can hold all of the weights
        self.undo = ExitStack()  # what is done to the model for the time of its training
        self._compute(model)
        forward = Objective(model, config.loss, self.modality, config.prompts.clicks)
        if shared_out:
            self.forward: Any = shard(forward, self.device, self.processes.count)
        else:
            self.forward = self.accelerator.prepare(forward)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
        optimisers = build_optimisers(model, config.optimiser, dtype)
        self.optimisers = [self.accelerator.prepare(optimiser) for optimiser in optimisers]
        self.average = WeightAverage(self.parameters, config.optimiser.ema)
        self.state = TrainingState(model, self.average, optimisers)

    def _compute(self, model: nn.Module) -> None:
        compute = self.config.compute
        if compute.deterministic:
            self.undo.enter_context(deterministic())
        if compute.gradient_checkpointing:
            self.undo.enter_context(computed_twice(model))
        if compute.compile:
            self.undo.enter_context(compiled(model))

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def trained_numbers(self) -> int:
        return sum(p.numel() for p in self.parameters) - frozen_numbers(self.model)

    @property
    def learning_rate(self) -> float:
        return self.optimisers[0].param_groups[0]["lr"]

    def step(self, batches: list[Batch], done: float) -> float:
        """One update, from this process's pieces of the step's batch; `done` is the share of the budget that is spent.

        Returns this process's part of the loss: the parts of all processes add up to the step's.
        """
        self._set_learning_rate(done)
        prompts, images = self.processes.total(
            [sum(len(batch.prompts) for batch in batches), sum(len(batch.images) for batch in batches)]
        )
        losses = []
        for number, batch in enumerate(batches, 1):
            with self._gradients_shared(number == len(batches)):
                loss = self._loss(batch, prompts, images)
                # Gradients are averaged over the processes, whose parts of the loss are to be summed.
                self.accelerator.backward(loss * self.processes.count)
            losses.append(loss.detach())
        self.accelerator.clip_grad_norm_(self.parameters, self.config.optimiser.clip)
        step_all(self.optimisers, self.accelerator.scaler)
        self.average.update()
        return float(torch.stack(losses).sum())

    @contextmanager
    def _gradients_shared(self, now: bool) -> Iterator[None]:
        """Have processes average their gradients at the end of a backward pass, or add them up for a later one."""
        if isinstance(self.forward, FSDPModule):
            self.forward.set_requires_gradient_sync(now)
            yield
        elif now:
            yield
        else:
            with self.accelerator.no_sync(self.forward):
                yield

    def _loss(self, batch: Batch, prompts: float, images: float) -> Tensor:
        """A batch's part of the loss of a step that has so many prompts and images."""
        with self.accelerator.autocast():
            losses = self.forward(batch.question(self.device))
        of_images = len(batch.images) / images
        share = of_images if self.config.loss.over == "highest" else len(batch.prompts) / prompts
        return losses.masks * share + self.modality.weight * of_images * losses.modality

    def _set_learning_rate(self, done: float) -> None:
        settings = self.config.optimiser
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * learning_rate_factor(done, settings.warmup)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Within the block, the model with the averaged weights: a call of every process together."""
        if self.plain is None:
            with self.average.in_place():
                yield self.model
        else:
            self.state.copy_average(self.plain)
            yield self.plain.to(self.device)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds of this beside tensors."""
        scaler = self.accelerator.scaler
        return {"average_steps": self.average.steps, "scaler": None if scaler is None else scaler.state_dict()}

    def load_facts(self, facts: dict[str, Any]) -> None:
        """Undo what happened since `facts`."""
        self.average.steps = facts["average_steps"]
        if self.accelerator.scaler is not None and facts["scaler"]:
            self.accelerator.scaler.load_state_dict(facts["scaler"])

    def finish(self) -> nn.Module:
        """The model with the averaged weights, or the best ones where they were kept, as it was before it was prepared:
        the one that was given, or, where its weights were shared out, a copy of it."""
        self.state.take_best()
        self.undo.close()
        if self.plain is not None:
            self.state.copy_average(self.plain)
            return self.plain
        self.average.swap()
        self.accelerator.unwrap_model(self.forward, keep_fp32_wrapper=False)
        return self.model


def _accelerator(config: LoopConfig, device: torch.device) -> Accelerator:
    if config.precision == "fp16" and device.type != "cuda":
        raise UserError(f"precision fp16: needs a CUDA device, and this training runs on {device.type}; set it to bf16")
    AcceleratorState._reset_state(reset_partial_state=True)  # else a process is bound to its first run's precision
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Accelerate takes the current one
    # Images of one modality, or prompts of one kind, leave parts of a model unused.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    precision = "no" if config.precision == "fp32" else config.precision
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=[unused])

"""The training loop: one model, one stream of batches, one budget; checkpoints, validations, observers."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain

import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptmedseg.errors import UserError
from adaptmedseg.training.checkpoint import Checkpoint
from adaptmedseg.training.config import LoopConfig
from adaptmedseg.training.engine import Engine
from adaptmedseg.training.keeper import CheckpointKeeper
from adaptmedseg.training.observer import Observer
from adaptmedseg.training.position import Position, TrainResult
from adaptmedseg.training.processes import refuse_uneven
from adaptmedseg.training.random_states import random_states, restore_random_states
from adaptmedseg.training.sampling import Batch, SampleStream, Share
from adaptmedseg.training.stop import StopRequest, TrainingStopped, leave_signals_to_parent

Validate = Callable[[nn.Module], Mapping[str, float]]
LOG_EVERY = 10


def build_loader(stream: SampleStream, device: torch.device, workers: int | None = None) -> DataLoader:
    """Batches made beside an accelerator's steps; on a CPU between them: a step there waits for its slowest thread."""
    if workers is None:
        workers = 0 if device.type == "cpu" else 1
    if workers == 0:
        return DataLoader(stream, batch_size=None)
    return DataLoader(
        stream, batch_size=None, num_workers=workers, prefetch_factor=4, worker_init_fn=leave_signals_to_parent
    )


class Trainer:
    """Trains the parameters of `model` that require gradients; afterwards `Trainer.model` holds their moving average.

    It is the model that was given, or a copy where the weights were shared out between processes.
    """

    def __init__(self, model: nn.Module, stream: SampleStream, config: LoopConfig, device: torch.device):
        self.config = config
        self.model = model
        self.engine = Engine(model, stream.modalities, config, device)
        self.processes = self.engine.processes
        self.position = Position()
        self.stream = stream
        stream.share = self._share(stream.batch_size)

    def _share(self, batch_size: int) -> Share:
        """This process's pieces of every batch."""
        count, pieces = self.processes.count, self.config.compute.accumulate
        refuse_uneven(batch_size, count, pieces)
        return Share(self.processes.rank * pieces, pieces, count * pieces)

    def checkpoint(self) -> Checkpoint:
        """All that it takes to go on from here: a call of every process together."""
        facts = self.engine.facts() | {
            "position": asdict(self.position),
            "random": self.processes.gathered(random_states()),
        }
        return Checkpoint(self.position.step, self.engine.state.tensors(), facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, also one of another number of processes. UserError where it is of another model."""
        facts = dict(checkpoint.facts)
        self.engine.state.load(checkpoint.tensors)
        self.engine.load_facts(facts)
        self.position = Position(**facts["position"])
        if self.processes.rank < len(facts["random"]):
            restore_random_states(facts["random"][self.processes.rank])

    def run(
        self,
        validate: Validate | None = None,
        observers: Sequence[Observer] = (),
        keeper: CheckpointKeeper | None = None,
        stop: StopRequest | None = None,
    ) -> TrainResult:
        """Train until the budget is spent. `validate` is called as often as the configuration says, evenly spread, with
        the averaged weights, on all processes; what it gives goes into the history, and its `selection.metric` decides
        which weights are the best. Neither its time, nor a checkpoint's, nor the start of the workers counts against a
        budget in minutes.

        Raises TrainingStopped when a process was asked to stop, with a checkpoint where there is a keeper; UserError
        when the loss is no number any more.
        """
        told = observers if self.processes.is_first else ()
        for observer in told:
            observer.started(self.position.step)
        try:
            self._train(validate, told, keeper, stop)
            if keeper is not None and self.config.checkpoint.extendable:
                self._save(keeper, told)
            self.model = self.engine.finish()
        except BaseException:
            for observer in told:
                observer.interrupted(self.position.step)
            raise
        for observer in told:
            observer.ended(self.position.step)
        return self._result()

    def _train(
        self,
        validate: Validate | None,
        told: Sequence[Observer],
        keeper: CheckpointKeeper | None,
        stop: StopRequest | None,
    ) -> None:
        """Step after step until the budget is spent."""
        batches = self._batches()
        while (done := self._done()) < 1:
            started = time.perf_counter()
            loss = self.engine.step([next(batches) for _ in range(self.config.compute.accumulate)], done)
            self.position.step += 1
            due = keeper is not None and keeper.is_due(self.position.step)
            asked = stop is not None and stop.made
            stopping, writing = self._agree(loss, time.perf_counter() - started, asked, due)
            if self.position.step % LOG_EVERY == 0 or self._done() >= 1:
                self._log(validate, told)
            if keeper is not None and (stopping or writing):
                self._save(keeper, told)
            if stopping and self._done() < 1:
                raise TrainingStopped(f"stopped at step {self.position.step}, as asked")

    def _batches(self) -> Iterator[Batch]:
        self.stream.start = self.position.step
        if self._done() >= 1:
            return iter(())
        made = iter(build_loader(self.stream, self.engine.device, self.config.compute.workers))
        return chain([next(made)], made)

    def _done(self) -> float:
        return self.position.done(self.config)

    def _agree(self, loss: float, seconds: float, asked: bool, due: bool) -> tuple[bool, bool]:
        """Have all processes know a step's whole loss, the first one's clock, whether any was asked to stop, and
        whether the first finds a checkpoint due."""
        first = self.processes.is_first
        clock = self.position.seconds + seconds
        loss, clock, stops, writes = self.processes.total([loss, clock * first, asked, due and first])
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is not finite ({loss}) at step {self.position.step}, so that nothing more can be learnt; "
                "train with a smaller optimiser.lr"
            )
        self.position.seconds = clock
        self.position.recent.append(loss)
        return stops > 0, writes > 0

    def _log(self, validate: Validate | None, told: Sequence[Observer]) -> None:
        at = self.position
        row = at.row(self.engine.learning_rate)
        if validate is not None and at.check_is_due(self.config):
            with self.engine.averaged() as model:
                row |= validate(model)
            if at.is_best(row[self.config.selection.metric]) and self.config.selection.keep == "best":
                self.engine.state.keep_best()
        at.history.append(row)
        for observer in told:
            observer.logged(min(self._done(), 1.0), row)

    def _save(self, keeper: CheckpointKeeper, told: Sequence[Observer]) -> None:
        checkpoint = self.checkpoint()
        if not self.processes.is_first:
            return
        path, problem = keeper.write(checkpoint)
        for observer in told:
            observer.noted(problem) if path is None else observer.saved(checkpoint.step, path)

    def _result(self) -> TrainResult:
        at, note = self.position, self.engine.modality.note
        notes = [*([note] if note else []), *at.notes(self.config)]
        return TrainResult(at.history, at.step, at.seconds / 60, self.engine.trained_numbers, notes)

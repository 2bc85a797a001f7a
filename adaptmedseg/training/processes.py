"""The processes of one training: what they agree on, and what only the first of them does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from adaptmedseg.errors import UserError

T = TypeVar("T")
LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited", "nccl")


@dataclass(frozen=True)
class Processes:
    """This process's `rank` among `count`. With one process nothing is ever sent."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: torch.device) -> "Processes":
        """Meet the processes that a launcher started beside this one, on `device`'s kind; without one it is alone."""
        state = PartialState(cpu=device.type == "cpu")
        return cls(state.process_index, state.num_processes)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of every value over all processes, in float64."""
        if self.count == 1:
            return list(values)
        device = "cpu" if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
        numbers = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(numbers)
        return numbers.tolist()

    def of_first(self, work: Callable[[], T]) -> T:
        """What the first process's work gives, on all of them; its UserError is raised on all of them."""
        if self.count == 1:
            return work()
        found: list[Any] = [None, None]
        if self.is_first:
            try:
                found[0] = work()
            except UserError as error:
                found[1] = str(error)
        dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise UserError(found[1])
        return found[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks, on all of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


def refuse_uneven(batch_size: int, count: int, pieces: int) -> None:
    """UserError where `count` processes cannot share a batch evenly, each of them in `pieces`."""
    if batch_size % (count * pieces):
        share = "1 process" if count == 1 else f"{count} processes"
        raise UserError(
            f"batch_size {batch_size}: {share} with compute.accumulate {pieces} cannot share it evenly; make it a "
            f"multiple of {count * pieces}"
        )


def lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process of the training can no longer be reached, as one that has ended."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(words in text for words in LOST)

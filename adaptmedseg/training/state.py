"""All tensors of a training that change, by name: what a checkpoint holds of model, average and optimisers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adaptmedseg.errors import UserError
from adaptmedseg.training.average import WeightAverage
from adaptmedseg.training.sharding import like, whole

MODEL, AVERAGE, BEST, OPTIMISER = "model", "average", "best", "optimiser"


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a training changes."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class TrainingState:
    """Reads and replaces those tensors. Parameters that are sharded over processes are read whole: a call of every
    process together."""

    def __init__(self, model: nn.Module, average: WeightAverage, optimisers: Sequence[Optimizer]):
        self.model = model
        self.parameters = trained_parameters(model)
        self.average = average
        self.optimisers = optimisers
        self.best: list[Tensor] | None = None  # the average at the best validation, where it is kept

    def keep_best(self) -> None:
        """Keep the average as it is now."""
        self.best = [tensor.clone() for tensor in self.average.average]

    def take_best(self) -> None:
        """Go back to the average that was kept, if one was."""
        if self.best is not None:
            self.average.average = [tensor.clone() for tensor in self.best]

    def copy_average(self, model: nn.Module) -> None:
        """Copy the average, whole, and the buffers into another copy of the model."""
        target = dict(model.state_dict(keep_vars=True))
        averages = dict(zip(self.parameters, self.average.average, strict=True))
        with torch.no_grad():
            for name, tensor in self._own().items():
                target[name].copy_(whole(averages.get(name, tensor)))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, whole, sharing memory with the training where it can."""
        found = {f"{MODEL}.{name}": whole(tensor) for name, tensor in self._own().items()}
        averages = zip(self.parameters, self.average.average, strict=True)
        found |= {f"{AVERAGE}.{name}": whole(tensor) for name, tensor in averages}
        best = zip(self.parameters, self.best or [], strict=self.best is not None)
        found |= {f"{BEST}.{name}": whole(tensor) for name, tensor in best}
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        for optimiser in self.optimisers:
            for parameter, entries in optimiser.state.items():
                prefix = f"{OPTIMISER}.{names[id(parameter)]}"
                found |= {f"{prefix}.{key}": whole(value) for key, value in entries.items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace every tensor. UserError where these are not a state of this model, which then is as it was."""
        wanted = {f"{MODEL}.{name}": tensor for name, tensor in self._own().items()}
        wanted |= {f"{AVERAGE}.{name}": tensor for name, tensor in self.parameters.items()}
        if any(name.startswith(f"{BEST}.") for name in tensors):
            wanted |= {f"{BEST}.{name}": tensor for name, tensor in self.parameters.items()}
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{OPTIMISER}.")}
        wrong = sorted(wanted.keys() ^ kept.keys()) or [n for n in wanted if wanted[n].shape != kept[n].shape]
        if wrong:
            raise UserError(f"the checkpoint is not of this model (first difference: {wrong[0]})")
        with torch.no_grad():
            for name, own in self._own().items():
                own.copy_(like(own, kept[f"{MODEL}.{name}"]))
            for name, average in zip(self.parameters, self.average.average, strict=True):
                average.copy_(like(average, kept[f"{AVERAGE}.{name}"]))
            if f"{BEST}.{next(iter(self.parameters))}" in kept:
                self.keep_best()
                for name, best in zip(self.parameters, self.best or [], strict=True):
                    best.copy_(like(best, kept[f"{BEST}.{name}"]))
        states: dict[str, dict[str, Tensor]] = {}
        for name in tensors.keys() - kept.keys():
            parameter, _, key = name.removeprefix(f"{OPTIMISER}.").rpartition(".")
            states.setdefault(parameter, {})[key] = tensors[name]
        for optimiser in self.optimisers:
            self._load_optimiser(optimiser, states)

    def _load_optimiser(self, optimiser: Optimizer, states: Mapping[str, dict[str, Tensor]]) -> None:
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        own = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        entries = {
            index: {key: like(parameter, value) for key, value in states[names[id(parameter)]].items()}
            for index, parameter in enumerate(own)
            if names[id(parameter)] in states
        }
        optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})

    def _own(self) -> dict[str, Tensor]:
        """Trained parameters, and buffers, which a forward pass may change."""
        stored = self.model.state_dict(keep_vars=True)
        buffers = {name for name, _ in self.model.named_buffers()}
        return {name: tensor for name, tensor in stored.items() if name in self.parameters or name in buffers}

"""All tensors of a training that change, by name: what a checkpoint holds of model, average and optimisers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from adaptmedseg.errors import UserError
from adaptmedseg.training.average import WeightAverage

MODEL, AVERAGE, OPTIMISER = "model", "average", "optimiser"


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

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, whole, sharing memory with the training where it can."""
        found = {f"{MODEL}.{name}": _whole(tensor) for name, tensor in self._own().items()}
        averages = zip(self.parameters, self.average.average, strict=True)
        found |= {f"{AVERAGE}.{name}": _whole(tensor) for name, tensor in averages}
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        for optimiser in self.optimisers:
            for parameter, entries in optimiser.state.items():
                prefix = f"{OPTIMISER}.{names[id(parameter)]}"
                found |= {f"{prefix}.{key}": _whole(value) for key, value in entries.items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace every tensor. UserError where these are not a state of this model, which then is as it was."""
        wanted = {f"{MODEL}.{name}": tensor for name, tensor in self._own().items()}
        wanted |= {f"{AVERAGE}.{name}": tensor for name, tensor in self.parameters.items()}
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{OPTIMISER}.")}
        wrong = sorted(wanted.keys() ^ kept.keys()) or [n for n in wanted if wanted[n].shape != kept[n].shape]
        if wrong:
            raise UserError(f"the checkpoint is not of this model (first difference: {wrong[0]})")
        with torch.no_grad():
            for name, own in self._own().items():
                own.copy_(_like(own, kept[f"{MODEL}.{name}"]))
            for name, average in zip(self.parameters, self.average.average, strict=True):
                average.copy_(_like(average, kept[f"{AVERAGE}.{name}"]))
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
            index: {key: _like(parameter, value) for key, value in states[names[id(parameter)]].items()}
            for index, parameter in enumerate(own)
            if names[id(parameter)] in states
        }
        optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})

    def _own(self) -> dict[str, Tensor]:
        """Trained parameters, and buffers, which a forward pass may change."""
        stored = self.model.state_dict(keep_vars=True)
        buffers = {name for name, _ in self.model.named_buffers()}
        return {name: tensor for name, tensor in stored.items() if name in self.parameters or name in buffers}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _like(own: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor, sharded as the model's own is; one of another shape, such as a count of steps, as it is."""
    if isinstance(own, DTensor) and own.shape == whole.shape:
        return distribute_tensor(whole.to(own.device), own.device_mesh, own.placements)
    return whole

"""One named adapter of a model: its bypasses on layers, and its own copies of parameters that it trains whole."""

from collections.abc import Mapping

from torch import Tensor, nn

from adaptmedseg.adapters.bottleneck import SITES, bottlenecks
from adaptmedseg.adapters.bypass import Bypass, LinearBypass, Switch
from adaptmedseg.adapters.low_rank import LooseLoRA, LoRA, all_rows, qv_rows, scaling
from adaptmedseg.adapters.targets import choose
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapter_config import LayerAdapterConfig

WHOLE = "train"  # the kind, in tensors' names, of parameters that are trained whole
FROZEN_TOWER = "clip_text_model"  # runs without gradients, once a name: nothing in it can be adapted


class NamedAdapter(nn.Module):
    """Built on `hosts`, all modules of the adapted model by name; `parameters` are those that may be trained whole.

    `modalities` are those that its gate lets in; None where there is no gate. Raises UserError for a pattern that
    matches nothing, and for a layer that two entries of one kind name.
    """

    def __init__(
        self,
        name: str,
        layers: list[LayerAdapterConfig],
        train: list[str],
        hosts: Mapping[str, nn.Module],
        parameters: Mapping[str, nn.Parameter],
        modalities: frozenset[str] | None,
    ):
        super().__init__()
        self.name = name
        self.modalities = modalities
        self.switch = Switch()
        self.bypasses = nn.ModuleDict()
        self.whole = nn.ParameterDict()
        hosts = {name: module for name, module in hosts.items() if FROZEN_TOWER not in name}
        for number, layer in enumerate(layers):
            self._add_layer(f"adapter.layers.{number}.targets", layer, hosts)
        available = [name for name in parameters if FROZEN_TOWER not in name]
        for target in choose(train, available, "adapter.train", "parameter of the base"):
            self.whole[inner(target)] = nn.Parameter(parameters[target].detach().clone())

    def _add_layer(self, key: str, config: LayerAdapterConfig, hosts: Mapping[str, nn.Module]) -> None:
        if config.kind == "med_sa":
            blocks = {name: module for name, module in hosts.items() if type(module) in SITES}
            for name in choose(config.targets, blocks, key, "block"):
                for site, bottleneck in bottlenecks(self.switch, blocks[name], config.rank, config.alpha).items():
                    self._add(key, f"{config.kind}.{name}.{site}", hosts[f"{name}.{site}"], bottleneck)
            return
        linears = {name: module for name, module in hosts.items() if type(module) is nn.Linear}
        rows = {name: all_rows(linear) for name, linear in linears.items()}
        what, form = "linear layer", LooseLoRA if config.kind == "loose_lora" else LoRA
        if config.kind in ("qv_lora", "loose_lora"):
            rows = {name: found for name, linear in linears.items() if (found := qv_rows(name, linear))}
            what = "projection to q or v"
        scale = scaling(config.kind, config.rank, config.alpha)
        for name in choose(config.targets, rows, key, what):
            bypass = form(self.switch, linears[name], rows[name], config.rank, scale)
            self._add(key, f"{config.kind}.{name}", linears[name], bypass)

    def _add(self, key: str, name: str, host: nn.Module, bypass: Bypass) -> None:
        if inner(name) in self.bypasses:
            layer = name.partition(".")[2]
            raise UserError(f"{key}: {layer} has an adapter of this kind from an earlier entry; name it once")
        self.bypasses[inner(name)] = bypass
        bypass.attach(host)

    def tensors(self) -> dict[str, nn.Parameter]:
        """All of its parameters by kind, target and role: 'rslora.image_encoder.blocks.0.attn.qkv.down'."""
        found = {
            f"{outer(name)}.{role}": parameter
            for name, bypass in self.bypasses.items()
            for role, parameter in bypass.named_parameters()
        }
        return found | {f"{WHOLE}.{name}": parameter for name, parameter in self.whole_parameters().items()}

    def whole_parameters(self) -> dict[str, nn.Parameter]:
        """Its own copies of the base's parameters, by the names that these have in the base."""
        return {outer(name): parameter for name, parameter in self.whole.items()}

    def deltas(self) -> dict[str, Tensor]:
        """What it adds to weights, by the name of the weight, without parameters trained whole.

        Raises UserError where one of its bypasses isn't linear.
        """
        found: dict[str, Tensor] = {}
        for name, bypass in self.bypasses.items():
            kind, _, target = outer(name).partition(".")
            if not isinstance(bypass, LinearBypass):
                raise UserError(
                    f"adapter '{self.name}': has {kind} on {target}, whose bottleneck is not linear, so that no weight "
                    "can hold it; use it unmerged"
                )
            delta, weight = bypass.delta(), f"{target}.weight"
            found[weight] = found[weight] + delta if weight in found else delta
        return found


def inner(name: str) -> str:
    """Parameters' and modules' own names may hold no dot."""
    return name.replace(".", "/")


def outer(name: str) -> str:
    return name.replace("/", ".")

"""The named adapters of one model: switched on and off, scaled, merged into its weights and taken out again."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from adaptmedseg.adapters.named import NamedAdapter, inner, outer
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapter_config import LayerAdapterConfig


class AdapterSet(nn.Module):
    """Adapters of a model whose modules are `hosts` by name. At rest none is at work: the model is what it was.

    `applied` puts adapters to work for a block of code. Parameters that an adapter trains whole, and merged weights,
    take the place of the model's own by reference, so that nothing is copied and the model's own come back as they
    were, to the bit.

    Bypasses add to what the layer gives in the order in which adapters were added; the order has a say for Med-SA's
    bottlenecks alone, which look at the layer's output.
    """

    def __init__(self, hosts: Mapping[str, nn.Module]):
        super().__init__()
        self.named = nn.ModuleList()
        self._hosts = dict(hosts)
        self._originals = nn.Module()  # what merged weights replaced: buffers, so that they move with the model
        self._merged: frozenset[str] = frozenset()
        self._chosen: frozenset[str] | None = None

    def __iter__(self) -> Iterator[NamedAdapter]:
        for adapter in self.named:
            assert isinstance(adapter, NamedAdapter)
            yield adapter

    def __getitem__(self, name: str) -> NamedAdapter:
        for adapter in self:
            if adapter.name == name:
                return adapter
        raise UserError(f"adapter '{name}': there is none of this name; there are {', '.join(self.names) or 'none'}")

    @property
    def names(self) -> list[str]:
        """In the order in which they were added."""
        return [adapter.name for adapter in self]

    @property
    def merged(self) -> frozenset[str]:
        """The adapters that are merged into the weights at present."""
        return self._merged

    def add(
        self,
        name: str,
        layers: list[LayerAdapterConfig],
        train: list[str],
        trainable: Mapping[str, nn.Parameter],
        modalities: frozenset[str] | None = None,
    ) -> NamedAdapter:
        """A fresh adapter, without effect as yet; `trainable` are the parameters that patterns of `train` choose from.

        Raises UserError for a name in use and for patterns that match nothing.
        """
        if name in self.names:
            raise UserError(f"adapter '{name}': there is one of this name already; choose another name")
        if self._merged:
            raise UserError(f"adapter '{name}': others are merged into the weights; unmerge them first")
        adapter = NamedAdapter(name, layers, train, self._hosts, trainable, modalities)
        self.named.append(adapter)
        return adapter

    # At work ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def enabled(self, names: Collection[str]) -> Iterator[None]:
        """Within the block none but these adapters are used. UserError for an unknown name."""
        before, self._chosen = self._chosen, frozenset(self[name].name for name in names)
        try:
            yield
        finally:
            self._chosen = before

    def disabled(self) -> AbstractContextManager[None]:
        """Within the block no adapter is used: the model is its base."""
        return self.enabled([])

    def is_chosen(self, adapter: NamedAdapter) -> bool:
        """Whether `enabled` and the scale leave it in use."""
        return (self._chosen is None or adapter.name in self._chosen) and adapter.switch.scale != 0

    def set_scale(self, name: str, scale: float) -> None:
        """Multiply all that an adapter adds by `scale`; 0 leaves it out. For parameters trained whole: the share of the
        way from the base's values to its own. UserError while it is merged."""
        adapter = self[name]
        if name in self._merged:
            raise UserError(f"adapter '{name}': is merged into the weights; unmerge it before it is scaled")
        adapter.switch.scale = float(scale)

    @contextmanager
    def applied(self, names: Collection[str]) -> Iterator[None]:
        """Within the block exactly these adapters are at work, whatever `enabled` says."""
        keep = self._merged <= frozenset(names)
        merged = self._merged if keep else frozenset()
        working = [adapter for adapter in self if adapter.name in names and adapter.name not in merged]
        values = ({} if keep else self._own_values()) | self._whole_values(working, keep)
        switches = [adapter.switch for adapter in self]
        before = [switch.on for switch in switches]
        replaced: dict[str, Tensor] = {}
        try:
            for adapter in self:
                adapter.switch.on = adapter in working
            for name, value in values.items():
                replaced[name] = self._put(name, value)
            yield
        finally:
            for switch, on in zip(switches, before, strict=True):
                switch.on = on
            for name, value in replaced.items():
                self._put(name, value)

    def _whole_values(self, working: list[NamedAdapter], merged_stay: bool) -> dict[str, Tensor]:
        """Parameters that adapters train whole: the trained one itself where it is alone and not scaled."""
        found: dict[str, Tensor] = {}
        own = self._own_values()
        for name, trained, scale in [
            (name, trained, adapter.switch.scale)
            for adapter in working
            for name, trained in adapter.whole_parameters().items()
        ]:
            base = own.get(name, self._get(name))
            start = self._get(name) if merged_stay else base
            if name not in found and scale == 1 and start is base:
                found[name] = trained
            else:
                found[name] = found.get(name, start) + scale * (trained - base)
        return found

    # Merging ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def merge(self, names: Collection[str] | None = None) -> None:
        """Let the weights hold these adapters (all where none is named), in the place of those merged before.

        The weights they replace are kept beside them, so that `unmerge`, the gate and `disabled` give the model's own
        back to the bit; memory grows by that much. UserError for adapters that no weight can hold; nothing is changed.
        """
        chosen = [self[name] for name in (self.names if names is None else names)]
        all_deltas = [adapter.deltas() for adapter in chosen]
        self.unmerge()
        values = self._whole_values(chosen, merged_stay=False)
        for deltas in all_deltas:
            for name, delta in deltas.items():
                start = values.get(name, self._get(name))
                values[name] = (start.float() + delta).to(start.dtype)
        for name, value in values.items():
            own = self._get(name)
            self._originals.register_buffer(inner(name), own.detach(), persistent=False)
            self._put(name, nn.Parameter(value.detach().clone(), requires_grad=own.requires_grad))
        self._merged = frozenset(adapter.name for adapter in chosen)

    def unmerge(self) -> None:
        """Give the model its own weights back, to the bit."""
        for name, value in self._own_values().items():
            self._put(name, nn.Parameter(value, requires_grad=self._get(name).requires_grad))
        self._originals = nn.Module()
        self._merged = frozenset()

    def _own_values(self) -> dict[str, Tensor]:
        """The model's own values of what is merged."""
        return {outer(name): value for name, value in self._originals.named_buffers()}

    def _place(self, name: str) -> tuple[nn.Module, str]:
        module, _, leaf = name.rpartition(".")
        return self._hosts[module], leaf

    def _get(self, name: str) -> Tensor:
        module, leaf = self._place(name)
        value = module._parameters[leaf]
        assert value is not None
        return value

    def _put(self, name: str, value: Tensor) -> Tensor:
        """Exchange a parameter of the model; returns the one before. Beside `setattr`, which takes parameters alone."""
        module, leaf = self._place(name)
        before = module._parameters[leaf]
        module._parameters[leaf] = value  # type: ignore[assignment]
        assert before is not None
        return before

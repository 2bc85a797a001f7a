"""SegVol with adapters and context priors: what adaptation trains, and the base it leaves alone."""

import torch
from torch import Tensor, nn

from adaptmedseg.adapters.adapter_set import AdapterSet
from adaptmedseg.adapters.named import NamedAdapter
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapter_config import AdapterConfig
from adaptmedseg.models.conditioning import build_priors, condition, modality_shares
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.models.vocabulary import Vocabulary
from adaptmedseg.modules.priors.tokens import PromptTokens

MAIN = "adapter"


class AdaptedSegVol(nn.Module):
    """A frozen base with trainable adapters; equals the base, to the bit, before the first step.

    `tasks` and `modalities` are the vocabulary: the structures and modalities it has tokens for. Structures outside of
    it are asked by text alone. The base's parts stay what they are: outside of `embed` and `segment` it is the base.

    `adapters` holds the adapter built here, `name`, and those that `add_adapter` puts beside it. An image passes those
    whose gate its modality opens; context priors belong to the first.
    """

    def __init__(self, base: SegVol, config: AdapterConfig, tasks: list[str], modalities: list[str], name: str = MAIN):
        super().__init__()
        self.config = config
        self.name = name
        self.vocabulary = Vocabulary(tuple(tasks), tuple(modalities))
        base.requires_grad_(False)
        self.base = base
        width = base.config.embed_dim
        self.priors = None if config.priors is None else build_priors(config.priors, self.vocabulary, width)
        self.prompt_tokens = PromptTokens(len(tasks), len(modalities), width) if config.prompt_tokens else None
        self.adapters = AdapterSet(self._hosts())
        self.adapters.add(name, config.layers, config.train, dict(base.named_parameters()))

    @property
    def tasks(self) -> list[str]:
        """The structures that have a token."""
        return list(self.vocabulary.tasks)

    @property
    def modalities(self) -> list[str]:
        """The modalities that have tokens."""
        return list(self.vocabulary.modalities)

    @property
    def has_tokens(self) -> bool:
        """Whether structures have tokens of their own: context priors', or prompt tokens."""
        return self.priors is not None or self.prompt_tokens is not None

    def _hosts(self) -> dict[str, nn.Module]:
        """Everything that an adapter may be hung on, by the names that targets match."""
        fusion = {} if self.priors is None else dict(self.priors.named_modules(prefix="priors"))
        return dict(self.base.named_modules()) | fusion

    def add_adapter(self, name: str, config: AdapterConfig, modalities: list[str]) -> None:
        """Put a fresh adapter beside the others; with its gate it works on images of `modalities` alone.

        Raises UserError for a name in use, for patterns that match nothing, and for one with context priors.
        """
        if config.priors is not None or config.prompt_tokens:
            raise UserError(f"adapter '{name}': has tokens, which only a model's first adapter can have")
        gate = frozenset(modalities) if config.gate_by_modality else None
        self.adapters.add(name, config.layers, config.train, dict(self.base.named_parameters()), gate)

    def set_scale(self, name: str, scale: float) -> None:
        """As `AdapterSet.set_scale`; context priors are in use or, at 0, not: there is nothing between."""
        if name == self.name and self.has_tokens and scale not in (0, 1):
            raise UserError(f"adapter '{name}': has tokens, which no scale of {scale:g} can weigh; use 0 or 1")
        self.adapters.set_scale(name, scale)

    def trained_tensors(self) -> dict[str, Tensor]:
        """All that an adapter file holds, by name: the first adapter's tensors and those of parts beside the base."""
        beside = {
            f"{part}.{name}": tensor
            for part, module in self.named_children()
            if module is not self.base and module is not self.adapters
            for name, tensor in module.state_dict(keep_vars=True).items()
        }
        return {**self.adapters[self.name].tensors(), **beside}

    def is_adapted(self, modality: str) -> bool:
        """Whether images of this modality take an adapted path."""
        return bool(self._active(modality))

    def _active(self, modality: str) -> frozenset[str]:
        """The adapters that images of a modality pass."""
        return frozenset(a.name for a in self.adapters if self.adapters.is_chosen(a) and self._lets_in(a, modality))

    def _lets_in(self, adapter: NamedAdapter, modality: str) -> bool:
        if adapter.name == self.name:
            return modality in self.modalities or not self.config.gate_by_modality
        return adapter.modalities is None or modality in adapter.modalities

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        """Views (b, 1, d, h, w) of b modalities to embeddings (b, c, d', h', w')."""
        groups = _groups([self._active(modality) for modality in modalities])
        if len(groups) == 1:
            with self.adapters.applied(next(iter(groups))):
                return self.base.encode_image(image)
        parts = []
        for names, rows in groups.items():
            with self.adapters.applied(names):
                parts.append(self.base.encode_image(image[rows]))
        return _in_order(parts, groups)

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        """Image embeddings (b, c, d', h', w') and n prompts to mask logits (n, d'', h'', w'') on the decoder's map."""
        active = [self._active(modality) for modality in prompts.modalities]
        groups = _groups([active[image] for image in prompts.image_index.tolist()])
        if len(groups) == 1:
            return self._segment_by(next(iter(groups)), embedding, prompts)
        parts = []
        for names, rows in groups.items():
            chosen = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.image_index.device)
            chosen[rows] = True
            parts.append(self._segment_by(names, embedding, prompts.select(chosen)))
        return _in_order(parts, groups)

    def _segment_by(self, names: frozenset[str], embedding: Tensor, prompts: Prompts) -> Tensor:
        with self.adapters.applied(names):
            if self.name in names:
                return self._segment_with_priors(embedding, prompts)
            return self.base.segment(embedding, prompts)

    def _segment_with_priors(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        features, update = condition(self.vocabulary, self.priors, self.prompt_tokens, embedding, prompts)
        return self.base.segment(features, prompts, update)

    def modality_logits(self, embedding: Tensor) -> Tensor | None:
        """What modality images look like, by their adapted embeddings (b, c, d', h', w'): (b, m), in the order of
        `modalities`; None without a head for it."""
        if self.priors is None or self.priors.modality_head is None:
            return None
        with self.adapters.applied([self.name]):
            return self.priors.modality_logits(embedding)

    def modality_shares(self, embedding: Tensor) -> dict[str, float]:
        """How much one image, by its adapted embedding (1, c, d', h', w'), looks like each modality that training
        showed; empty where the model cannot tell."""
        logits = self.modality_logits(embedding)
        if logits is None or self.priors is None or self.priors.modality_head is None:
            return {}
        return modality_shares(self.vocabulary, self.priors.modality_head, logits)

    def forward(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Views (b, 1, d, h, w) and n prompts to mask logits (n, d'', h'', w'') on the decoder's map."""
        return self.segment(self.embed(image, prompts.modalities), prompts)


def _groups(active: list[frozenset[str]]) -> dict[frozenset[str], list[int]]:
    """Rows by the adapters that they pass; a batch without rows passes none."""
    groups: dict[frozenset[str], list[int]] = {}
    for row, names in enumerate(active):
        groups.setdefault(names, []).append(row)
    return groups or {frozenset(): []}


def _in_order(parts: list[Tensor], groups: dict[frozenset[str], list[int]]) -> Tensor:
    """Results of the groups as one tensor in the order of the rows."""
    rows = [row for group in groups.values() for row in group]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    return torch.cat(parts)[order]

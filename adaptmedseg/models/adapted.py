"""SegVol with LoRA adapters and context priors: what adaptation trains, and the base it leaves alone."""

import torch
from torch import Tensor, nn

from adaptmedseg.adapters.lora import add_lora, lora_enabled
from adaptmedseg.models.adapter_config import AdapterConfig
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.modules.context_priors import ContextPriors


class AdaptedSegVol(nn.Module):
    """A frozen base with trainable adapters; equals the base, to the bit, before the first step.

    `tasks` and `modalities` are the vocabulary: the structures and modalities it has tokens for. Structures outside of
    it are asked by text alone. The base is changed in place (its linear layers are wrapped).
    """

    def __init__(self, base: SegVol, config: AdapterConfig, tasks: list[str], modalities: list[str]):
        super().__init__()
        self.config = config
        self.tasks = list(tasks)
        self.modalities = list(modalities)
        base.requires_grad_(False)
        for layer in config.layers:
            add_lora(base, layer.targets, layer.rank, layer.alpha)
        self.base = base
        self.priors: ContextPriors | None = None
        if config.priors is not None:
            width = base.config.embed_dim
            self.priors = ContextPriors(
                len(tasks), len(modalities), width, width // 8, config.priors.blocks, config.priors.modality_tokens
            )

    def trained_tensors(self) -> dict[str, Tensor]:
        """The adapter's own parameters by name: all that an adapter file holds."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def is_adapted(self, modality: str) -> bool:
        """Whether images of this modality take the adapted path."""
        return modality in self.modalities or not self.config.gate_by_modality

    def _active(self, modalities: list[str]) -> list[bool]:
        return [self.is_adapted(modality) for modality in modalities]

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        """Views (b, 1, d, h, w) of b modalities to embeddings (b, c, d', h', w')."""
        active = torch.tensor(self._active(modalities), device=image.device)
        if active.all() or not active.any():
            with lora_enabled(self.base, bool(active.all())):
                return self.base.encode_image(image)
        with lora_enabled(self.base, True):
            adapted = self.base.encode_image(image[active])
        with lora_enabled(self.base, False):
            plain = self.base.encode_image(image[~active])
        embedding = adapted.new_empty(len(image), *adapted.shape[1:])
        embedding[active], embedding[~active] = adapted, plain
        return embedding

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        """Image embeddings (b, c, d', h', w') and n prompts to mask logits (n, d'', h'', w'') on the decoder's map."""
        active = torch.tensor(self._active(prompts.modalities), device=embedding.device)[prompts.image_index]
        if active.all():
            with lora_enabled(self.base, True):
                return self._segment_with_priors(embedding, prompts)
        if not active.any():
            with lora_enabled(self.base, False):
                return self.base.segment(embedding, prompts)
        parts = [self.segment(embedding, prompts.select(rows)) for rows in (active, ~active)]
        logits = parts[0].new_empty(len(prompts), *parts[0].shape[1:])
        logits[active], logits[~active] = parts
        return logits

    def _segment_with_priors(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        if self.priors is None:
            return self.base.segment(embedding, prompts)
        tasks, column = self._task_table(prompts, len(embedding))
        features, prototypes = self.priors(embedding, tasks, self._modality_index(prompts.modalities, embedding.device))
        known = (tasks[prompts.image_index, column] >= 0)[:, None]
        return self.base.segment(features, prompts, prototypes[prompts.image_index, column] * known)

    def _task_table(self, prompts: Prompts, n_images: int) -> tuple[Tensor, Tensor]:
        """Task indices (b, k) of each image, padded with −1, and the column (n,) of every prompt in it."""
        rows: list[list[int]] = [[] for _ in range(n_images)]
        column = []
        for image, name in zip(prompts.image_index.tolist(), prompts.structures, strict=True):
            column.append(len(rows[image]))
            rows[image].append(self.tasks.index(name) if name in self.tasks else -1)
        width = max(len(row) for row in rows)
        table = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
        device = prompts.image_index.device
        return table.to(device), torch.tensor(column, device=device)

    def _modality_index(self, modalities: list[str], device: torch.device) -> Tensor:
        """Index of each image's modality; one outside the vocabulary (gate off) borrows the first one's tokens."""
        known = {name: i for i, name in enumerate(self.modalities)}
        return torch.tensor([known.get(name, 0) for name in modalities], device=device)

    def forward(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Views (b, 1, d, h, w) and n prompts to mask logits (n, d'', h'', w'') on the decoder's map."""
        return self.segment(self.embed(image, prompts.modalities), prompts)

"""SAM with adapters: what adaptation to pictures trains, and the SAM that it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptmedseg.adapters.adapter_set import AdapterSet
from adaptmedseg.models.adapter_config import SamAdapterConfig
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.sam import SINGLE, Masks, Sam, SamConfig, SamOutput
from adaptmedseg.modules.class_tokens import ClassTokens
from adaptmedseg.modules.prompt_encoder import PromptEncoder

NAME = "adapter"


class AdaptedSam(nn.Module):
    """A frozen SAM with trainable adapters, under the interface of `models.sam.Sam`; equals it, to the bit, before the
    first step.

    With `classes` it is asked by their names too, without points and boxes, and answers all of them in one pass
    (`ClassTokens`); of those answers the estimated overlap is what their probabilities lead to expect.
    """

    def __init__(self, base: Sam, config: SamAdapterConfig, classes: Sequence[str] = ()):
        """UserError for patterns that match nothing."""
        super().__init__()
        base.requires_grad_(False)
        self.base, self.adapter_config = base, config
        self.classes = tuple(classes) if config.classes else ()
        self.class_tokens = ClassTokens(len(self.classes), base.mask_decoder) if self.classes else None
        self.adapters = AdapterSet(dict(base.named_modules()))
        self.adapters.add(NAME, config.layers, config.train, dict(base.named_parameters()))

    @property
    def config(self) -> SamConfig:
        """The base's sizes and conventions."""
        return self.base.config

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """The base's; what was trained of it is in use within `decode` alone."""
        return self.base.prompt_encoder

    def trained_tensors(self) -> dict[str, Tensor]:
        """All that an adapter file holds, by name."""
        beside = (
            {} if self.class_tokens is None else self.class_tokens.state_dict(prefix="class_tokens.", keep_vars=True)
        )
        return {**self.adapters[NAME].tensors(), **beside}

    @property
    def changes_encoder(self) -> bool:
        """Whether embeddings are other than the base's."""
        return any("image_encoder." in name for name in self.trained_tensors())

    def normalise(self, image: Tensor) -> Tensor:
        """As `Sam.normalise`."""
        return self.base.normalise(image)

    def encode(self, images: Tensor) -> Tensor:
        """As `Sam.encode`."""
        with self.adapters.applied([NAME]):
            return self.base.encode(images)

    def decode(self, embedding: Tensor, prompts: Prompts, masks: Masks = SINGLE) -> SamOutput:
        """As `Sam.decode`; prompts without any place ask for classes by their names. ValueError for unknown names."""
        with self.adapters.applied([NAME]):
            if prompts.has_places or self.class_tokens is None:
                return self.base.decode(embedding, prompts, masks)
            logits = self._classes(embedding)
        unknown = sorted(set(prompts.structures) - set(self.classes))
        if unknown:
            raise ValueError(f"'{unknown[0]}' is no class of this model; it has {', '.join(self.classes)}")
        which = torch.tensor([self.classes.index(name) for name in prompts.structures], device=logits.device)
        chosen = logits[prompts.image_index, which]
        return SamOutput(chosen[:, None], expected_overlap(chosen)[:, None])

    def _classes(self, embedding: Tensor) -> Tensor:
        assert self.class_tokens is not None
        encoder = self.base.prompt_encoder
        image, position = (x.flatten(2).mT for x in (embedding, encoder.grid_position()))
        return self.class_tokens(self.base.mask_decoder, image, position, encoder.dense_prompt())

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        """Images (b, 3, s, s) to embeddings; embeddings (b, c, g, g), computed before, stay what they are."""
        return image if image.shape[1] == self.config.prompt_dim else self.encode(image)

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        """As `Sam.segment`."""
        return self.decode(embedding, prompts).logits[:, 0]


PictureModel = Sam | AdaptedSam


def expected_overlap(logits: Tensor) -> Tensor:
    """The overlap (intersection over union) with the truth that probabilities (n, h, w) lead to expect of the mask
    logits > 0; (n,)."""
    chance = torch.sigmoid(logits.float()).flatten(1)
    found = (logits > 0).flatten(1).float()
    return (chance * found).sum(1) / torch.maximum(chance, found).sum(1).clamp(min=1e-6)

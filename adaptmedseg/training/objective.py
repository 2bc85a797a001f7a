"""What a training step computes: masks, and, for adapted models with a modality head, what the images look like."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.prompts import Prompts

TOO_FEW_MODALITIES = "the training data hold one modality, so that there is nothing to tell apart: no modality loss"


class TrainingOutput(NamedTuple):
    """Mask logits (n, d, h, w) of the prompts; modality logits (b, m) of the images, None where they are not learnt."""

    masks: Tensor
    modalities: Tensor | None


class TrainingForward(nn.Module):
    """All that one step needs of a model in a single forward pass, so that a wrapper for several devices sees it."""

    def __init__(self, model: nn.Module, *, modalities: bool):
        super().__init__()
        self.model: Any = model  # a model with `embed` and `segment`
        self.modalities = modalities

    def forward(self, images: Tensor, prompts: Prompts) -> TrainingOutput:
        """Views (b, 1, d, h, w) and n prompts about them."""
        embedding = self.model.embed(images, prompts.modalities)
        masks = self.model.segment(embedding, prompts)
        looks = self.model.modality_logits(embedding) if self.modalities else None
        return TrainingOutput(masks, looks)


def modality_loss(logits: Tensor, index: Tensor) -> Tensor:
    """Cross-entropy of modality logits (b, m) with the images' modalities (b,)."""
    return F.cross_entropy(logits.float(), index)


class ModalityObjective:
    """The modality head's part of a training: whether there is one, its loss, its weight."""

    def __init__(self, model: nn.Module, modalities: list[str]):
        """`modalities` are those of the training data; of a model that has a head that can learn they are marked."""
        self.weight, self.note = 0.0, ""
        if not isinstance(model, AdaptedSegVol) or model.priors is None or model.config.priors is None:
            return
        head = model.priors.modality_head
        if head is None or not head.classifier.fc2.weight.requires_grad:
            return
        if len(set(modalities)) < 2:
            self.note = TOO_FEW_MODALITIES
            return
        self.vocabulary, self.weight = model.vocabulary, model.config.priors.modality_loss
        head.start_learning([self.vocabulary.modality(name) for name in sorted(set(modalities))])

    @property
    def active(self) -> bool:
        return self.weight > 0

    def loss(self, output: TrainingOutput, prompts: Prompts) -> Tensor:
        """The loss, not yet weighed; zero where nothing is learnt."""
        if output.modalities is None:
            return torch.zeros((), device=output.masks.device)
        return modality_loss(output.modalities, self.vocabulary.modality_index(prompts).to(output.modalities.device))

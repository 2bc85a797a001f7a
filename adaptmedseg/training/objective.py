"""What a training step computes: masks, and, for adapted models with a modality head, what the images look like."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapted_sam import PictureModel
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.training.clicks import click_on_errors, with_click
from adaptmedseg.training.learning_config import LossConfig
from adaptmedseg.training.losses import over_images, overlap_losses, prompt_losses, target_on_map

TOO_FEW_MODALITIES = "the training data hold one modality, so that there is nothing to tell apart: no modality loss"


class Losses(NamedTuple):
    """The loss of the masks, and that of the modality head, not yet weighed; each a single number."""

    masks: Tensor
    modality: Tensor


class Question(NamedTuple):
    """What one step asks of b images and n structures in them, and the truth.

    images (b, 1, d, h, w), or, where they are `embedded`, their embeddings (b, c, d', h', w'); masks (n, d, h, w) at
    the view's size; of pictures (b, 3, h, w) and (n, h, w). kinds are the same n structures asked in one or several
    ways; `seeds`, one an image, decide where clicks fall.
    """

    images: Tensor
    masks: Tensor
    kinds: Sequence[Prompts]
    seeds: Sequence[int]
    embedded: bool = False


class Objective(nn.Module):
    """All that one step needs of a model, up to the loss, in a single forward pass: a wrapper for several devices sees
    every use of the parameters."""

    def __init__(self, model: nn.Module, loss: LossConfig, modality: "ModalityObjective", clicks: int = 0):
        super().__init__()
        self.model: Any = model  # a model with `embed` and `segment`
        self.config = loss
        self.modality = modality
        self.clicks = clicks

    def forward(self, question: Question) -> Losses:
        """The losses; images are encoded once for all kinds of prompt and all clicks."""
        first = question.kinds[0]
        images = question.images
        embedding = images if question.embedded else self.model.embed(images, first.modalities)
        masks = torch.stack([self._masks(embedding, kind, question) for kind in question.kinds]).mean()
        if not self.modality.active:
            return Losses(masks, torch.zeros((), device=masks.device))
        return Losses(masks, self.modality.loss(self.model.modality_logits(embedding), first))

    def _masks(self, embedding: Tensor, prompts: Prompts, question: Question) -> Tensor:
        """The loss of one kind of prompt, the mean over rounds of clicks."""
        view = tuple(question.masks.shape[1:])
        generators = [torch.Generator().manual_seed(seed) for seed in question.seeds]
        of_prompts = [generators[image] for image in prompts.image_index.tolist()]
        rounds: list[Tensor] = []
        while True:
            logits, overlaps = self._answer(embedding, prompts)
            with torch.autocast(logits.device.type, enabled=False):
                target = target_on_map(question.masks, logits.shape[1:])
                losses = prompt_losses(logits, target, self.config)
                if overlaps is not None:
                    losses = losses + overlap_losses(overlaps, logits, target)
                rounds.append(over_images(losses, prompts.image_index, self.config))
            if len(rounds) > self.clicks:
                return torch.stack(rounds).mean()
            prompts = with_click(prompts, *click_on_errors(logits.detach(), target, view, of_prompts))

    def _answer(self, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor | None]:
        """Mask logits (n, *map), and (n,) what the model thinks of their overlap with the truth, where it says so."""
        if isinstance(self.model, PictureModel) and prompts.has_places:
            answer = self.model.decode(embedding, prompts)
            return answer.logits[:, 0], answer.iou[:, 0]
        return self.model.segment(embedding, prompts), None


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

    def loss(self, logits: Tensor, prompts: Prompts) -> Tensor:
        """The loss of modality logits (b, m), not yet weighed."""
        return modality_loss(logits, self.vocabulary.modality_index(prompts).to(logits.device))

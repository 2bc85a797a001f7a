"""What an adapted model's tokens do to an image and its prompts, between image encoder and mask decoder."""

import torch
from torch import Tensor

from adaptmedseg.models.adapter_config import PriorsConfig
from adaptmedseg.models.prompts import NO_UPDATE, Prompts, TaskUpdate
from adaptmedseg.models.vocabulary import Vocabulary
from adaptmedseg.modules.context_priors import ContextPriors
from adaptmedseg.modules.priors.heads import ModalityHead
from adaptmedseg.modules.priors.tokens import PromptTokens


def build_priors(config: PriorsConfig, vocabulary: Vocabulary, embed_dim: int) -> ContextPriors:
    """Fresh context priors for a base whose image embedding has `embed_dim` channels."""
    return ContextPriors(
        len(vocabulary.tasks),
        len(vocabulary.modalities),
        embed_dim,
        embed_dim // 8,
        config.blocks,
        config.modality_tokens,
        width=min(config.width, embed_dim),
        fusion=config.fusion,
        head=config.head,
        answers=config.answers,
        modality_head=config.modality_loss > 0,
    )


def condition(
    vocabulary: Vocabulary,
    priors: ContextPriors | None,
    prompt_tokens: PromptTokens | None,
    embedding: Tensor,
    prompts: Prompts,
) -> tuple[Tensor, TaskUpdate]:
    """Image embeddings (b, c, d', h', w') and n prompts to embeddings alike and what is added to the prompts.

    Priors and prompt tokens are those of the vocabulary; either may be missing. Fresh ones change nothing.
    """
    if priors is None and prompt_tokens is None:
        return embedding, NO_UPDATE
    table, modality = vocabulary.task_table(prompts), vocabulary.modality_index(prompts)
    names = prototypes = None
    features = embedding
    if priors is not None:
        features, values = priors(embedding, table.tasks, modality, table.padding)
        prototypes = table.of_prompts(values, prompts.image_index)
    if prompt_tokens is not None:
        features = features + prompt_tokens.modalities(modality).unflatten(1, (-1, *[1] * (embedding.ndim - 2)))
        names = prompt_tokens.tasks(table.index_of_prompts(prompts.image_index))
    if prototypes is not None and prototypes.ndim == 3:
        return features, TaskUpdate(names, mask_tokens=prototypes)
    return features, TaskUpdate(names, weights=prototypes)


def modality_shares(vocabulary: Vocabulary, head: ModalityHead, logits: Tensor) -> dict[str, float]:
    """One image's modality logits (1, m) as shares, which sum to one, of the modalities that training showed the head.

    Empty where these are too few to choose from.
    """
    seen = head.seen().tolist()
    if sum(seen) < 2:
        return {}
    shares = torch.softmax(logits[0].float(), dim=-1).tolist()
    return {name: share for name, share, known in zip(vocabulary.modalities, shares, seen, strict=True) if known}

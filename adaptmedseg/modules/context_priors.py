"""Context priors between image encoder and mask decoder: tokens, their fusion with the image, what is read of them."""

from typing import Literal, cast

from torch import Tensor, nn

from adaptmedseg.modules.priors.heads import MaskTokenUpdate, ModalityHead, PosteriorPrototypes
from adaptmedseg.modules.priors.joint import JointFusionBlock
from adaptmedseg.modules.priors.layout import TokenLayout
from adaptmedseg.modules.priors.tokens import PriorPool
from adaptmedseg.modules.priors.two_way import TwoWayFusionBlock

Fusion = Literal["two-way", "joint"]
Head = Literal["multiplicative", "additive"]
Answers = Literal["together", "independent"]
Block = TwoWayFusionBlock | JointFusionBlock
BLOCKS: dict[Fusion, type[TwoWayFusionBlock] | type[JointFusionBlock]] = {
    "two-way": TwoWayFusionBlock,
    "joint": JointFusionBlock,
}


class ContextPriors(nn.Module):
    """Fused image features and one prototype a task, all tasks of an image in one pass.

    A fresh module is an identity: features come back unchanged, to the bit, and prototypes are zero, whatever the
    tokens.

    Args:
        channels: width of the image embedding.
        map_channels: width of the decoder's upscaled map, which the multiplicative head's prototypes are multiplied by.
        width: width in which tokens and image meet; `channels` by default. Where it is less, the embedding is projected
            to it, and what the fusion adds there is projected back and added to the embedding.
        answers: "together" is Hermes' way, in which tasks asked together see each other through the features;
            "independent" hides them from each other (see `TokenLayout`).
        modality_head: whether there is a head that says which modality an image looks like.
    """

    def __init__(
        self,
        n_tasks: int,
        n_modalities: int,
        channels: int,
        map_channels: int,
        blocks: int,
        modality_tokens: int,
        *,
        width: int | None = None,
        fusion: Fusion = "two-way",
        head: Head = "multiplicative",
        answers: Answers = "together",
        modality_head: bool = False,
    ):
        super().__init__()
        width = width or channels
        self.independent = answers == "independent"
        self.pool = PriorPool(n_tasks, n_modalities, modality_tokens, width)
        self.attn_layers = nn.ModuleList(BLOCKS[fusion](width) for _ in range(blocks))
        for block in self._blocks():
            block.start_as_identity_on_features()
        self.prototypes: nn.Module = (
            PosteriorPrototypes(width, map_channels) if head == "multiplicative" else MaskTokenUpdate(width, channels)
        )
        self.to_width: nn.Linear | None = None
        if width != channels:
            # Neither starts at zero: the blocks do, and two zeros in a row would never learn.
            self.to_width = nn.Linear(channels, width, bias=False)
            self.from_width = nn.Linear(width, channels, bias=False)
        self.modality_head = ModalityHead(width, n_modalities) if modality_head else None

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.attn_layers]

    def _features(self, image_embedding: Tensor) -> Tensor:
        """(b, c, *grid) to tokens (b, n, width)."""
        features = image_embedding.flatten(2).mT
        return features if self.to_width is None else self.to_width(features)

    def fuse(
        self, image_embedding: Tensor, tasks: Tensor, modality: Tensor, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """image_embedding (b, c, *grid), tasks (b, k), modality (b,) to features like it and all tokens (b, k + l, w).

        tasks hold −1 where an image is asked less than k; padding (b, k), true there, hides these columns from
        everything. Without it they are null tokens that the features see, as in Hermes.
        """
        layout = TokenLayout(tasks.shape[1], self.independent, padding)
        start = features = self._features(image_embedding)
        priors = self.pool(tasks, modality)
        for block in self._blocks():
            features, priors = block(features, priors, layout)
        if self.to_width is not None:
            features = image_embedding.flatten(2).mT + self.from_width(features - start)
        return features.mT.reshape(image_embedding.shape), priors

    def forward(
        self, image_embedding: Tensor, tasks: Tensor, modality: Tensor, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `fuse`, with prototypes in the place of tokens: (b, k, c') to be multiplied with the upscaled map, or
        (b, k, 4, c) to be added to the mask tokens."""
        features, priors = self.fuse(image_embedding, tasks, modality, padding)
        return features, self.prototypes(priors[:, : tasks.shape[1]])

    def modality_logits(self, image_embedding: Tensor) -> Tensor | None:
        """What modality the images (b, c, *grid) look like, (b, m); None without the head.

        The head is Hermes', what it reads is not: tokens of the image's own modality would hold the answer before
        they saw the image. Here the mean of the tokens of all modalities that the head knows looks at the image by the
        first fusion block, so that a wrong statement can be told from a right one. Modalities added later, unknown to
        the head, change nothing.
        """
        if self.modality_head is None:
            return None
        unknown = self.pool.mean_modality(self.modality_head.seen()).expand(len(image_embedding), -1, -1)
        block = self._blocks()[0]
        tokens = block.update_priors(self._features(image_embedding), unknown, TokenLayout(0))
        return self.modality_head(tokens)

    def grow(self, tasks: list[int | None], modalities: list[int | None]) -> None:
        """Add tasks and modalities behind those there are, as copies of a relative (by index) or fresh."""
        self.pool.grow(tasks, modalities)
        if self.modality_head is not None:
            self.modality_head.grow(modalities)

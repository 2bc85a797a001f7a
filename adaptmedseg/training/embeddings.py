"""Training with a frozen image encoder: every view is encoded once, and what is stored is trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adaptmedseg.data.download import cache_folder
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.training.augment import build_augmentation
from adaptmedseg.training.config import AugmentConfig, EmbeddingsConfig, TrainConfig
from adaptmedseg.training.embedding_draws import Draw, draws_of
from adaptmedseg.training.embedding_store import DamagedEmbeddingError, EmbeddingStore, StoredView, stored_view
from adaptmedseg.training.processes import Processes
from adaptmedseg.training.views import View

ENCODER = "image_encoder"
PLACES = ("rotate", "scale", "translate", "shear")  # at work where `spatial` is
OTHERS = ("curve", "mirror", "intensity", "gamma", "noise", "blur", "bias_field", "motion", "ghosting", "anisotropy")
Encode = Callable[[Tensor, str], Tensor]


def with_frozen_encoder(config: TrainConfig, model: nn.Module) -> AdaptedSegVol:
    """The model. UserError where a view would not have the same embedding at every step."""
    if not isinstance(model, AdaptedSegVol):
        raise UserError(
            "data.embeddings: all weights are trained, the image encoder's among them, so that embeddings change with "
            "every step; train an adapter that leaves it alone, or set data.embeddings to null"
        )
    inside = [name for name in model.trained_tensors() if f".{ENCODER}." in f".{name}"]
    if inside:
        raise UserError(
            f"data.embeddings: the adapter trains {len(inside)} tensors of the image encoder (such as {inside[0]}), so "
            "that embeddings change with every step; target mask_decoder.* alone, or set data.embeddings to null"
        )
    if config.data.zoom_in:
        raise UserError(
            "data.embeddings: data.zoom_in shows another window each time; set it to 0, or data.embeddings to null"
        )
    changing = changes_of_images(config.augment)
    if changing and config.data.embeddings is not None and not config.data.embeddings.draws:
        raise UserError(
            f"data.embeddings: {', '.join(f'augment.{name}' for name in changing)} would change an image whose "
            "embedding is stored; set data.embeddings.draws to how many draws of each case to store, such as 16, or "
            "set them to 0"
        )
    return model


def changes_of_images(config: AugmentConfig) -> list[str]:
    """The keys by which an augmentation changes views."""
    moved = [name for name in PLACES if config.spatial and getattr(config, name)]
    return moved + [name for name in OTHERS if getattr(config, name)]


@dataclass(frozen=True)
class EmbeddedViews:
    """The stored draws of every case of a stream, by its place among the stream's views."""

    store: EmbeddingStore
    keys: Sequence[Sequence[str]]

    def draw(self, case: int, rng: np.random.Generator) -> StoredView:
        """One of the case's draws. UserError where it was damaged since training started."""
        keys = self.keys[case]
        try:
            return self.store.read(keys[int(rng.integers(len(keys)))])
        except DamagedEmbeddingError as error:
            raise UserError(f"{error}; start again, which computes it anew") from None


def embed_views(
    views: Sequence[View],
    config: TrainConfig,
    model: AdaptedSegVol,
    device: torch.device,
    processes: Processes,
    tell: Callable[[str], None],
) -> EmbeddedViews:
    """Compute what is missing of the embeddings of views, shared among all processes, which all make this call.

    `model` is one `with_frozen_encoder`, and is left on `device`. UserError where the store cannot
    be written.
    """
    settings = config.data.embeddings or EmbeddingsConfig()
    store = EmbeddingStore(Path(settings.folder) if settings.folder else cache_folder() / "embeddings")
    by_case = draws_of(views, config, model)
    draws = [draw for case in by_case for draw in case][processes.rank :: processes.count]
    d, h, w = views[0].load().image.shape
    transform = build_augmentation(config.augment, (d, h, w))
    model.to(device)
    encode = encoder_of(model, config.precision, device)

    def compute(draw: Draw) -> StoredView:
        image, masks, names = draw.make(transform, config.augment.mirror)
        return stored_view(encode(image[None], draw.view.modality), masks, names)

    problem = ""
    try:
        fill(store, draws, compute, tell)
    except UserError as error:
        problem = str(error)
    problems = [text for text in processes.gathered(problem) if text]
    if problems:
        raise UserError(problems[0])
    return EmbeddedViews(store, [[draw.key for draw in case] for case in by_case])


def fill(
    store: EmbeddingStore, draws: Sequence[Draw], compute: Callable[[Draw], StoredView], tell: Callable[[str], None]
) -> int:
    """Compute the draws that a store lacks; what another process computes meanwhile is waited for. Returns how many."""
    missing = []
    for draw in draws:
        try:
            if not store.holds(draw.key):
                missing.append(draw)
        except DamagedEmbeddingError as error:
            tell(f"{error}; it is computed again")
            missing.append(draw)
    if missing:
        tell(f"computing {len(missing)} of {len(draws)} image embeddings, kept in {store.folder}")
    done = 0
    others: list[Draw] = []
    for wait, queue in ((False, missing), (True, others)):
        for draw in queue:
            with store.claim(draw.key, wait=wait) as mine:
                if not mine:
                    others.append(draw)
                elif not _holds(store, draw.key):
                    store.write(draw.key, compute(draw))
                    done += 1
    return done


def _holds(store: EmbeddingStore, key: str) -> bool:
    try:
        return store.holds(key)
    except DamagedEmbeddingError:
        return False


def encoder_of(model: AdaptedSegVol, precision: str, device: torch.device) -> Encode:
    """A view (1, 1, d, h, w) of a modality to its embedding (c, d', h', w') on the CPU, as training computes it.

    Embeddings of trainings in float32 are kept in float32, others in float16, which is finer than bfloat16.
    """
    kept = torch.float32 if precision == "fp32" else torch.float16
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    @torch.no_grad()
    def encode(image: Tensor, modality: str) -> Tensor:
        with torch.autocast(device.type, narrow, enabled=narrow is not None):
            embedding = model.embed(image.to(device), [modality])
        return embedding[0].to("cpu", kept)

    return encode

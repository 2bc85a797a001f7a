"""The looks at a view that are stored: the view as it is, or some draws of the augmentation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from adaptmedseg.checkpoints.store import tensors_hash
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.training.augment import Augmentation, augment
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.views import CachedView, View

AT_ONCE = 24  # masks that `augment` moves together


@dataclass(frozen=True)
class Draw:
    """One augmented look at a view, or the view as it is where `number` is None."""

    view: View
    number: int | None
    seed: int
    key: str

    def make(self, transform: Augmentation, mirror: float) -> tuple[Tensor, np.ndarray, list[str]]:
        """The image (1, d, h, w), and the masks and names of all structures that it shows."""
        loaded = self.view.load()
        names = sorted(loaded.bits)
        image, masks = loaded.image.float()[None], np.stack([loaded.mask(name) for name in names])
        if self.number is None:
            return image, masks, names
        rng = np.random.default_rng([self.seed, self.number, *bytes.fromhex(_view_hash(loaded))])
        seed = int(rng.integers(2**31))
        # The seed alone decides the change: masks may be moved some at a time.
        parts = [augment(transform, image, masks[i : i + AT_ONCE], seed) for i in range(0, len(masks), AT_ONCE)]
        image, masks = parts[0][0], np.concatenate([moved for _, moved in parts])
        if rng.random() < mirror:
            image, masks, names = image.flip(-1), masks[..., ::-1], [loaded.mirrored[name] for name in names]
        return image, masks, names


def draws_of(views: Sequence[View], config: TrainConfig, model: AdaptedSegVol) -> list[list[Draw]]:
    """The draws to store of each view, under keys that hold all that decides their embeddings: weights, number format,
    the view itself with its masks, and, for augmented ones, the augmentation and the seed."""
    draws = 0 if config.data.embeddings is None else config.data.embeddings.draws
    encoder = model.base.image_encoder
    weights = tensors_hash(encoder.state_dict())
    common = [weights, model.base.config.model_dump_json(), config.precision]
    found = []
    for view in views:
        of_view = [*common, _view_hash(view.load())]
        if not draws:
            found.append([Draw(view, None, config.seed, _joined_hash(of_view))])
            continue
        chance = [config.augment.model_dump_json(), str(config.seed)]
        found.append(
            [Draw(view, number, config.seed, _joined_hash([*of_view, *chance, str(number)])) for number in range(draws)]
        )
    return found


def _view_hash(view: CachedView) -> str:
    digest = hashlib.sha256(repr((view.image.shape, sorted(view.bits.items()), sorted(view.mirrored.items()))).encode())
    digest.update(view.image.numpy().tobytes())
    digest.update(view.labels.tobytes())
    return digest.hexdigest()


def _joined_hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

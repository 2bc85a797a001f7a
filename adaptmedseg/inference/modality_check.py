"""Whether an image looks like the modality that was stated."""

from torch import Tensor

from adaptmedseg.inference.loading import AnyModel
from adaptmedseg.models.adapted import AdaptedSegVol

SURE = 0.5  # more than all others together


def modality_doubt(model: AnyModel, stated: str, embedding: Tensor) -> str:
    """A sentence where the model's modality head disagrees with the modality stated, else nothing.

    embedding (1, c, d', h', w') is that of the whole image's view. Only modalities that the head was trained on are
    judged: with the gate on, an image stated to be of another one was not seen by the adapter at all.
    """
    if not isinstance(model, AdaptedSegVol) or not model.is_adapted(stated):
        return ""
    shares = model.modality_shares(embedding)
    if stated not in shares:
        return ""
    looks = max(shares, key=lambda name: shares[name])
    if looks == stated or shares[looks] <= SURE:
        return ""
    return (
        f"the image looks like {looks} ({shares[looks]:.0%} sure) and was stated to be {stated}; check --modality, for "
        "masks made with the wrong one are worse"
    )

"""Any model of pictures, ready to be asked: this project's SAM files, and SAM 2 as a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from adaptmedseg.adapters.sam_file import SAM_ADAPTER_FORMAT, load_sam_adapter, read_sam_adapter
from adaptmedseg.checkpoints.foreign import own_format
from adaptmedseg.checkpoints.fresh import is_fresh
from adaptmedseg.checkpoints.known import KNOWN
from adaptmedseg.checkpoints.sam import SAM_FORMAT, load_sam
from adaptmedseg.checkpoints.store import SHIPPED, model_path, tensors_hash, weights_hash
from adaptmedseg.data.pictures.frame import Fit
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted_sam import AdaptedSam
from adaptmedseg.models.sam import Sam
from adaptmedseg.models.sam2 import Sam2Baseline, load_sam2

SAM2 = "sam2:"


@dataclass(frozen=True)
class LoadedPictureModel:
    """A model with what inference and reports need to know of it.

    `size` and `fit`: the square it looks at; `alternatives`: whether it offers several masks for one point; `seen`: the
    SHA-256 of every image that its training is known to have seen; `lineage` says in words how it came about; `classes`
    are those that it knows by name; `training` is what its card says of its last training; `learned` are the structures
    of all its trainings, empty where they are not known, as of published weights.
    """

    model: Sam | AdaptedSam | Sam2Baseline
    size: int
    fit: Fit
    alternatives: bool
    seen: frozenset[str]
    hashes: dict[str, str]
    lineage: str
    licence: str = ""
    classes: tuple[str, ...] = ()
    training: Mapping[str, object] = field(default_factory=dict)
    learned: frozenset[str] = frozenset()


def load_picture_model(name: str) -> LoadedPictureModel:
    """Load by known name ("sam-b"), file, run folder, or "sam2:FOLDER" for SAM 2 in transformers' format.

    Raises UserError for a missing, damaged or foreign file, and for models of volumes.
    """
    if name.startswith(SAM2):
        source = name.removeprefix(SAM2)
        baseline = load_sam2(source)
        hashes = {"weights": weights_hash(baseline)}
        return LoadedPictureModel(
            baseline, baseline.size, "stretch", True, frozenset(), hashes, f"SAM 2 ({Path(source).name}), zero-shot"
        )
    if not is_fresh(name):
        form = own_format(model_path(name))
        if form == SAM_ADAPTER_FORMAT:
            return _load_adapted(model_path(name))
        if name in SHIPPED or (form is not None and form != SAM_FORMAT):
            what = "the shipped base" if name in SHIPPED else form
            raise UserError(
                f"model '{name}': is one of volumes ({what}), and pictures need a SAM; give one, made by "
                "`adaptmedseg weights convert sam-b` or `adaptmedseg train sam_small`"
            )
    model, card = load_sam(name)
    stated = card.get("training")
    training = stated if isinstance(stated, dict) else {}
    config = model.config
    return LoadedPictureModel(
        model,
        config.image_size,
        config.fit,
        config.alternatives,
        _seen(training),
        {"weights": weights_hash(model)},
        f"{card.get('name', name)} ({card.get('trained_on', 'training unknown')})",
        str(card.get("licence", "")),
        training=training,
        learned=_learned(card),
    )


def _load_adapted(path: Path) -> LoadedPictureModel:
    """An adapter on the base that its card names."""
    card, _ = read_sam_adapter(path)
    if not is_fresh(card.base) and card.base not in KNOWN and not model_path(card.base).exists():
        raise UserError(
            f"{path}: was trained on '{card.base}', which is not there; put that base back, or run from the folder of "
            "the training where its path was a relative one"
        )
    base = load_picture_model(card.base)
    if not isinstance(base.model, Sam):
        raise UserError(f"{path}: its base '{card.base}' is no SAM; train it on one")
    model = load_sam_adapter(path, base.model)
    return replace(
        base,
        model=model,
        seen=base.seen | _seen(card.training),
        hashes=base.hashes | {"adapter": tensors_hash(model.trained_tensors())},
        lineage=f"{card.name} on {base.lineage}",
        licence=card.licence,
        classes=model.classes,
        training=card.training,
        learned=base.learned | _learned({"training": card.training}),
    )


def _seen(training: Mapping[str, object]) -> frozenset[str]:
    hashes = training.get("image_sha256", [])
    return frozenset(hashes) if isinstance(hashes, list) else frozenset()


def _learned(card: Mapping[str, object]) -> frozenset[str]:
    """The structures of a card's training and of those before it."""
    training, before = card.get("training"), card.get("started_from")
    names = training.get("structures") if isinstance(training, dict) else None
    own = frozenset(names) if isinstance(names, list) else frozenset[str]()
    return own | (_learned(before) if isinstance(before, dict) else frozenset())

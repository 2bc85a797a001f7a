"""Any model file of this project, ready to be asked: a base, an adapter on its base, a U-Net, or a run folder."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from adaptmedseg.adapters.card import NOT_STATED
from adaptmedseg.adapters.file import ADAPTER_FORMATS, load_adapter, read_card
from adaptmedseg.checkpoints.foreign import own_format
from adaptmedseg.checkpoints.fresh import is_fresh
from adaptmedseg.checkpoints.sam import SAM_FORMAT
from adaptmedseg.checkpoints.store import file_hash, load_base, model_path, weights_hash
from adaptmedseg.checkpoints.unet_file import UNET_FORMAT, load_unet
from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.data.views import ResizeMode
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.segvol import SMALL, SegVol, Size3
from adaptmedseg.models.unet import ReferenceUNet
from adaptmedseg.training.about import base_licence

BASE_HASH = "base weights"
UNET_HASH = "file"
AnyModel = SegVol | AdaptedSegVol | ReferenceUNet


@dataclass(frozen=True)
class LoadedModel:
    """A model with what inference and reports need to know of it.

    `structures` are those it was trained to segment; `seen` the SHA-256 of every image that any of its training saw;
    `hashes` what identifies it; `lineage` says in words how it came about; `zoom_in`, whether it is meant to look
    again by windows at full resolution, and `base_zoom_in`, whether its base was; `untrained`, in a sentence, what of
    it no training ever saw; `normalisation`, how it was taught to see intensities, and `base_normalisation`, how its
    base was; `taught`, by modality, the rule of the last training that saw it; `licence`, what its card states of the
    weights.
    """

    model: AnyModel
    size: Size3
    resize: ResizeMode
    structures: list[str]
    seen: frozenset[str]
    hashes: dict[str, str]
    lineage: str
    zoom_in: bool = False
    untrained: str = ""
    normalisation: Normalisation = SEGVOL
    base_normalisation: Normalisation = SEGVOL
    taught: Mapping[str, Normalisation] = field(default_factory=dict)
    base_zoom_in: bool = False
    licence: str = NOT_STATED

    def normalisation_of(self, modality: str) -> Normalisation:
        """How images of a modality are normalised for it: as when it was taught, so that a model trained on by MRI sees
        CT as its base did; for modalities that no training saw, the base's way where they take the base's path."""
        if modality in self.taught:
            return self.taught[modality]
        if isinstance(self.model, AdaptedSegVol) and not self.model.is_adapted(modality):
            return self.base_normalisation
        return self.normalisation

    def zooms(self, modality: str) -> bool:
        """Whether it looks again by windows in images of a modality: as its base does where they take its path."""
        if isinstance(self.model, AdaptedSegVol) and not self.model.is_adapted(modality):
            return self.base_zoom_in
        return self.zoom_in

    @property
    def gated(self) -> bool:
        """Whether images of modalities it was not adapted to take the base's path, bit for bit."""
        return isinstance(self.model, AdaptedSegVol) and self.model.config.gate_by_modality


def ungated(loaded: LoadedModel) -> LoadedModel:
    """The same adapted model with its gate open: the adapter works on every modality. Weights are shared."""
    if not isinstance(loaded.model, AdaptedSegVol):
        raise ValueError("only an adapted model has a gate")
    model = copy.copy(loaded.model)
    model.config = model.config.model_copy(update={"gate_by_modality": False})
    return replace(loaded, model=model, lineage=f"{loaded.lineage}, gate off")


def load_model(name: str, base: str | None = None) -> LoadedModel:
    """Load by known name ("small"), file or run folder. `base` overrides the base that an adapter file names."""
    path = model_path(name)
    kind = own_format(path) or ""
    if base is not None and not kind.startswith(ADAPTER_FORMATS):
        raise UserError(f"--base {base}: '{name}' is no adapter and takes no base; leave it out")
    if kind.startswith(ADAPTER_FORMATS):
        return _load_adapted(path, base)
    if kind == UNET_FORMAT:
        unet, training = load_unet(path)
        resize = cast(ResizeMode, SMALL.resize)
        seen = frozenset(cast(list, training.get("image_sha256", [])))
        lineage = f"U-Net from scratch ({training.get('config')})"
        return LoadedModel(
            unet.eval(), unet.spatial_size, resize, unet.structures, seen, {UNET_HASH: file_hash(path)}, lineage,
            trained_on_windows({"training": training}), normalisation=recorded_normalisation(training),
        )  # fmt: skip
    if kind == SAM_FORMAT:
        raise UserError(f"model '{name}': is a model of pictures (SAM), and volumes need a SegVol, adapter or U-Net")
    model, card = load_base(name)
    structures, seen, lineage = _history(card)
    hashes = {BASE_HASH: weights_hash(model)}
    config = model.config
    return LoadedModel(
        model.eval(),
        config.spatial_size,
        config.resize,
        structures,
        seen,
        hashes,
        lineage,
        config.zoom_in or trained_on_windows(card),
        _untrained(name, card),
        recorded_normalisation(card.get("training")),
        taught=taught_normalisations(card),
        licence=base_licence(card),
    )


def taught_normalisations(card: dict[str, object]) -> dict[str, Normalisation]:
    """By modality, the rule of the last training that saw it, over a base's card and those of all it came from."""
    before, training = card.get("started_from"), cast(dict, card.get("training") or {})
    rules = taught_normalisations(before) if isinstance(before, dict) else {}
    own = recorded_normalisation(training)
    return rules | dict.fromkeys(cast(list[str], training.get("modalities", [])), own)


def recorded_normalisation(training: object) -> Normalisation:
    """What a training summary says of intensities; SegVol's rule where it says nothing."""
    recorded = training.get("normalisation") if isinstance(training, dict) else None
    try:
        return SEGVOL if recorded is None else Normalisation.model_validate(recorded)
    except ValidationError:
        raise UserError(f"normalisation {recorded!r} of the model is damaged; copy the model file again") from None


def trained_on_windows(card: dict[str, object]) -> bool:
    """Whether any training that a card tells of, the earlier ones among them, showed windows at full resolution.

    Zooming in then makes sense; what was adapted on whole views alone keeps to its base's way.
    """
    training, before = card.get("training"), card.get("started_from")
    told = training if isinstance(training, dict) else {}
    if told.get("zoom_in"):
        return True
    grown = told.get("grown_from")
    return any(trained_on_windows(older) for older in (before, grown) if isinstance(older, dict))


def _untrained(name: str, card: dict[str, object]) -> str:
    """A sentence on the parts of a base that hold random weights; empty where there are none."""
    if is_fresh(name):
        return f"'{name}' has random weights, so that its masks mean nothing; train it first"
    new = card.get("new")
    if not isinstance(new, dict):
        return ""
    parts = ", ".join(new.get("parts", []))
    return f"'{name}' has random weights in {parts}, so that its masks mean nothing; train it first"


def _load_adapted(path: Path, base_name: str | None) -> LoadedModel:
    card = read_card(path)
    try:
        base, base_card = load_base(base_name or card.base)
    except UserError as error:
        if base_name is not None:
            raise
        raise UserError(f"{path}: its base cannot be loaded; give it with --base ({error})") from None
    model = load_adapter(path, base)
    structures, seen, lineage = _history(base_card)
    seen |= frozenset(cast(list, card.training.get("image_sha256", [])))
    hashes = {BASE_HASH: card.base_hash, "adapter file": file_hash(path)}
    every = sorted({*structures, *model.tasks})
    text = f"adapter {card.training.get('config')} on {lineage}"
    own, of_base = card.preprocessing.normalisation, recorded_normalisation(base_card.get("training"))
    if own != of_base:
        text += f"; intensities of adapted modalities by rule '{own.rule}', of others by '{of_base.rule}'"
    config = base.config
    base_zooms = config.zoom_in or trained_on_windows(base_card)
    zooms = base_zooms or trained_on_windows({"training": card.training})
    return LoadedModel(
        model.eval(), config.spatial_size, config.resize, every, seen, hashes, text, zooms,
        normalisation=own,
        base_normalisation=of_base,
        taught=taught_normalisations(base_card) | dict.fromkeys(model.modalities, own),
        base_zoom_in=base_zooms,
        licence=card.licence,
    )  # fmt: skip


def _history(card: dict[str, object]) -> tuple[list[str], frozenset[str], str]:
    """Structures, seen images and words of a base's card and of all the bases it came from."""
    training = cast(dict, card.get("training") or {})
    structures, seen = set(training.get("structures", [])), set(training.get("image_sha256", []))
    lineage = str(card.get("name", "base"))
    before = card.get("started_from")
    if isinstance(before, dict) and "training" in before:
        older_structures, older_seen, older_lineage = _history(before)
        structures |= set(older_structures)
        seen |= older_seen
        lineage = f"{lineage} (from {older_lineage})"
    return sorted(structures), frozenset(seen), lineage


def check_unseen(model: LoadedModel, method: str, image_sha256: str, case: str) -> None:
    """Refuse to score a model on an image that its training saw."""
    if image_sha256 in model.seen:
        raise UserError(
            f"{case}: model '{method}' was trained on this image, so its score would be no test; "
            "choose cases kept aside with --split test or --fold"
        )

"""What a model's tokens are worth: Dice with the right ones, and with wrong ones in their place."""

import copy
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch

from adaptmedseg.data.normalise import Normalisation
from adaptmedseg.data.overlap import dice
from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.bootstrap import bootstrap_interval
from adaptmedseg.inference.loading import LoadedModel, check_unseen
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.models.vocabulary import Vocabulary

RIGHT, OTHER_TASK, NO_TASK = "right tokens", "another task's token", "no task token"
Swap = Mapping[str, str | None]


@dataclass(frozen=True)
class ProbeScore:
    """Dice of one structure of one case, asked with the tokens that `tokens` names."""

    dataset: str
    case: str
    patient: str
    modality: str
    structure: str
    tokens: str
    dice: float


@dataclass(frozen=True)
class ProbeRow:
    """The mean over n scores with some tokens, and how it differs from that of the same with the right ones.

    `interval`: 95 %, over patients; None for fewer than three of them.
    """

    modality: str
    tokens: str
    n: int
    dice: float
    change: float
    interval: tuple[float, float] | None


def with_swapped_tokens(model: AdaptedSegVol, swapped: Swap) -> AdaptedSegVol:
    """The same model, which uses other names' tokens in the stead of some; weights are shared."""
    changed = copy.copy(model)
    changed.vocabulary = Vocabulary(model.vocabulary.tasks, model.vocabulary.modalities, dict(swapped))
    return changed


def swaps(model: AdaptedSegVol, modality: str) -> dict[str, Swap]:
    """All ways to ask about an image of a modality, the right one first.

    Every other modality's tokens; the next task's token in the stead of each; no task token at all.
    """
    tasks = model.tasks
    ways: dict[str, Swap] = {RIGHT: {}}
    ways |= {f"tokens of {other}": {modality: other} for other in model.modalities if other != modality}
    if len(tasks) > 1:
        ways[OTHER_TASK] = dict(zip(tasks, [*tasks[1:], tasks[0]], strict=True))
    ways[NO_TASK] = dict.fromkeys(tasks)
    return ways


def probe_case(
    segmenter: CropSegmenter,
    model: AdaptedSegVol,
    dataset: str,
    case: PreparedCase,
    normalisation: Normalisation,
    *,
    zoom: bool,
) -> list[ProbeScore]:
    """Scores of one case in all ways; the image is encoded once. Empty for what the model has no tokens for.

    `normalisation` is the one that the model was trained with for the case's modality.
    """
    names = [name for name in case.annotated if name in model.tasks]
    if not names or case.modality not in model.modalities:
        return []
    segmenter.set_crop(case.image(normalisation), case.modality)
    scores = []
    for tokens, swapped in swaps(model, case.modality).items():
        segmenter.model = with_swapped_tokens(model, swapped)
        results = segmenter.segment([StructurePrompt(name) for name in names], zoom=zoom)
        for name, result in zip(names, results, strict=True):
            lost = case.voxels[name] - case.voxels_in_crop[name]
            value = dice(result.logits > 0, case.mask(name), lost)
            if value is not None:
                scores.append(ProbeScore(dataset, case.id, case.patient, case.modality, name, tokens, value))
    segmenter.model = model
    return scores


def probe(
    loaded: LoadedModel,
    cases: Sequence[tuple[str, PreparedCase]],
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> list[ProbeScore]:
    """Scores of cases, given with the names of their data sets.

    Raises:
        UserError: a model without tokens, a case that it was trained on, cases without a structure or modality of its.
    """
    model = loaded.model
    if not isinstance(model, AdaptedSegVol) or (model.priors is None and model.prompt_tokens is None):
        raise UserError(f"the model ({loaded.lineage}) has no tokens to probe; give an adapter with context priors")
    for dataset, case in cases:
        check_unseen(loaded, "the adapter", case.sources["image"]["sha256"], f"{dataset}/{case.id}")
    segmenter = CropSegmenter(model.to(device), loaded.size, loaded.resize, device)
    scores: list[ProbeScore] = []
    for done, (dataset, case) in enumerate(cases, 1):
        rule = loaded.normalisation_of(case.modality)
        scores += probe_case(segmenter, model, dataset, case, rule, zoom=loaded.zooms(case.modality))
        if progress is not None:
            progress(done, len(cases))
    if not scores:
        raise UserError(
            "none of the cases has a structure and a modality that the adapter has tokens for; it knows "
            f"{', '.join(model.tasks)} on {', '.join(model.modalities)}"
        )
    return scores


def summarise(scores: Sequence[ProbeScore], seed: int = 0) -> list[ProbeRow]:
    """One row a modality and way of asking, in the order of their first scores."""
    right = {_place(score): score.dice for score in scores if score.tokens == RIGHT}
    groups: dict[tuple[str, str], list[ProbeScore]] = {}
    for score in scores:
        if _place(score) in right:
            groups.setdefault((score.modality, score.tokens), []).append(score)
    rows = []
    for (modality, tokens), members in groups.items():
        changes = [score.dice - right[_place(score)] for score in members]
        patients = [(score.dataset, score.patient) for score in members]
        interval = None if tokens == RIGHT else bootstrap_interval(changes, patients, np.random.default_rng(seed))
        mean = float(np.mean([score.dice for score in members]))
        rows.append(ProbeRow(modality, tokens, len(members), mean, float(np.mean(changes)), interval))
    return rows


def _place(score: ProbeScore) -> tuple[str, str, str, str]:
    return score.dataset, score.case, score.modality, score.structure


def probe_csv(scores: Sequence[ProbeScore]) -> str:
    """All scores as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(ProbeScore)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) | {"dice": f"{score.dice:.6f}"} for score in scores)
    return text.getvalue()

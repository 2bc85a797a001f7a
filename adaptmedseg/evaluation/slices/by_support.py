"""Scores of support sets of growing size, against baselines that are given the same supports."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol
from zlib import crc32

import numpy as np
import torch

from adaptmedseg.data.pictures.dataset import SliceItem
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.slices.asking import Queries, SliceMethod, refuse_seen
from adaptmedseg.evaluation.slices.scores import Answer, item_records
from adaptmedseg.inference.prompt_origin import supports as origin_of
from adaptmedseg.inference.support.segmenter import Method, SupportSegmenter
from adaptmedseg.inference.support.supports import MOST, Support, SupportSet, drawn_indices

Segment = Callable[[np.ndarray], np.ndarray]


class Baseline(Protocol):
    """Learns one structure from supports in so many seconds of the processor's time; gives what segments an image
    (h, w, 3), uint8, into a boolean mask (h, w)."""

    def __call__(self, supports: Sequence[Support], structure: str, seconds: float, seed: int) -> Segment: ...


@dataclass(frozen=True)
class SupportStudy:
    """What is asked: `shots` are numbers of supports, each drawn `draws` times; `methods` are parts of the support
    path; `baselines`, by name, get the time that the support path took to learn."""

    shots: Sequence[int]
    draws: int = 1
    methods: Sequence[Method] = ("support set", "nearest prototype")
    baselines: dict[str, Baseline] = field(default_factory=dict)
    seed: int = 0

    @property
    def names(self) -> list[str]:
        """What its methods and baselines are called in tables."""
        return [*self.methods, *self.baselines]


def support_of(item: SliceItem, structure: str) -> Support:
    """A labelled image as a support for one structure."""
    return Support(item.id, item.patient, item.image(), {structure: item.mask(structure)})


def apart_from(pool: Sequence[SliceItem], queries: Queries) -> list[SliceItem]:
    """The images of `pool` to draw supports from: none of a patient that is scored, nor from a file that is.

    UserError where that leaves none of them.
    """
    patients = {item.patient for item in queries.items}
    files = {item.image_sha256 for item in queries.items}
    left = [item for item in pool if item.patient not in patients and item.image_sha256 not in files]
    if pool and not left:
        raise UserError(
            f"{queries.dataset.folder}: all {len(pool)} images to draw supports from are of patients that are scored, "
            "so that nothing is left to learn from; choose another --split, or score fewer images with --limit"
        )
    return left


def score_supports(
    model: SliceMethod,
    pool: Sequence[SliceItem],
    queries: Queries,
    study: SupportStudy,
    device: torch.device,
    tell: Callable[[str], None] = print,
) -> list[Record]:
    """Scores of every structure, each a task of its own, for every number of supports drawn from `pool`.

    Images of patients that are scored are no supports. Where the pool has fewer images of a structure that number is
    left out and told. UserError for images that the model was trained on, and as `apart_from`.
    """
    refuse_seen(model, queries)
    allowed = apart_from(pool, queries)
    if len(allowed) < len(pool):
        tell(
            f"{queries.dataset.name}: {len(pool) - len(allowed)} of {len(pool)} images to draw supports from are of "
            "patients that are scored and are left out"
        )
    records: list[Record] = []
    for structure in queries.structures:
        showing = [item for item in allowed if structure in item.present()]
        items = [item for item in queries.items if structure in item.present()]
        for shots in study.shots:
            if shots > len(showing) or not items:
                tell(
                    f"{queries.dataset.name}, {structure}: {len(showing)} images to draw supports from and "
                    f"{len(items)} to score, so that {shots} supports are left out"
                )
                continue
            for draw in range(study.draws):
                rng = np.random.default_rng([study.seed, shots, draw, crc32(structure.encode())])
                chosen = drawn_indices([item.patient for item in showing], shots, rng)
                drawn = SupportSet([support_of(showing[index], structure) for index in chosen])
                records += _one_draw(model, drawn, items, structure, draw, queries, study, device)
    return records


def score_largest_supports(
    model: SliceMethod, queries: Queries, device: torch.device, most: int = MOST, seed: int = 0
) -> list[Record]:
    """Scores of every structure by one support set, of all images of the split "train" that show it, `most` at most;
    a structure that none shows has no score. UserError as `score_supports`."""
    pool = apart_from(queries.dataset.items("train"), queries)
    records: list[Record] = []
    for structure in queries.structures:
        shots = min(most, sum(structure in item.present() for item in pool))
        if shots:
            study = SupportStudy([shots], methods=("support set",), seed=seed)
            alone = replace(queries, structures=[structure])
            records += score_supports(model, pool, alone, study, device, lambda text: None)
    return records


def _one_draw(
    model: SliceMethod,
    drawn: SupportSet,
    items: Sequence[SliceItem],
    structure: str,
    draw: int,
    queries: Queries,
    study: SupportStudy,
    device: torch.device,
) -> list[Record]:
    started = time.process_time()
    segmenter = SupportSegmenter(model.loaded.model, drawn, device, [structure], seed=study.seed)  # type: ignore[arg-type]
    seconds = time.process_time() - started
    segments: dict[str, Segment] = {
        name: lambda image, name=name: segmenter.segment(image, method=name)[0].mask  # type: ignore[misc]
        for name in study.methods
    }
    for name, baseline in study.baselines.items():
        segments[name] = baseline(drawn.supports, structure, seconds, study.seed + draw)
    records: list[Record] = []
    origin = origin_of(len(drawn.supports))
    for item in items:
        image = item.image()
        answers = [Answer(name, origin, structure, segment(image), draw) for name, segment in segments.items()]
        records += item_records(queries.dataset.name, item, answers, background=False)
    return records

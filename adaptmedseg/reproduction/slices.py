"""Scoring of recipes on slices and pictures: models asked by class or by boxes of the truth, and by support sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from adaptmedseg.data.pictures.dataset import SliceDataset, SliceItem
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.slices.asking import Queries, SliceMethod, Way, score_prompts
from adaptmedseg.evaluation.slices.by_support import score_largest_supports
from adaptmedseg.evaluation.slices.scores import BACKGROUND
from adaptmedseg.inference.picture_loading import LoadedPictureModel, load_picture_model
from adaptmedseg.models.adapted_sam import PictureModel
from adaptmedseg.reproduction.evaluators import GivenModel, GivenSet, Progress
from adaptmedseg.reproduction.receipt import ModelFacts, SetFacts, fingerprint
from adaptmedseg.reproduction.recipes import Recipe


class SliceEvaluator:
    """Sets of slices and models of pictures. A model without classes is asked by boxes of the truth where a table asks
    by class: the origin of the prompt stands beside its figure."""

    def model(self, file: str, base: str | None) -> GivenModel:
        if base is not None:
            raise UserError(f"--base {base}: is for models of volumes; an adapter of a SAM names its own base")
        loaded = load_picture_model(file)
        facts = ModelFacts.of(file, loaded.lineage, loaded.hashes, loaded.training)
        return GivenModel("sam" if isinstance(loaded.model, PictureModel) else "sam2", facts, loaded)

    def sets(self, folder: Path, group: str | None, recipe: Recipe) -> list[GivenSet]:
        dataset = SliceDataset.open(folder)
        damaged = dataset.damaged()
        if damaged:
            raise UserError(damaged[0])
        if group is None and len(recipe.data) > 1:
            raise UserError(f"--data {folder}: say which data it is, as NAME={folder}: {', '.join(recipe.data)}")
        test = dataset.items("test")
        _check_patients(dataset, test)
        return [_given(dataset, group or next(iter(recipe.data)), test)] if test else []

    def structure(self, name: str) -> str:
        return name

    def not_given(self, recipe: Recipe, model: GivenModel, structure: str) -> str:
        by_class = _way(recipe, model.loaded) == "class"
        return "" if by_class or structure != BACKGROUND else "it was asked for structures one by one"

    def score(
        self,
        recipe: Recipe,
        models: Mapping[str, GivenModel],
        sets: Sequence[GivenSet],
        structures: Sequence[str],
        device: torch.device,
        progress: Progress | None = None,
    ) -> list[Record]:
        records: list[Record] = []
        for name, given in models.items():
            for chosen in sets:
                dataset: SliceDataset = chosen.opened
                wanted = [structure for structure in dataset.structures if structure in structures]
                queries = Queries(dataset, dataset.items("test"), wanted)
                found = self._score(recipe, SliceMethod(name, given.loaded), queries, device, progress)
                records += [replace(record, method=name, modality=chosen.facts.group) for record in found]
        return records

    def _score(
        self, recipe: Recipe, method: SliceMethod, queries: Queries, device: torch.device, progress: Progress | None
    ) -> list[Record]:
        return score_prompts(method, queries, _way(recipe, method.loaded), device, progress)


class SupportEvaluator(SliceEvaluator):
    """The same by support sets: as many images of the split "train" as a set may have; every structure is a task."""

    def _score(
        self, recipe: Recipe, method: SliceMethod, queries: Queries, device: torch.device, progress: Progress | None
    ) -> list[Record]:
        if not isinstance(method.loaded.model, PictureModel):
            raise UserError(f"--weights {method.name}: support sets are made for SAM's own encoder and decoder")
        return score_largest_supports(method, queries, device)


def _way(recipe: Recipe, loaded: LoadedPictureModel) -> Way:
    return "class" if recipe.ask == "class" and loaded.classes else "oracle box"


def _check_patients(dataset: SliceDataset, test: Sequence[SliceItem]) -> None:
    """UserError where a patient is in test and training both."""
    learnt = {item.patient for item in dataset.items() if item.split != "test"}
    both = sorted({item.patient for item in test} & learnt)
    if both:
        raise UserError(f"{dataset.folder}: patient {both[0]} is among the test and the training images; make it again")


def _given(dataset: SliceDataset, group: str, test: Sequence[SliceItem]) -> GivenSet:
    facts = SetFacts(
        group=group,
        name=dataset.name,
        folder=dataset.folder.name,
        licence=str(dataset.manifest.get("licence") or "not stated"),
        division=str(dataset.manifest.get("division", "division not stated")),
        seed=dataset.manifest.get("seed"),
        cases=len(dataset.items()),
        test_cases=len(test),
        test_patients=len({item.patient for item in test}),
        fingerprint=fingerprint([item.image_sha256 for item in test]),
    )
    cases = frozenset(item.id for item in test)
    return GivenSet(facts, frozenset([*dataset.structures, BACKGROUND]), cases, dataset)

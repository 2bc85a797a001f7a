"""Scoring of recipes on prepared volumes: SegVol, adapters on it, asked as `adaptmedseg evaluate` asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from adaptmedseg.adapters.file import read_card
from adaptmedseg.checkpoints.store import load_base, model_path
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.data.registry import modality as find_modality
from adaptmedseg.data.registry import structure as find_structure
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.metrics import MeasureSettings
from adaptmedseg.evaluation.questions import ByName, FromTruth, Question
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.study import StudyData, StudyMethod, ask_all
from adaptmedseg.inference.loading import LoadedModel, load_model
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.reproduction.evaluators import GivenModel, GivenSet, Progress
from adaptmedseg.reproduction.receipt import ModelFacts, SetFacts, fingerprint
from adaptmedseg.reproduction.recipes import Kind, Recipe

GROUPS = {"CT": "CT", "MR": "MRI"}  # the registry's families, as tables call them
ASKS: dict[str, Question] = {"text": ByName(), "oracle box": FromTruth(box=True)}


class VolumeEvaluator:
    """Prepared data sets and models of volumes."""

    def model(self, file: str, base: str | None) -> GivenModel:
        loaded = load_model(file, base)
        facts = ModelFacts.of(file, loaded.lineage, loaded.hashes, _training(file, loaded))
        return GivenModel(kind_of(file, loaded), facts, loaded)

    def sets(self, folder: Path, group: str | None, recipe: Recipe) -> list[GivenSet]:
        dataset = PreparedDataset.open(folder)
        damaged = dataset.damaged()
        if damaged:
            raise UserError(damaged[0])
        _check_patients(dataset, dataset.cases())
        by_group: dict[str, list[PreparedCase]] = {}
        for case in dataset.cases():
            family = GROUPS.get(find_modality(case.modality).family, "")
            if group in GROUPS.values() and family not in ("", group):
                raise UserError(
                    f"{folder}: {case.id} is {case.modality}, not {group}; leave out '{group}=' before the folder"
                )
            by_group.setdefault(group or family, []).append(case)
        given = []
        for name, cases in by_group.items():
            test = [case for case in cases if case.split == "test"]
            if name in recipe.data and test:
                given.append(_given(dataset, name, cases, test))
        return given

    def structure(self, name: str) -> str:
        try:
            return find_structure(name).name
        except UserError:  # a name that a data set brings itself
            return name

    def not_given(self, recipe: Recipe, model: GivenModel, structure: str) -> str:
        return ""

    def score(
        self,
        recipe: Recipe,
        models: Mapping[str, GivenModel],
        sets: Sequence[GivenSet],
        structures: Sequence[str],
        device: torch.device,
        progress: Progress | None = None,
    ) -> list[Record]:
        methods = [
            StudyMethod(name, given.loaded, given.facts.lineage, [ASKS[recipe.ask]]) for name, given in models.items()
        ]
        records: list[Record] = []
        for group in dict.fromkeys(given.facts.group for given in sets):
            data = [given.opened for given in sets if given.facts.group == group]
            found = ask_all(
                methods, data, device, structures=structures, measures=MeasureSettings(), progress=progress
            )  # fmt: skip
            records += [replace(record, modality=group) for record in found]
        return records


def kind_of(file: str, loaded: LoadedModel) -> Kind:
    """Which row of a table a model can stand in."""
    model = loaded.model
    if isinstance(model, SegVol):
        return "base"
    if not isinstance(model, AdaptedSegVol):
        return "other"
    config = read_card(model_path(file)).config
    if config.priors is not None:
        return "priors"
    only_lora = config.layers and all(layer.kind in ("lora", "rslora", "qv_lora") for layer in config.layers)
    return "lora" if only_lora and not config.prompt_tokens and not config.train else "other"


def _training(file: str, loaded: LoadedModel) -> dict[str, object]:
    """What the model's card says of its last training."""
    if isinstance(loaded.model, AdaptedSegVol):
        return read_card(model_path(file)).training
    if isinstance(loaded.model, SegVol):
        return cast(dict[str, object], load_base(file)[1].get("training") or {})
    return {}


def _check_patients(dataset: PreparedDataset, cases: Sequence[PreparedCase]) -> None:
    """UserError where a patient is in test and training both."""
    learnt = {case.patient for case in cases if case.split != "test"}
    for case in cases:
        if case.split == "test" and case.patient in learnt:
            raise UserError(
                f"{dataset.folder}: patient {case.patient} is among the test and the training cases; prepare it again"
            )


def _given(dataset: PreparedDataset, group: str, cases: Sequence[PreparedCase], test: list[PreparedCase]) -> GivenSet:
    manifest = dataset.manifest
    facts = SetFacts(
        group=group,
        name=dataset.name,
        folder=dataset.folder.name,
        licence=str(manifest.get("licence") or "not stated"),
        division=str(manifest.get("division", "division not stated")),
        seed=manifest.get("seed"),
        cases=len(cases),
        test_cases=len(test),
        test_patients=len({case.patient for case in test}),
        fingerprint=fingerprint([case.sources["image"]["sha256"] for case in test]),
    )
    structures = frozenset(name for case in test for name in case.annotated)
    return GivenSet(facts, structures, frozenset(case.id for case in test), StudyData(dataset, test))

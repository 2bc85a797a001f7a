"""The cases of a configuration as views in memory, and what they teach."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from adaptmedseg.data.normalise import fit_landmarks
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.models.segvol import Size3
from adaptmedseg.training.about import median_spacing, stated_licences
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.views import LazyView, View, ViewMaker


@dataclass(frozen=True)
class TrainingSet:
    """Views in memory and what they teach. `cases` are 'data set/case', `image_hashes` their source files' SHA-256:
    evaluation refuses to score a model on an image that it was trained on. `spacing_mm` is the median over the images
    (d, h, w), `licences` what each data set states."""

    views: list[View]
    structures: list[str]
    modalities: list[str]
    cases: list[str]
    image_hashes: list[str]
    spacing_mm: tuple[float, float, float]
    licences: dict[str, str]


def training_cases(config: TrainConfig) -> list[tuple[PreparedDataset, PreparedCase]]:
    """The cases that a configuration trains on. UserError where there are none."""
    if not config.data.paths:
        raise UserError("no training data: set data.paths in the configuration or give --data DIR")
    cases: list[tuple[PreparedDataset, PreparedCase]] = []
    for path in config.data.paths:
        dataset = PreparedDataset.open(path)
        fold = config.data.fold
        chosen = dataset.cases("train") if fold is None else dataset.fold(fold)[0]
        if config.data.patients is not None:
            chosen = drawn_patients(chosen, config.data.patients, config.seed, path)
        cases.extend((dataset, case) for case in chosen)
    if not cases:
        raise UserError(f"{', '.join(config.data.paths)}: no training case; prepare the data with a smaller test share")
    return cases


def drawn_patients(cases: Sequence[PreparedCase], count: int, seed: int, path: str) -> list[PreparedCase]:
    """Cases of `count` patients, drawn by seed from their names alone, in the cases' order. UserError for too few."""
    names = {case.patient for case in cases}
    if count > len(names):
        raise UserError(f"{path}: data.patients is {count}, and there are {len(names)} patients to train on; lower it")
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())[:count]
    return [case for case in cases if case.patient in drawn]


def load_training_set(config: TrainConfig, size: Size3, resize) -> TrainingSet:
    """Cache the views of all training cases; structures in a stable order."""
    cases = training_cases(config)
    registries = {id(dataset): dataset.registry for dataset, _ in cases}
    wanted = config.data.structures
    if wanted is not None:
        known = {name for dataset, _ in cases for name in dataset.structures}
        unknown = sorted(set(wanted) - known)
        if unknown:
            raise UserError(
                f"data.structures: '{unknown[0]}' is in none of the data sets; there are {', '.join(sorted(known))}"
            )
    make = ViewMaker(size, resize, wanted, config.data.normalise)
    views: list[View] = []
    room = config.data.cache_gib * 2**30
    for dataset, case in cases:
        view, more = _view(make, case, registries[id(dataset)].mirror, dataset.name, config, room > 0)
        views.append(view)
        room -= more
    # A flip turns one side's structure into the other's, which then is a task of its own.
    structures = sorted({name for view in views for pair in view.mirrored.items() for name in pair})
    if not structures:
        raise UserError(
            f"{', '.join(config.data.paths)}: no annotated structure in any training case; check the labels"
        )
    modalities = sorted({view.modality for view in views})
    return TrainingSet(
        views,
        structures,
        modalities,
        [f"{dataset.name}/{case.id}" for dataset, case in cases],
        [case.sources["image"]["sha256"] for _, case in cases],
        median_spacing([case for _, case in cases]),
        stated_licences([dataset for dataset, _ in cases]),
    )


def _view(
    make: ViewMaker, case: PreparedCase, mirror: Callable[[str], str], dataset: str, config: TrainConfig, keep: bool
) -> tuple[View, int]:
    """The view of a case, kept in memory or made anew each time, and the bytes that it takes."""
    view = make(case, mirror, dataset)
    if config.data.zoom_in:
        windows = make.windows(case, config.seed)
        mirrored = view.mirrored | {name: mirror(name) for name in windows.places}
        view = replace(view, windows=windows, mirrored=mirrored)
    if keep:
        return view, view.image.nbytes + view.labels.nbytes
    remake = partial(make, case, mirror, dataset)
    return LazyView(view.modality, view.bits, view.mirrored, remake, dataset, view.windows), 0


def fitted(config: TrainConfig) -> TrainConfig:
    """The configuration with Nyúl's landmarks, fitted on its training cases where they are asked for and not given."""
    normalise = config.data.normalise
    if normalise.is_fitted:
        return config
    landmarks = fit_landmarks(case.statistics for _, case in training_cases(config))
    chosen = normalise.model_copy(update={"landmarks": landmarks})
    return config.model_copy(update={"data": config.data.model_copy(update={"normalise": chosen})})

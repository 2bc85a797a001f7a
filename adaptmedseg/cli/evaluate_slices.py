"""`adaptmedseg evaluate-slices`: scores of models of slices and pictures, by prompts, by class or by support sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import torch
import typer

from adaptmedseg.cli.cases import tell
from adaptmedseg.cli.common import Device, Seed, Structures, bar, named_pairs, split_names
from adaptmedseg.comparison.support_unet import train_unet
from adaptmedseg.data.pictures.dataset import SliceDataset
from adaptmedseg.data.prepared import Split
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.slices.asking import (
    WAYS,
    Queries,
    SliceMethod,
    Way,
    names_to_ask,
    refuse_seen,
    score_prompts,
)
from adaptmedseg.evaluation.slices.by_support import SupportStudy, apart_from, score_supports
from adaptmedseg.evaluation.slices.folder import (
    ScoredModel,
    Scores,
    check_draws,
    check_same,
    check_same_sets,
    earlier_scores,
    write_scores,
)
from adaptmedseg.inference.picture_loading import load_picture_model
from adaptmedseg.inference.support.supports import MOST
from adaptmedseg.models.adapted_sam import PictureModel

SUPPORT_SET = "support set"


def evaluate_slices(
    model: Annotated[list[str], typer.Option(help="NAME=MODEL: known name, file or run folder; repeat it to compare.")],
    data: Annotated[list[Path], typer.Option(help="Set(s) of slices or pictures.")],
    out: Annotated[Path, typer.Option(help="Folder for scores and tables.")],
    split: Annotated[str, typer.Option(help="Which images: test, val or train.")] = "test",
    structures: Structures = None,
    ask: Annotated[
        str | None,
        typer.Option(help="'class', 'oracle box' or 'oracle point'; by default class where a model has classes."),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(
            help="Instead of --ask: sizes of support sets, such as 1,4,16, drawn from 'train', scored patients aside."
        ),
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Of --shots: support sets of each size (1).", min=1)] = None,
    unet: Annotated[
        bool, typer.Option("--unet", help="Of --shots: a U-Net too, trained on the supports for the same time.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Score so many images of a set, drawn at random.", min=1)] = None,
    append: Annotated[bool, typer.Option(help="Add to the scores in --out (other models, other sets).")] = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Score models on slices or pictures: Dice, IoU, ASD in mm, NSD at one pixel, small targets found.

    Prompts made from the truth are called 'oracle'. With --shots each structure is a new task, learnt from labelled
    images alone; the nearest prototype of the same features is the baseline, and --unet another.

    \b
    Examples:
      adaptmedseg evaluate-slices --model samed=runs/samed --data slices/abdomen --out runs/organs
      adaptmedseg evaluate-slices --model none=sam-b --model lora=runs/lora --data slices/sirst --ask "oracle point" --out runs/sirst
      adaptmedseg evaluate-slices --model sam=runs/acdc --data slices/left_atrium --shots 1,4,16 --draws 3 --unet --out runs/la
    """  # noqa: E501
    _refuse_unused(shots, ask, draws, unet=unet)
    given = named_pairs(model, "--model")
    earlier = earlier_scores(out, split, append=append)
    methods = [SliceMethod(name, load_picture_model(value)) for name, value in given.items()]
    chosen, names = pick_device(device), split_names(structures)
    datasets = [SliceDataset.open(path) for path in data]
    asked = _asked_of(datasets, data, names)
    queries = [
        _queries(dataset, path, split, wanted, limit, seed)
        for dataset, path, wanted in zip(datasets, data, asked, strict=True)
    ]
    _check(methods, queries)
    sets = {query.dataset.name: query.dataset.content_sha256() for query in queries}
    check_same_sets(out, earlier.sets, sets)
    if shots is not None:
        study = _study(shots, draws or 1, seed, unet=unet)
        models = {name: ScoredModel(given[methods[0].name], methods[0].loaded.hashes, seed) for name in study.names}
        check_same(out, earlier.models, models)
        for query in queries:
            check_draws(out, earlier.records, query, study.shots)
        records = _by_support(methods, queries, study, chosen)
        reference = SUPPORT_SET
    else:
        models = {
            method.name: ScoredModel(given[method.name], method.loaded.hashes, learned=sorted(method.loaded.learned))
            for method in methods
        }
        check_same(out, earlier.models, models)
        records = _by_prompts(methods, queries, ask, chosen)
        reference = earlier.records[0].method if earlier.records else methods[0].name
    if not records:
        raise UserError(f"{', '.join(map(str, data))}: nothing could be scored; see the notes above")
    print(write_scores(out, earlier.joined(Scores(records, models, sets)), reference))


def _refuse_unused(shots: str | None, ask: str | None, draws: int | None, *, unet: bool) -> None:
    """UserError for an option that the way of asking would pass over."""
    if shots is not None and ask is not None:
        raise UserError(f"--ask {ask}: prompts, and --shots {shots} asks by support sets; leave one of them out")
    given = "--unet" if unet else f"--draws {draws}" if draws is not None else None
    if shots is None and given is not None:
        raise UserError(f"{given}: is of support sets; say their sizes with --shots, such as --shots 1,4,16")


def _check(methods: Sequence[SliceMethod], queries: Sequence[Queries]) -> None:
    """UserError where two sets have one name, and where a model was trained on an image, before anything is scored."""
    named: dict[str, Path] = {}
    for query in queries:
        name, folder = query.dataset.name, query.dataset.folder
        if name in named:
            raise UserError(
                f"--data: {named[name]} and {folder} are sets of one name, '{name}'; give each set once, and score "
                "different ones apart, each with its own --out"
            )
        named[name] = folder
        for method in methods:
            refuse_seen(method, query)


def _asked_of(datasets: Sequence[SliceDataset], paths: Sequence[Path], names: Sequence[str] | None) -> list[list[str]]:
    """The structures that each set is asked for: of the names those that it has, or all of its own. UserError for a
    name that no set has, and for a set that has none of them."""
    known = [name for dataset in datasets for name in dataset.structures]
    for name in names or ():
        if name not in known:
            held = ", ".join(dict.fromkeys(known))
            raise UserError(f"--structures: '{name}' is not in {', '.join(map(str, paths))}; there are {held}")
    asked = []
    for dataset, path in zip(datasets, paths, strict=True):
        own = [name for name in names or dataset.structures if name in dataset.structures]
        if not own:
            raise UserError(
                f"--structures: {path} has none of {', '.join(names or ())}; it has {', '.join(dataset.structures)}: "
                "leave it out, or name some of them"
            )
        asked.append(own)
    return asked


def _queries(dataset: SliceDataset, path: Path, split: str, wanted: list[str], limit: int | None, seed: int) -> Queries:
    """UserError for an unknown split, and where there is no image."""
    if split not in get_args(Split):
        raise UserError(f"--split {split}: choose one of {', '.join(get_args(Split))}")
    items = [item for item in dataset.items() if item.split == split and set(wanted) & set(item.annotated)]
    if not items:
        raise UserError(f"{path}: has no {split} image of {', '.join(wanted)}; make the set with --test-fraction")
    if limit is not None and limit < len(items):
        drawn = np.random.default_rng(seed).permutation(len(items))[:limit]
        items = [items[index] for index in sorted(drawn.tolist())]
    return Queries(dataset, items, wanted)


def _study(shots: str, draws: int, seed: int, *, unet: bool) -> SupportStudy:
    try:
        sizes = [int(part) for part in shots.split(",")]
    except ValueError:
        sizes = [0]
    if not 1 <= min(sizes) <= max(sizes) <= MOST:
        raise UserError(f"--shots {shots}: give numbers of supports from 1 to {MOST}, such as 1,4,16")
    return SupportStudy(list(dict.fromkeys(sizes)), draws, baselines={"U-Net": train_unet} if unet else {}, seed=seed)


def _by_prompts(
    methods: Sequence[SliceMethod], queries: Sequence[Queries], ask: str | None, device: torch.device
) -> list[Record]:
    ways = [_way(ask or ("class" if method.loaded.classes else "oracle box")) for method in methods]
    for method, way in zip(methods, ways, strict=True):
        for query in queries:
            names_to_ask(method, query, way)  # refused before anything is scored
    records: list[Record] = []
    for method, way in zip(methods, ways, strict=True):
        for query in queries:
            with bar(f"{method.name} on {query.dataset.name}") as progress:
                records += score_prompts(method, query, way, device, progress)
    return records


def _way(ask: str) -> Way:
    for way in WAYS:
        if ask == way:
            return way
    raise UserError(f"--ask {ask}: choose one of {', '.join(WAYS)}")


def _by_support(
    methods: Sequence[SliceMethod], queries: Sequence[Queries], study: SupportStudy, device: torch.device
) -> list[Record]:
    if len(methods) > 1:
        raise UserError("--shots: is for one --model, which its baselines are compared with; give one")
    if not isinstance(methods[0].loaded.model, PictureModel):
        raise UserError(f"--model {methods[0].name}: support sets are made for SAM's own encoder and decoder")
    for query in queries:  # refused before any set is scored, lest its scores be lost
        apart_from(query.dataset.items("train"), query)
    records: list[Record] = []
    for query in queries:
        records += score_supports(methods[0], query.dataset.items("train"), query, study, device, tell)
    return records

"""From a folder (or archive) of images and labels to a prepared data set, in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from adaptmedseg.preprocessing.case import CaseData, SourceCase
from adaptmedseg.preprocessing.resume import Unfinished
from adaptmedseg.preprocessing.run import Plan, Progress, prepare_plan
from adaptmedseg.preprocessing.split import Partition, patient_of

from adaptmedseg.data.archive import opened_source
from adaptmedseg.data.discover import Pair, find_pairs
from adaptmedseg.data.labelled import Absent, modality_of, read_labelled
from adaptmedseg.data.labels import LabelNames, LabelScheme, label_scheme
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.data.registry import default_registry
from adaptmedseg.errors import UserError


def prepare_folder(
    source: str | Path,
    out: str | Path,
    *,
    name: str,
    modality: str | None = None,
    labels: LabelNames | None = None,
    images: Path | None = None,
    label_folder: Path | None = None,
    channel: int | None = None,
    site: str | None = None,
    new_structures: Sequence[str] = (),
    absent: Absent = "unannotated",
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    folds: int | None = None,
    by_site: bool = False,
    left_out_site: str | None = None,
    seed: int = 0,
    patient_pattern: str | None = None,
    skip_unlabelled: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> PreparedDataset:
    """Find, check, normalise and store the cases of a user's folder.

    A bad case is left out, and the manifest lists it under ``left_out``; an interrupted run goes on where it stopped
    when it is started again.

    Args:
        source: a folder or archive in one of the layouts of `adaptmedseg.data.discover`.
        out: the new prepared folder; it appears complete or not at all.
        name: the data set's name.
        modality: a registry name; None takes the one that dataset.json gives for the channel.
        labels: label values to structure names, ``{1: "liver", "1+2": "prostate"}``; they extend and override those of
            a dataset.json. The name ``background`` drops a value.
        images, label_folder: two folders instead of a known layout.
        channel: the channel of 4D images, from 0.
        site: one site for all cases; None takes the site's folder where there is one.
        new_structures: names to add to the registry for this data set.
        absent: what a structure without a voxel means in a case: 'unannotated' (unknown there, the default) or 'empty'
            (the set annotates every structure in every case).
        test_fraction, val_fraction: shares of the patients; unused with folds, test_fraction also with a left-out site.
        folds: number of cross-validation folds; the test split is then fold 0, the rest trains.
        by_site: one fold a site, in the order of their names.
        left_out_site: test on this site's patients and train on all others.
        seed: of splits and folds, which depend on it and on the patients' names, not on the order of files.
        patient_pattern: see `adaptmedseg.preprocessing.split.patient_of`.
        skip_unlabelled: leave out images without labels without telling of them.
        overwrite: replace a prepared data set in `out`.
        workers: threads.
        progress: called with (cases done, cases in all).

    Raises:
        UserError: anything about the input as a whole, or no case is good; nothing is left in `out`.
    """
    source = Path(source)
    if absent not in get_args(Absent):
        raise UserError(f"The meaning of an absent structure is {absent!r}; choose {' or '.join(get_args(Absent))}.")
    registry = default_registry().extended({new: {} for new in new_structures})

    @contextmanager
    def open_plan(unfinished: Unfinished) -> Iterator[Plan]:
        unpacked = unfinished.unpacked_for(source) if source.is_file() else None
        with opened_source(source, folder=unpacked, workers=workers) as opened:
            found = find_pairs(
                opened, images=images, labels=label_folder, channel=channel, skip_unlabelled=skip_unlabelled
            )
            kind = modality_of(modality, found.description, channel, registry).name
            yield Plan(
                name=name,
                cases=[_case(pair, kind, site, patient_of(pair.id, patient_pattern)) for pair in found.pairs],
                problems=found.problems,
                source=source,
                root=opened,
                scheme=label_scheme(labels or {}, found.description.get("labels"), registry),
                absent=absent,
                reader=read_named,
                partition=Partition(test_fraction, val_fraction, folds, by_site, left_out_site, seed=seed),
                new_structures=new_structures,
                facts={"channel": channel, "seed": seed},
            )

    return prepare_plan(Path(out), open_plan, overwrite=overwrite, workers=workers, progress=progress)


def read_named(case: SourceCase, scheme: LabelScheme) -> CaseData:
    """Read an image and its label map; a sentence on unnamed label values says with which option to name them.

    Raises:
        UserError: as `adaptmedseg.data.labelled.read_labelled`.
    """
    read = read_labelled(Pair(case.id, case.image, case.label, case.site, case.channel), scheme, "empty")
    return CaseData(read.image, scheme.bit_mask(read.labels.data), read.counts)


def _case(pair: Pair, modality: str, site: str | None, patient: str) -> SourceCase:
    place = pair.site if site is None else site
    return SourceCase(pair.id, pair.image, pair.label, patient, modality, place, channel=pair.channel)

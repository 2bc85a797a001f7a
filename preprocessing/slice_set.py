"""From prepared volumes, or from a folder of pictures and masks, to a set of labelled slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptmedseg.preprocessing.picture_folder import MaskRule, PicturePair, find_pictures, read_pair
from adaptmedseg.preprocessing.split import patient_of, split_patients
from adaptmedseg.preprocessing.volume_slices import SliceRule, case_slices

from adaptmedseg.data.files import file_sha256
from adaptmedseg.data.labelled import Absent
from adaptmedseg.data.labels import LabelNames, LabelScheme, label_scheme
from adaptmedseg.data.pictures.dataset import MAX_STRUCTURES, SliceDataset, read_slices, store, write_slices
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.data.registry import Registry, default_registry
from adaptmedseg.errors import UserError

Progress = Callable[[int, int], None]


def slice_volumes(
    source: Path,
    out: Path,
    rule: SliceRule,
    structures: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SliceDataset:
    """Cut the volumes of a prepared data set; patients, splits and hashes stay those of the volumes.

    Raises UserError for unknown structures, and where no slice shows anything.
    """
    dataset = PreparedDataset.open(source)
    registry = dataset.registry
    chosen = list(dataset.structures)
    if structures is not None:
        chosen = list(dict.fromkeys(_own_name(registry, name) for name in structures))
        unknown = [name for name in chosen if name not in dataset.structures]
        if unknown:
            raise UserError(f"{source}: has no '{unknown[0]}'; it has {', '.join(dataset.structures)}")

    def fill(folder: Path) -> dict[str, Any]:
        cases, entries = dataset.cases(), []
        for count, case in enumerate(cases, 1):
            entries += [store(folder, sample, chosen) for sample in case_slices(case, chosen, rule)]
            if progress is not None:
                progress(count, len(cases))
        if not entries:
            finer = "" if rule.spacing is None else f", or --spacing, {rule.spacing:g} mm a pixel"
            raise UserError(f"{source}: no slice shows {rule.least} pixels of a structure; lower --least{finer}")
        return {
            "name": dataset.name,
            "structures": chosen,
            "source": {"prepared": dataset.name, "axes": list(rule.axes), "every": rule.every, "middle": rule.middle,
                       "least": rule.least, "spacing": rule.spacing},
            "division": "as the volumes",
            "items": entries,
        }  # fmt: skip

    return write_slices(out, fill, overwrite=overwrite)


def slice_pictures(
    source: Path,
    out: Path,
    *,
    name: str,
    modality: str = "picture",
    labels: LabelNames | None = None,
    structure: str = "foreground",
    threshold: float = 0.5,
    absent: Absent = "unannotated",
    mask_ending: str | None = None,
    patient_pattern: str | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SliceDataset:
    """Read and check the pictures of a folder (`picture_folder.find_pictures`), divided by patient.

    With `labels`, or labels of a dataset.json, masks are label maps; without, black and white of one `structure`. Names
    that the registry does not know are taken as they are. A bad pair is left out, and the manifest lists it under
    "left_out". Raises UserError where no pair is good.
    """
    _refuse_set(source)
    found = find_pictures(source, mask_ending)
    rule = MaskRule(name_scheme(labels or {}, found.labels), structure, threshold, absent)
    structures = [structure] if rule.scheme is None else list(rule.scheme.structures)
    if len(structures) > MAX_STRUCTURES:
        raise UserError(
            f"{source}: {len(structures)} structures are more than a set of slices can hold ({MAX_STRUCTURES}); name "
            "fewer values, and drop the others with --label VALUE=background"
        )
    _refuse_twice(source, found.pairs)
    patients = {pair.id: patient_of(pair.id, patient_pattern) for pair in found.pairs}
    found.notes += _join_same_files(found.pairs, patients)
    splits = split_patients(patients.values(), test_fraction=test_fraction, val_fraction=val_fraction, seed=seed)

    def fill(folder: Path) -> dict[str, Any]:
        entries, left_out = [], []
        for count, pair in enumerate(found.pairs, 1):
            patient = patients[pair.id]
            try:
                sample = read_pair(pair, rule, patient, splits[patient], modality)
                entries.append(store(folder, sample, structures))
            except UserError as error:
                left_out.append(str(error))
            if progress is not None:
                progress(count, len(found.pairs))
        if not entries:
            raise UserError(f"{source}: no picture can be used; the first: {left_out[0]}")
        return {
            "name": name,
            "structures": structures,
            "source": {"pictures": source.name},
            "division": f"{test_fraction:g} test and {val_fraction:g} validation of the patients, seed {seed}",
            "notes": found.notes,
            "left_out": left_out,
            "items": entries,
        }

    return write_slices(out, fill, overwrite=overwrite)


def _refuse_twice(source: Path, pairs: Sequence[PicturePair]) -> None:
    named: dict[str, PicturePair] = {}
    for pair in pairs:
        if pair.id in named:
            raise UserError(
                f"{source}: {named[pair.id].image.name} and {pair.image.name} would both be called {pair.id}; rename "
                "one, with its mask"
            )
        named[pair.id] = pair


def _join_same_files(pairs: Sequence[PicturePair], patients: dict[str, str]) -> list[str]:
    """Make one patient of those who share a file, so that none is both trained on and scored; a note where any do."""
    first: dict[str, PicturePair] = {}
    same = []
    for pair in pairs:
        earlier = first.setdefault(file_sha256(pair.image), pair)
        if earlier is not pair:
            same.append(f"{pair.image.name} as {earlier.image.name}")
            joined, other = patients[earlier.id], patients[pair.id]
            patients.update({name: joined for name, patient in patients.items() if patient == other})
    named = ", ".join([*same[:3], *(["..."] if same[3:] else [])])
    return [f"the same picture under two names counts as of one patient: {len(same)} ({named})"] if same else []


def name_scheme(given: LabelNames, described: dict[str, str] | None) -> LabelScheme | None:
    """Values and names, given or of a dataset.json, known to the registry or not; None where nobody names any."""
    if not given and not described:
        return None
    names = [*given.values(), *(described or {}).values(), *(described or {})]
    return label_scheme(given, described, _permissive(names))


def _own_name(registry: Registry, name: str) -> str:
    """The registry's name of a structure; one that it does not know stays as it is."""
    try:
        return registry.structure(name).name
    except UserError:
        return name


def _refuse_set(source: Path) -> None:
    try:
        read_slices(source)
    except UserError:
        return
    raise UserError(
        f"{source}: is a set of slices already; train on it as it is, or give the pictures or the prepared data set "
        "that it was made of"
    )


def _permissive(names: Sequence[str]) -> Registry:
    """The registry with every name that it does not know as a structure of its own."""
    return default_registry().extended({str(name): {} for name in names if not str(name).isdigit()})

"""`adaptmedseg slices`: labelled slices of prepared volumes, or pictures with their masks, as a set to train on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from adaptmedseg.cli.common import Seed, Structures, bar, named_pairs, split_names
from adaptmedseg.data.labelled import Absent
from adaptmedseg.data.pictures.dataset import SliceDataset
from adaptmedseg.data.pictures.planes import AXES
from adaptmedseg.data.prepared.manifest import is_prepared
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation import wording
from adaptmedseg.preprocessing.slice_set import slice_pictures, slice_volumes
from adaptmedseg.preprocessing.volume_slices import SliceRule

NAMES = {"d": "d", "axial": "d", "h": "h", "coronal": "h", "w": "w", "sagittal": "w"}


def slices(
    source: Annotated[Path, typer.Argument(help="A prepared data set, or a folder of pictures and masks.")],
    out: Annotated[Path, typer.Option(help="New folder for the set of slices.")],
    axis: Annotated[str | None, typer.Option(help="Of volumes: axial, coronal, sagittal (d, h, w), or all.")] = None,
    spacing: Annotated[
        float | None, typer.Option(help="Of volumes: mm a pixel; the finer spacing in the plane by default.", min=0.01)
    ] = None,
    every: Annotated[int | None, typer.Option(help="Of volumes: take each n-th slice.", min=1)] = None,
    middle: Annotated[
        int | None, typer.Option(help="Of volumes: so many slices round the middle alone.", min=1)
    ] = None,
    least: Annotated[
        int | None, typer.Option(help="Of volumes: pixels of one structure that a slice must show (20).", min=1)
    ] = None,
    structures: Structures = None,
    name: Annotated[str | None, typer.Option(help="Of pictures: the set's name; the folder's by default.")] = None,
    modality: Annotated[str | None, typer.Option(help="Of pictures: what they are, in a word.")] = None,
    label: Annotated[list[str], typer.Option("--label", help="Of pictures with label maps: 1=NAME.")] = [],  # noqa: B006
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Of black-and-white masks: share of the brightest value that is inside (0.5).", min=0.01, max=1
        ),
    ] = None,
    mask_ending: Annotated[str | None, typer.Option(help="What a mask's name has after its picture's.")] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression for the patient in a picture's name.")
    ] = None,
    absent: Annotated[
        str | None, typer.Option(help="Of pictures: a structure without a pixel is 'unannotated' or 'empty'.")
    ] = None,
    test_fraction: Annotated[
        float | None, typer.Option(help="Of pictures: share of patients (0.2).", min=0, max=1)
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Of pictures: share of patients (0.1).", min=0, max=1)
    ] = None,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace a set of slices at --out.")] = False,
) -> None:
    """Make a set of labelled slices: images and masks as PNG, and a manifest with patients and splits.

    \b
    Examples:
      adaptmedseg slices prepared/promise12 --out slices/promise12 --axis axial --every 2
      adaptmedseg slices prepared/acdc --out slices/acdc --axis all --middle 1 --spacing 1.5
      adaptmedseg slices retina --out slices/retina --structures vessel --mask-ending .ah --modality photograph
      adaptmedseg slices organs --out slices/organs --label 1=liver --label 2=spleen --patient-pattern "ABD_(\\d+)"
    """
    volumes = {"--axis": axis, "--spacing": spacing, "--every": every, "--middle": middle, "--least": least}
    pictures = {
        "--name": name,
        "--modality": modality,
        "--label": label,
        "--threshold": threshold,
        "--mask-ending": mask_ending,
        "--patient-pattern": patient_pattern,
        "--absent": absent,
        "--test-fraction": test_fraction,
        "--val-fraction": val_fraction,
    }
    with bar("slicing") as progress:
        if is_prepared(source):
            _refuse(pictures, f"is for pictures, and {source} is a prepared data set")
            rule = _rule(axis, spacing, every, middle, least)
            dataset = slice_volumes(source, out, rule, split_names(structures), overwrite=overwrite, progress=progress)
        else:
            _refuse(volumes, f"is for volumes, and {source} is no prepared data set")
            names = split_names(structures) or []
            if len(names) > 1 or (names and label):
                raise UserError(
                    "--structures names what black-and-white masks show, one structure; label maps are named by --label"
                )
            if absent not in (None, *get_args(Absent)):
                raise UserError(f"--absent {absent}: choose one of {', '.join(get_args(Absent))}")
            dataset = slice_pictures(
                source,
                out,
                name=name or source.name,
                modality=modality or "picture",
                labels=named_pairs(label, "--label"),
                structure=names[0] if names else "foreground",
                threshold=0.5 if threshold is None else threshold,
                absent=cast(Absent, absent or "unannotated"),
                mask_ending=mask_ending,
                patient_pattern=patient_pattern,
                test_fraction=0.2 if test_fraction is None else test_fraction,
                val_fraction=0.1 if val_fraction is None else val_fraction,
                seed=seed,
                overwrite=overwrite,
                progress=progress,
            )
    _sum_up(out, dataset)


def _refuse(options: Mapping[str, object], why: str) -> None:
    given = [option for option, value in options.items() if value not in (None, [])]
    if given:
        raise UserError(f"{given[0]}: {why}; leave it out")


def _rule(
    axis: str | None, spacing: float | None, every: int | None, middle: int | None, least: int | None
) -> SliceRule:
    if every is not None and middle is not None:
        raise UserError("--every and --middle exclude each other; give one of them")
    if axis not in (None, "all", *NAMES):
        raise UserError(f"--axis {axis}: choose one of axial, coronal, sagittal, all")
    axes = AXES if axis == "all" else (NAMES[axis or "d"],)
    return SliceRule(axes, every or 1, middle, 20 if least is None else least, spacing)


def _sum_up(out: Path, dataset: SliceDataset) -> None:
    """Say what there is, what was done and what was left out; exit code 1 where something was."""
    for note in dataset.manifest.get("notes", []):
        typer.echo(f"note: {note}", err=True)
    done = [f"{entry['id']}: {note}" for entry in dataset.manifest["items"] for note in entry.get("notes", [])]
    if done:
        remarks = wording.count(len(done), "remark")
        typer.echo(f"note: {remarks} on single pictures in the manifest, the first: {done[0]}", err=True)
    counts = ", ".join(f"{len(dataset.items(split))} {split}" for split in ("train", "val", "test"))
    print(f"{out}: {len(dataset.items())} images ({counts}); structures: {', '.join(dataset.structures)}")
    left_out = dataset.manifest.get("left_out", [])
    for sentence in left_out:
        typer.echo(f"left out: {sentence}", err=True)
    if left_out:
        typer.echo(f"{len(left_out)} left out; mend them and run again with --overwrite to have them too.", err=True)
        raise typer.Exit(1)

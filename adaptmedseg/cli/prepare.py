"""`adaptmedseg prepare` and `sets`: from a published set or a user's folder to a prepared data set."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from adaptmedseg.cli.common import bar, named_pairs, split_names
from adaptmedseg.cli.data_options import (
    AbsentChoice,
    Channels,
    Download,
    Files,
    Folds,
    Images,
    Label,
    LabelFolder,
    LeaveSiteOut,
    ModalityName,
    Name,
    NameOrFolder,
    NewStructure,
    Out,
    Overwrite,
    PatientPattern,
    Seed,
    Site,
    SkipUnlabelled,
    SpacingText,
    Target,
    TestFraction,
    ValFraction,
    Workers,
)
from adaptmedseg.cli.division import partition_of, read_division, refuse_options, shares_of
from adaptmedseg.data.download import cache_folder
from adaptmedseg.data.labelled import Absent
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.preprocessing.fetch import by_hand, fetch_set
from adaptmedseg.preprocessing.folder import prepare_folder
from adaptmedseg.preprocessing.known import known_set, prepare_set
from adaptmedseg.preprocessing.sets import KNOWN


def prepare(
    source: NameOrFolder,
    out: Out,
    files: Files = None,
    download: Download = False,
    target: Target = None,
    spacing: SpacingText = None,
    name: Name = None,
    modality: ModalityName = None,
    label: Label = [],  # noqa: B006 (typer copies it)
    images: Images = None,
    labels: LabelFolder = None,
    channel: Channels = None,
    site: Site = None,
    new_structure: NewStructure = [],  # noqa: B006
    absent: AbsentChoice = None,
    test_fraction: TestFraction = None,
    val_fraction: ValFraction = None,
    folds: Folds = None,
    leave_site_out: LeaveSiteOut = None,
    patient_pattern: PatientPattern = None,
    skip_unlabelled: SkipUnlabelled = False,
    overwrite: Overwrite = False,
    workers: Workers = 1,
    seed: Seed = None,
) -> None:
    """Check, normalise and store images and labels for training and evaluation.

    A bad case is left out and told of (exit code 1). What was interrupted goes on when it is started again.

    \b
    Examples:
      adaptmedseg prepare my_mri --out prepared/my_mri --modality "T2 MRI" --label 1=prostate
      adaptmedseg prepare promise12 --source training_data.zip --out prepared/promise12 --folds 5
      adaptmedseg prepare msd-prostate --download --target gland --out prepared/task05
      adaptmedseg prepare saml --source Processed_data_nii --leave-site-out HK --out prepared/saml
    """
    division = read_division(test_fraction, val_fraction, folds, leave_site_out, seed)
    own = {
        "--name": name,
        "--modality": modality,
        "--images": images,
        "--labels": labels,
        "--site": site,
        "--patient-pattern": patient_pattern,
        "--skip-unlabelled": skip_unlabelled or None,
    }
    theirs = {"--source": files, "--download": download or None, "--target": target, "--spacing": spacing}
    common: dict[str, Any] = {
        "labels": dict(named_pairs(label, "--label")),
        "new_structures": new_structure,
        "overwrite": overwrite,
        "workers": workers,
    }
    if source in KNOWN:
        refuse_options(own, f"is for folders of your own, not for the known set '{source}'; leave it out.")
        folder = _files_of(source, files, download)
        common |= {"absent": _absent(absent) if absent else None, "partition": partition_of(source, division)}
        call = partial(
            prepare_set, source, target=target, contrasts=split_names(channel), spacing=_spacing(spacing), **common
        )
    else:
        refuse_options(theirs, f"is for known sets, and '{source}' is none; the known ones are {', '.join(KNOWN)}.")
        folder = Path(source)
        call = partial(
            prepare_folder,
            name=name or folder.stem,
            modality=modality,
            images=images,
            label_folder=labels,
            channel=_number(channel),
            site=site,
            patient_pattern=patient_pattern,
            skip_unlabelled=skip_unlabelled,
            absent=_absent(absent or "unannotated"),
            **shares_of(division),
            **common,
        )
    with bar("preparing") as progress:
        dataset = call(folder, out, progress=progress)
    _sum_up(out, dataset, folder)


def sets(
    name: Annotated[str | None, typer.Argument(help="One set, to see all that is known of it.")] = None,
) -> None:
    """List the published data sets that `prepare` knows by name.

    \b
    Examples:
      adaptmedseg sets
      adaptmedseg sets chaos
    """
    if name is None:
        for known in KNOWN.values():
            fetched = "--download" if known.downloads or known.record else "by hand"
            print(f"{known.name:18}{known.title} ({fetched})")
        return
    known = known_set(name)
    print(f"{known.name}: {known.title}")
    print(f"publisher: {known.page}")
    print(f"licence: {known.stated_licence}")
    print(f"login: {known.login or 'none needed'}")
    print(f"layout: {known.layout}")
    for target in known.targets or ["all"]:
        print(f"target {target}: {', '.join(known.structures(target)) or 'what its own description names'}")
    if known.contrasts:
        print(f"channels: {', '.join(known.contrasts)} (prepared: {', '.join(known.default_contrasts) or 'all'})")
    print(f"without --download: {by_hand(known)}")


def _files_of(name: str, files: Path | None, download: bool) -> Path:
    """Where a known set's files are, fetched first if that is asked for."""
    known = known_set(name)
    if download:
        folder = files or cache_folder() / "sets" / name
        with bar("fetching") as progress:
            fetch_set(known, folder, lambda text: print(text, flush=True), progress)
        return folder
    if files is None:
        raise UserError(f"'{name}' needs its files: pass --download, or {by_hand(known)}.")
    return files


def _number(channel: str | None) -> int | None:
    if channel is not None and not channel.isdigit():
        raise UserError(f"--channel {channel}: is no number; channels of a folder are counted from 0.")
    return None if channel is None else int(channel)


def _spacing(text: str | None) -> tuple[float, float, float] | None:
    """'3,0.5,0.5' to (3.0, 0.5, 0.5)."""
    if text is None:
        return None
    try:
        d, h, w = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--spacing {text}: must be three numbers D,H,W in mm, as 3,0.5,0.5.") from None
    if not all(0 < size < 100 for size in (d, h, w)):
        raise UserError(f"--spacing {text}: voxel sizes lie between 0 and 100 mm; correct it.")
    return d, h, w


def _sum_up(out: Path, dataset: PreparedDataset, source: Path) -> None:
    """Say what there is and what was left out; exit code 1 where something was. Paths are shown whole."""
    counts = {split: len(dataset.cases(split)) for split in ("train", "val", "test")}
    shares = f"{dataset.folds} folds" if dataset.folds else ", ".join(f"{n} {split}" for split, n in counts.items())
    for note in dataset.manifest.get("notes", []):
        typer.echo(f"note: {note}", err=True)
    if any(not entry.get("spacing_stated", True) for entry in dataset.manifest["cases"]):
        typer.echo("note: the files state no spacing, so that distances in mm are undefined; see --spacing", err=True)
    print(f"{out}: {len(dataset.cases())} cases ({shares}); structures: {', '.join(dataset.structures)}")
    left_out = dataset.manifest.get("left_out", [])
    if left_out:
        for sentence in left_out:
            shown = re.sub(rf"(?<![^\s(]){re.escape(source.name)}/", lambda _: f"{source}/", sentence)
            typer.echo(f"left out: {shown}", err=True)
        typer.echo(f"{len(left_out)} left out; mend them and run again with --overwrite to have them too.", err=True)
        raise typer.Exit(1)


def _absent(value: str) -> Absent:
    return cast(Absent, value)  # prepare_folder refuses a wrong value itself

"""`adaptmedseg prepare` and `sets`: from a published set or a user's folder to a prepared data set."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from adaptmedseg.cli.common import bar, named_pairs, split_names
from adaptmedseg.data.download import cache_folder
from adaptmedseg.data.labelled import Absent
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.preprocessing.committed import committed_lists
from adaptmedseg.preprocessing.fetch import by_hand, fetch_set
from adaptmedseg.preprocessing.folder import prepare_folder
from adaptmedseg.preprocessing.known import known_set, prepare_set
from adaptmedseg.preprocessing.sets import KNOWN
from adaptmedseg.preprocessing.split import Partition

TEST_FRACTION, VAL_FRACTION = 0.2, 0.1
Shares = tuple[float | None, float | None]
Source = Annotated[Path, typer.Argument(help="Folder or archive of images and labels (NIfTI, MetaImage, NRRD).")]
NameOrFolder = Annotated[
    str, typer.Argument(help="A known set's name (see `adaptmedseg sets`), or a folder or archive of your own.")
]
ModalityName = Annotated[str | None, typer.Option(help="'CT', 'T2 MRI', ...; dataset.json's where it has one.")]
Label = Annotated[
    list[str], typer.Option("--label", help="1=NAME or 1+2=NAME (a union); repeat it for every structure.")
]
Images = Annotated[Path | None, typer.Option(help="Folder of images, where images and labels lie in two folders.")]
LabelFolder = Annotated[Path | None, typer.Option("--labels", help="Folder of labels, beside --images.")]
Channel = Annotated[int | None, typer.Option(help="Channel of 4D images, from 0.", min=0)]
NewStructure = Annotated[list[str], typer.Option(help="A structure name of your own that is not in the registry yet.")]
AbsentMeans = Annotated[str, typer.Option(help="A structure without a voxel is 'unannotated' (unknown) or 'empty'.")]
SkipUnlabelled = Annotated[bool, typer.Option(help="Leave out images without labels without telling of them.")]


def prepare(
    source: NameOrFolder,
    out: Annotated[Path, typer.Option(help="New folder for the prepared data set.")],
    files: Annotated[
        Path | None, typer.Option("--source", help="Folder or archive of a known set; with --download, where it goes.")
    ] = None,
    download: Annotated[bool, typer.Option(help="Fetch a known set from its publisher first.")] = False,
    target: Annotated[str | None, typer.Option(help="What of a known set to annotate, as zones or gland.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Voxel sizes D,H,W in mm, for known sets whose files state none.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The data set's name in reports; the folder's name by default.")
    ] = None,
    modality: ModalityName = None,
    label: Label = [],  # noqa: B006 (typer copies it)
    images: Images = None,
    labels: LabelFolder = None,
    channel: Annotated[
        str | None, typer.Option(help="Channel of 4D images, from 0; of a known set by name, as t2,adc or all.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site of all cases.")] = None,
    new_structure: NewStructure = [],  # noqa: B006
    absent: Annotated[
        str | None, typer.Option(help="A structure without a voxel is 'unannotated' (unknown) or 'empty'.")
    ] = None,
    test_fraction: Annotated[
        float | None, typer.Option(help="Share of patients kept for testing (0.2).", min=0, max=1)
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Share of patients kept for validation (0.1).", min=0, max=1)
    ] = None,
    folds: Annotated[
        str | None, typer.Option(help="Cross-validation folds instead of the shares: a number, or 'sites'.")
    ] = None,
    leave_site_out: Annotated[str | None, typer.Option(help="Test on this site, train on all others.")] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression for the patient in a case's name.")
    ] = None,
    skip_unlabelled: SkipUnlabelled = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a prepared data set in --out.")] = False,
    workers: Annotated[int, typer.Option(help="Cases prepared side by side.", min=1)] = 1,
    seed: Annotated[int | None, typer.Option(help="Seed of splits and folds (0).", min=0)] = None,
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
    number, by_site = _folds(folds)
    if leave_site_out is not None:
        _refuse(
            {"--test-fraction": test_fraction, "--folds": folds},
            f"means nothing with --leave-site-out {leave_site_out}, whose patients are the test cases; leave one out.",
        )
    if source in KNOWN:
        own = {
            "--name": name,
            "--modality": modality,
            "--images": images,
            "--labels": labels,
            "--site": site,
            "--patient-pattern": patient_pattern,
            "--skip-unlabelled": skip_unlabelled or None,
        }
        _refuse(own, f"is for folders of your own, not for the known set '{source}'; leave it out.")
        folder = _files_of(source, files, download)
        with bar("preparing") as progress:
            dataset = prepare_set(
                source,
                folder,
                out,
                target=target,
                contrasts=split_names(channel),
                spacing=_spacing(spacing),
                labels=dict(named_pairs(label, "--label")),
                new_structures=new_structure,
                absent=_absent(absent) if absent else None,
                partition=_partition(source, (test_fraction, val_fraction), number, by_site, leave_site_out, seed),
                overwrite=overwrite,
                workers=workers,
                progress=progress,
            )
    else:
        theirs = {"--source": files, "--download": download or None, "--target": target, "--spacing": spacing}
        _refuse(theirs, f"is for known sets, and '{source}' is none; the known ones are {', '.join(KNOWN)}.")
        folder = Path(source)
        with bar("preparing") as progress:
            dataset = prepare_folder(
                folder,
                out,
                name=name or folder.stem,
                modality=modality,
                labels=dict(named_pairs(label, "--label")),
                images=images,
                label_folder=labels,
                channel=_number(channel),
                site=site,
                new_structures=new_structure,
                absent=_absent(absent or "unannotated"),
                test_fraction=TEST_FRACTION if test_fraction is None else test_fraction,
                val_fraction=VAL_FRACTION if val_fraction is None else val_fraction,
                folds=number,
                by_site=by_site,
                left_out_site=leave_site_out,
                seed=seed or 0,
                patient_pattern=patient_pattern,
                skip_unlabelled=skip_unlabelled,
                overwrite=overwrite,
                workers=workers,
                progress=progress,
            )
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


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Refuse options that were given and mean nothing here."""
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{option} {why}")


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


def _partition(
    name: str,
    shares: Shares,
    folds: int | None,
    by_site: bool,
    left_out_site: str | None,
    seed: int | None,
) -> Partition:
    """The set's own lists, unless an option asks for something else."""
    own = committed_lists(name)
    test, val = shares
    if seed is not None or test is not None or val is not None:
        test, val = TEST_FRACTION if test is None else test, VAL_FRACTION if val is None else val
        own = Partition(test, val, seed=seed or 0, published=False)
    if left_out_site is not None or by_site or folds is not None:
        return replace(own, folds=folds, by_site=by_site, left_out_site=left_out_site)
    return own


def _folds(text: str | None) -> tuple[int | None, bool]:
    """'5' to (5, False), 'sites' to (None, True)."""
    if text is None:
        return None, False
    if text.strip().lower() == "sites":
        return None, True
    if not text.isdigit() or int(text) < 2:
        raise UserError(f"--folds {text}: is neither a number of 2 or more nor 'sites'; choose one.")
    return int(text), False


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

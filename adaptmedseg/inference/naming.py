"""Which images a path stands for, and what their masks are called.

A file; a folder of files, plain or named as nnU-Net names them (CASE_0000, one file a channel); a BIDS tree or folder
(sub-01/anat/sub-01_T2w.nii.gz); the folder of a DICOM series; a folder of such folders. Files whose name says that they
are labels are never taken for images.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptmedseg.data.dicom import holds_dicom, pick_series
from adaptmedseg.data.dicom_header import looks_like_dicom
from adaptmedseg.data.discover import LABEL_SUFFIXES
from adaptmedseg.data.registry import Modality, default_registry
from adaptmedseg.data.volume import SUFFIXES, volume_stem, volume_suffix
from adaptmedseg.errors import UserError

MASK_SUFFIX = ".nii.gz"
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_NNUNET_FOLDERS = ("imagesTr", "imagesTs", "imagesVal")
_BIDS = re.compile(r"sub-[A-Za-z0-9]+(_[A-Za-z]+-[A-Za-z0-9]+)*_(?P<suffix>[A-Za-z0-9]+)")
_BIDS_LABELS = ("dseg", "mask", "probseg", "label")
_BIDS_OTHER = ("func", "dwi", "fmap", "perf", "eeg", "meg", "beh", "micr", "nirs", "motion", "mrs")


@dataclass(frozen=True)
class Case:
    """An image to segment. `name` is that of its mask without suffix and may hold folders; `channel` as in
    `read_image`; `series` tells one DICOM series from others in the same folder."""

    name: str
    image: Path
    channel: int | None = None
    series: str | None = None
    mask_suffix: str = MASK_SUFFIX

    def mask_path(self, out: Path) -> Path:
        return out / f"{self.name}{self.mask_suffix}"

    def note_path(self, out: Path) -> Path:
        """The JSON beside the mask."""
        return out / f"{self.name}.json"

    def folder(self, out: Path) -> Path:
        """Where one file a structure goes, and probabilities."""
        return out / self.name


@dataclass(frozen=True)
class Found:
    """Cases of a path, and sentences on what was passed over."""

    cases: list[Case]
    notes: list[str]


def find_cases(path: Path, modality: Modality, channel: int | None = None, series: str | None = None) -> Found:
    """The images of a path, sorted by name.

    In BIDS names the last word tells the modality: images of another one than `modality` are passed over.

    Raises:
        UserError: there is no image, channels are to be chosen, or two masks would have one name.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist; check the path")
    if not path.is_dir():
        return Found([Case(_file_name(path), path, channel, series)], [])
    files = _volumes(path)
    found: Found | None
    notes: list[str] = []
    if files:
        images, notes = _leave_out_labels(files)
        found = _flat(path, images, modality, channel)
    else:
        found = _bids_tree(path, modality, channel) or _dicom(path, series)
    if found is None or not (found.cases or found.notes or notes):
        raise UserError(
            f"{path}: holds no image; expected files ending in {', '.join(SUFFIXES)}, sub-* folders (BIDS) or DICOM"
        )
    if not found.cases:
        raise UserError(f"{path}: {'; '.join([*notes, *found.notes])}; nothing is left to segment")
    check_distinct(path, found.cases)
    return Found(found.cases, [*notes, *found.notes])


def _volumes(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and volume_suffix(p) and not p.name.startswith("."))


def _file_name(path: Path) -> str:
    """What the mask of a single file is called: without nnU-Net's channel, and with BIDS's word for masks."""
    stem = volume_stem(path)
    if _BIDS.fullmatch(stem):
        return f"{stem}_dseg"
    match = _CHANNEL.fullmatch(stem)
    return match["case"] if match and _channels(_volumes(path.parent)) is not None else stem


def _leave_out_labels(files: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Images without the label maps that lie beside them, which their names tell, and notes on these."""
    stems = {volume_stem(path).lower() for path in files}
    bare = stems | {stem.removesuffix("_0000") for stem in stems} | {stem.removesuffix("_image") for stem in stems}
    images = [path for path in files if not _is_label(volume_stem(path).lower(), bare)]
    left = len(files) - len(images)
    return images, [f"{left} label maps beside the images were passed over"] if left else []


def _is_label(stem: str, images: set[str]) -> bool:
    return any(stem.endswith(suffix) and stem.removesuffix(suffix) in images for suffix in LABEL_SUFFIXES)


def _flat(folder: Path, files: Sequence[Path], modality: Modality, channel: int | None) -> Found:
    """A folder of files, whatever their naming."""
    if files and all(_BIDS.fullmatch(volume_stem(path)) for path in files):
        return _bids(folder, files, modality, channel)
    channels = _channels(files)
    if channels is None:
        return Found([Case(volume_stem(path), path, channel) for path in files], [])
    cases = []
    for name, by_channel in channels.items():
        if len(by_channel) == 1:
            cases.append(Case(name, by_channel[0], channel))
        elif channel is None:
            raise UserError(
                f"{folder}: case '{name}' has {len(by_channel)} channels (_0000 to _{len(by_channel) - 1:04d}); choose "
                "one with --channel N, or rename the files where they are cases of their own"
            )
        elif channel not in by_channel:
            raise UserError(f"{folder}: case '{name}' has no channel {channel}; it has {len(by_channel)}, from 0")
        else:
            cases.append(Case(name, by_channel[channel]))
    return Found(cases, [])


def _channels(files: Sequence[Path]) -> dict[str, dict[int, Path]] | None:
    """nnU-Net's files by case and channel; None where a file is named otherwise or the numbers count cases.

    Several numbers of one and the same stem count cases, but in folders that are called as nnU-Net's.
    """
    cases: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in files:
        match = _CHANNEL.fullmatch(volume_stem(path))
        if match is None or int(match["channel"]) in cases[match["case"]]:
            return None
        cases[match["case"]][int(match["channel"])] = path
    counts = {tuple(sorted(found)) for found in cases.values()}
    if len(counts) != 1:  # every case has the same channels
        return None
    numbers = counts.pop()
    if numbers != tuple(range(len(numbers))):
        return None
    told = len(cases) > 1 or len(numbers) == 1 or files[0].parent.name in _NNUNET_FOLDERS
    return dict(cases) if told else None


def _bids_tree(root: Path, modality: Modality, channel: int | None) -> Found | None:
    """A BIDS data set, a subject or a session; None where the folder is none."""
    inside = [p for p in root.iterdir() if p.is_dir() and re.match(r"(sub|ses)-|anat$|ct$|pet$", p.name)]
    files = [p for folder in sorted(inside) for p in sorted(folder.rglob("sub-*")) if p.is_file() and volume_suffix(p)]
    files = [p for p in files if p.parent.name not in _BIDS_OTHER]
    return _bids(root, files, modality, channel) if files else None


def _bids(root: Path, files: Sequence[Path], modality: Modality, channel: int | None) -> Found:
    cases: list[Case] = []
    other: set[str] = set()
    for path in files:
        match = _BIDS.fullmatch(volume_stem(path))
        suffix = match["suffix"] if match else ""
        if match is None or suffix in _BIDS_LABELS or not _fits(suffix, modality):
            other.add(suffix or path.name)
        else:
            cases.append(Case(str(path.relative_to(root).with_name(f"{volume_stem(path)}_dseg")), path, channel))
    left = len(files) - len(cases)
    words = f"{left} images that are no {modality.name} by their names were passed over ({', '.join(sorted(other))})"
    return Found(cases, [words] if left else [])


def _fits(suffix: str, modality: Modality) -> bool:
    """Whether BIDS's word (T1w, T2w, FLAIR, ...) may stand for a modality; words that say nothing may."""
    said = {name.lower(): m for m in default_registry().modalities for name in (m.name, *m.synonyms)}.get(
        suffix.lower()
    )
    if said is None or said.name == modality.name:
        return True
    return "MRI" in (said.name, modality.name) and said.family == modality.family


def _dicom(folder: Path, series: str | None) -> Found | None:
    """The folder itself where DICOM files lie in it or it holds the series meant, else its folders that hold some."""
    if not holds_dicom(folder):
        return None
    name = folder.resolve().name
    parts = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".") and holds_dicom(p)]
    own = any(p.is_file() and looks_like_dicom(p) for p in folder.iterdir())
    if own or not parts or (series is not None and _holds_series(folder, series)):
        return Found([Case(name, folder, series=series)], [])
    return Found([Case(part.name, part, series=series) for part in parts], [])


def _holds_series(folder: Path, series: str) -> bool:
    try:
        pick_series(folder, series)
    except UserError:
        return False
    return True


def check_distinct(path: Path, cases: Sequence[Case]) -> None:
    """UserError where two masks would have one name."""
    names = [case.name for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"{path}: two images are called '{min(twice)}', so their masks would be one file; rename one")


def structure_file_names(structures: Sequence[str]) -> dict[str, str]:
    """A file name without suffix for each structure, each another one."""
    names: dict[str, str] = {}
    for structure in structures:
        plain = re.sub(r"[^A-Za-z0-9.+-]+", "_", structure).strip("._") or "structure"
        name, count = plain, 1
        while name.lower() in {other.lower() for other in names.values()}:
            count += 1
            name = f"{plain}_{count}"
        names[structure] = name
    return names

"""Finding image and label pairs in a user's folder, whatever its layout.

Known layouts: ``images/`` and ``labels/``; ``imagesTr/`` and ``labelsTr/`` (MSD, and nnU-Net with its ``_0000`` channel
suffixes); two folders named by the user; and files side by side whose labels end in ``_label``, ``_seg``,
``_segmentation``, ``_mask`` or ``_gt``, in one folder or in one folder per patient or site.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptmedseg.data.volume import SUFFIXES, volume_stem, volume_suffix
from adaptmedseg.errors import UserError

LABEL_SUFFIXES = ("_segmentation", "_labels", "_label", "_seg", "_mask", "_msk", "_gt")
IMAGE_SUFFIXES = ("_image", "_img", "_ct", "_mri", "_mr")
_FOLDER_NAMES = (("imagesTr", "labelsTr"), ("images", "labels"))
_FIXED_NAMES = {"laendo": "lgemri"}  # the left atrium challenge names files alike in every patient's folder
_CHANNEL = re.compile(r"(.+)_(\d{4})$")
Key = tuple[Path, str]  # folder relative to the root searched, lower-case stem


@dataclass(frozen=True)
class Pair:
    """An image, its label map, and the channel to read where the image is 4D."""

    id: str
    image: Path
    label: Path
    site: str
    channel: int | None = None


@dataclass
class Found:
    """What a folder holds: pairs, files without a partner or with several as sentences, its dataset.json's contents.

    `ambiguous` are images with several labels."""

    root: Path
    pairs: list[Pair] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ambiguous: set[Path] = field(default_factory=set)
    description: dict[str, Any] = field(default_factory=dict)


def find_pairs(
    source: Path,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    channel: int | None = None,
    skip_unlabelled: bool = False,
) -> Found:
    """Find the pairs of a folder.

    Args:
        source: the folder to search.
        images, labels: two folders that hold images and labels, instead of a known layout (both or neither).
        channel: the channel wanted, for 4D images and for nnU-Net's one file per channel.
        skip_unlabelled: leave images without a label out instead of reporting them.

    Raises:
        UserError: no volume or no pair is found, or dataset.json cannot be read.
    """
    root = _descend(source)
    image_root, label_root = _roots(root, images, labels)
    found = Found(root, description=_read_description(root))
    label_files = _volumes(label_root)
    if image_root == label_root:
        label_files = [path for path in label_files if _label_base(path) is not None]
    taken = set(label_files)
    image_files = [path for path in _volumes(image_root) if path not in taken]
    if not image_files and not label_files:
        raise UserError(f"{source} holds no volumes; the formats are {', '.join(SUFFIXES)}.")
    _match(found, image_files, label_files, image_root, label_root, channel)
    if not skip_unlabelled:
        _report_unlabelled(found, image_files)
    if not found.pairs and not found.problems:
        raise UserError(f"{source} holds no image with a label; name labels NAME_label or put them in labels/.")
    return found


def _descend(source: Path) -> Path:
    """Step into folders that hold nothing but one folder, as archives often do."""
    root = source
    while True:
        visible = [path for path in root.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        if len(visible) != 1 or not visible[0].is_dir():
            return root
        root = visible[0]


def _roots(root: Path, images: Path | None, labels: Path | None) -> tuple[Path, Path]:
    if (images is None) != (labels is None):
        raise UserError("Only one of the image and label folders is given; give both or neither.")
    if images is not None and labels is not None:
        for folder in (images, labels):
            if not folder.is_dir():
                raise UserError(f"{folder} is not a folder; check the path.")
        return images, labels
    for image_name, label_name in _FOLDER_NAMES:
        if (root / image_name).is_dir() and (root / label_name).is_dir():
            return root / image_name, root / label_name
    return root, root


def _volumes(folder: Path) -> list[Path]:
    """Volumes below a folder, sorted, without hidden files."""
    return sorted(
        path
        for path in folder.rglob("*")
        if volume_suffix(path) and path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def _label_base(path: Path) -> str | None:
    """The image's stem that a label file's name tells, or None where the name is not that of a label."""
    stem = volume_stem(path).lower()
    if stem in _FIXED_NAMES:
        return _FIXED_NAMES[stem]
    for suffix in LABEL_SUFFIXES:
        if stem.endswith(suffix) and len(stem) > len(suffix):
            return stem[: -len(suffix)]
    return None


def _match(
    found: Found, images: list[Path], labels: list[Path], image_root: Path, label_root: Path, channel: int | None
) -> None:
    """Fill `found` with the pairs of labels and images, and with labels that have no image."""
    by_key, channels = _index_images(images, image_root)
    matched: list[tuple[Path, Path, int | None]] = []
    for label in labels:
        folder = label.parent.relative_to(label_root)
        stem = volume_stem(label).lower()
        bases = [base for base in (stem, _label_base(label), re.sub(r"^label", "img", stem)) if base is not None]
        candidates = next((files for base in bases if (files := by_key.get((folder, base)))), [])
        by_channel = next((numbered for base in bases if (numbered := channels.get((folder, base)))), {})
        if len(candidates) > 1:
            names = ", ".join(path.name for path in candidates)
            found.problems.append(f"{label} matches {len(candidates)} images ({names}); keep one.")
        elif candidates:
            matched.append((candidates[0], label, channel))
        elif by_channel:
            _match_channel(found, matched, label, by_channel, channel)
        else:
            found.problems.append(f"{label} has no image; give both files the same name or move the label away.")
    found.pairs = _named(_one_label_each(found, matched), image_root)


def _one_label_each(found: Found, matched: list[tuple[Path, Path, int | None]]) -> list[tuple[Path, Path, int | None]]:
    """Matches of images that have one label; a problem for every other, for which one is meant nobody can tell."""
    labels: dict[Path, list[Path]] = defaultdict(list)
    for image, label, _ in matched:
        labels[image].append(label)
    for image, several in labels.items():
        if len(several) > 1:
            found.problems.append(f"{image} has {len(several)} labels ({', '.join(map(str, several))}); keep one.")
    found.ambiguous = {image for image, several in labels.items() if len(several) > 1}
    return [match for match in matched if match[0] not in found.ambiguous]


def _index_images(images: list[Path], root: Path) -> tuple[dict[Key, list[Path]], dict[Key, dict[int, Path]]]:
    """Images by folder and name (with and without a suffix such as ``_image``), and by nnU-Net name and channel."""
    by_key: dict[Key, list[Path]] = defaultdict(list)
    channels: dict[Key, dict[int, Path]] = defaultdict(dict)
    for path in images:
        folder, stem = path.parent.relative_to(root), volume_stem(path).lower()
        by_key[folder, stem].append(path)
        for suffix in IMAGE_SUFFIXES:
            if stem.endswith(suffix):
                by_key[folder, stem[: -len(suffix)]].append(path)
        if split := _CHANNEL.match(stem):
            channels[folder, split[1]][int(split[2])] = path
    return by_key, channels


def _match_channel(
    found: Found,
    matched: list[tuple[Path, Path, int | None]],
    label: Path,
    by_channel: dict[int, Path],
    channel: int | None,
) -> None:
    if channel is None and len(by_channel) > 1:
        found.problems.append(f"{label} has images of channels {sorted(by_channel)}; choose one with --channel N.")
    elif channel is not None and channel not in by_channel:
        found.problems.append(f"{label} has no image of channel {channel}; choose one of {sorted(by_channel)}.")
    else:
        image = by_channel[channel] if channel is not None else next(iter(by_channel.values()))
        matched.append((image, label, None))


def _named(matched: list[tuple[Path, Path, int | None]], root: Path) -> list[Pair]:
    """Pairs with ids that are unique and safe as folder names; the folder joins in where names repeat."""
    short = [_short_name(image, label) for image, label, _ in matched]
    pairs = []
    for name, (image, label, channel) in zip(short, matched, strict=True):
        parents = image.parent.relative_to(root).parts
        repeated = short.count(name) > 1
        if name in _FIXED_NAMES.values():
            full = "-".join(parents) or name
        else:
            full = "-".join((*parents, name)) if repeated else name
        site = parents[0] if len(parents) > 1 or (parents and repeated) else "unknown"
        pairs.append(Pair(re.sub(r"[^\w.+-]", "_", full), image, label, site, channel))
    return sorted(pairs, key=lambda pair: pair.id)


def _short_name(image: Path, label: Path) -> str:
    """The image's stem without ``_image`` or a channel number, where its label has none."""
    stem, label_stem = volume_stem(image), volume_stem(label).lower()
    if stem.lower() == label_stem:
        return stem
    if (split := _CHANNEL.match(stem)) and label_stem.startswith(split[1].lower()):
        return split[1]
    for suffix in IMAGE_SUFFIXES:
        if stem.lower().endswith(suffix):
            return stem[: -len(suffix)]
    return stem


def _report_unlabelled(found: Found, images: list[Path]) -> None:
    used = {pair.image for pair in found.pairs} | found.ambiguous
    used_channels = {_CHANNEL.sub(r"\1", str(path.parent / volume_stem(path))) for path in used}
    for path in images:
        is_other_channel = _CHANNEL.sub(r"\1", str(path.parent / volume_stem(path))) in used_channels
        if path not in used and not (is_other_channel and _CHANNEL.match(volume_stem(path))):
            found.problems.append(f"{path} has no label; add one, move the image away, or pass --skip-unlabelled.")


def _read_description(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); repair it or move it away.") from error
    if not isinstance(description, dict) or not isinstance(description.get("labels", {}), dict):
        raise UserError(f"{path} is not the description of a data set; its 'labels' must map values to names.")
    return description

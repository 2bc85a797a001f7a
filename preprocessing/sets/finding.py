"""Finding images and annotations by the published names of their files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from adaptmedseg.preprocessing.case import Cases, SourceCase

Key = tuple[str, ...]
Grouped = dict[Key, list[Path]]
Make = Callable[[Key, Path, Path], SourceCase]
NIFTI = r"\.nii(?:\.gz)?"
_WITHIN = r"(?:.*/)?"


def visible_files(root: Path) -> list[Path]:
    """All files below a folder in one order, without hidden ones and what other systems add to archives."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(root).parts)
    )


def grouped(root: Path, pattern: str, skip: str | None = None) -> Grouped:
    """Files whose path below `root` ends in `pattern`, by the pattern's groups; capitals do not matter.

    `skip` leaves out paths in which it occurs. Files that differ in nothing but capitals share a group, so that two
    annotations of one image are noticed.
    """
    found: Grouped = defaultdict(list)
    for path in visible_files(root):
        name = path.relative_to(root).as_posix()
        match = re.fullmatch(_WITHIN + pattern, name, re.IGNORECASE)
        if match and not (skip and re.search(skip, name, re.IGNORECASE)):
            found[tuple((group or "").lower() for group in match.groups())].append(path)
    return dict(found)


def named(template: str, modality: str) -> Make:
    """Makes cases whose name, by `template` from the groups of their images' pattern, is their patient's too."""

    def make(key: Key, image: Path, label: Path) -> SourceCase:
        name = template.format(*key)
        return SourceCase(name, image, label, name, modality)

    return make


def paired(
    images: Mapping[Key, list[Path]],
    labels: Mapping[Key, list[Path]],
    make: Make,
    *,
    label_key: Callable[[Key], Key] = lambda key: key,
    unlabelled: str = "report",
) -> Cases:
    """Join images with their annotations.

    Args:
        images, labels: as `grouped` gives them.
        make: a case from an image's key, image and annotation.
        label_key: the annotation's key for an image's; several images may share one.
        unlabelled: 'report' tells of images without annotation, 'skip' leaves them out, where the set has such.

    Returns:
        Cases sorted by id, and a sentence for every image or annotation without a single partner (one, where several
        images share them).
    """
    found = Cases()
    used = set()
    for key, files in sorted(images.items()):
        masks = labels.get(label_key(key), [])
        used.add(label_key(key))
        if len(masks) > 1:
            names = ", ".join(path.name for path in masks)
            found.problems.append(f"{files[0]} has {len(masks)} annotations ({names}); keep the right one.")
        elif len(files) > 1:
            where = ", ".join(str(path) for path in files)
            found.problems.append(f"The image {files[0].name} is there {len(files)} times ({where}); keep one.")
        elif masks:
            case = make(key, files[0], masks[0])
            found.cases.append(replace(case, id=re.sub(r"[^\w.+-]", "_", case.id)))
        elif unlabelled == "report":
            found.problems.append(f"{files[0]} has no annotation; add it, or move the image away.")
    for key, masks in sorted(labels.items()):
        if key not in used:
            found.problems.append(f"{masks[0]} has no image; add it, or move the annotation away.")
    found.cases.sort(key=lambda case: case.id)
    found.problems = list(dict.fromkeys(found.problems))
    return found

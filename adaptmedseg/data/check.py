"""Checking a user's folder before anything is made of it: what each case is, and what is wrong with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from adaptmedseg.data.archive import opened_source
from adaptmedseg.data.check_result import CaseCheck, CheckReport
from adaptmedseg.data.cohort import compare_cases
from adaptmedseg.data.discover import Pair, find_pairs
from adaptmedseg.data.intensity import IntensityStatistics, intensity_statistics
from adaptmedseg.data.labelled import Absent, LabelledVolume, modality_of, read_labelled
from adaptmedseg.data.labels import LabelNames, LabelScheme, label_scheme
from adaptmedseg.data.normalise import SEGVOL, Crop, crop_slices, foreground_of
from adaptmedseg.data.registry import Family, Registry, default_registry
from adaptmedseg.data.similarity import signature
from adaptmedseg.data.source import source_sha256
from adaptmedseg.errors import UserError

_AXES = ("lower or upper", "front or back", "left or right")  # d, h, w of a canonical volume
_PLAUSIBLE_MM = (0.05, 20.0)
_LOWEST_MR = -50.0
_HIGHEST_AIR_HU = -200.0


OnCase = Callable[[CaseCheck, LabelledVolume, Mapping[str, np.ndarray]], None]


def check_folder(
    source: str | Path,
    *,
    modality: str | None = None,
    labels: LabelNames | None = None,
    images: Path | None = None,
    label_folder: Path | None = None,
    channel: int | None = None,
    new_structures: Sequence[str] = (),
    absent: Absent = "unannotated",
    skip_unlabelled: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_case: OnCase | None = None,
) -> CheckReport:
    """Read every case of a folder or .zip and report on it; writes nothing.

    `on_case` is called with every readable case's report, its volumes and its masks while they are in memory.

    The arguments mean what they mean in `adaptmedseg.preprocessing.folder.prepare_folder`. Without any label names,
    volumes are told by label value; without a modality, intensities are not judged.

    Raises:
        UserError: the folder as a whole cannot be read, or a name is unknown. Bad cases are reported, not raised.
    """
    registry = default_registry().extended({name: {} for name in new_structures})
    with opened_source(source) as opened:
        found = find_pairs(opened, images=images, labels=label_folder, channel=channel, skip_unlabelled=skip_unlabelled)
        described = found.description.get("labels")
        scheme = label_scheme(labels or {}, described, registry) if labels or described else None
        stated = modality or found.description.get("modality") or found.description.get("channel_names")
        family = modality_of(modality, found.description, channel, registry).family if stated else None
        cases = []
        for done, pair in enumerate(found.pairs, start=1):
            cases.append(check_case(pair, scheme, family, absent, registry, on_case))
            if progress is not None:
                progress(done, len(found.pairs))
        problems = [*found.problems, *_duplicates(found.pairs)]
        shown = [problem.replace(str(opened), str(source)) for problem in problems]
        cases = [_renamed(case, str(opened), str(source)) for case in cases]
    remarks = compare_cases(cases)
    return CheckReport(
        tuple(replace(case, warnings=(*case.warnings, *remarks.get(case.id, ()))) for case in cases), tuple(shown)
    )


def check_case(
    pair: Pair,
    scheme: LabelScheme | None,
    family: Family | None,
    absent: Absent,
    registry: Registry,
    on_case: OnCase | None = None,
) -> CaseCheck:
    """Report on one case. `scheme` None tells volumes by label value; `family` None leaves intensities unjudged."""
    try:
        case = read_labelled(pair, scheme, absent)
        stats, crop = foreground_of(case.image, intensity_statistics)
    except UserError as error:
        return CaseCheck(pair.id, errors=(str(error),))
    masks = _masks(case, scheme, absent)
    voxel_ml = case.image.grid.voxel_ml
    low, high = stats.lowest, stats.highest
    warnings = [
        *_header_warnings(case),
        *_intensity_warnings(low, high, family),
        *_saturated(stats),
        *_clipped(masks),
        *_outside_crop(crop, masks),
        *_doubtful_sides(masks, case.image.spacing, registry if scheme else None),
    ]
    voxels = {name: int(mask.sum()) for name, mask in masks.items()}
    floor = SEGVOL.curve(stats).x[0]
    checked = CaseCheck(
        pair.id,
        case.image.data.shape,
        case.image.spacing,
        case.image.grid.codes,
        (low, high),
        {name: count * voxel_ml for name, count in voxels.items()},
        warnings=tuple(f"{pair.image}: {warning}" for warning in warnings),
        image=str(pair.image),
        statistics=stats,
        crop=crop,
        voxels=voxels,
        darkened={name: float((case.image.data[mask] <= floor).mean()) for name, mask in masks.items() if mask.any()},
        look=signature(case.image.data[crop_slices(crop)], case.image.spacing),
    )
    if on_case is not None:
        on_case(checked, case, masks)
    return checked


def _masks(case: LabelledVolume, scheme: LabelScheme | None, absent: Absent) -> dict[str, np.ndarray]:
    """The masks of the structures that the case annotates."""
    values = scheme.values if scheme else {f"label {value}": (value,) for value in case.counts if value}
    masks = {name: np.isin(case.labels.data, numbers) for name, numbers in values.items()}
    return {name: mask for name, mask in masks.items() if mask.any() or absent == "empty"}


def _header_warnings(case: LabelledVolume) -> list[str]:
    warnings = []
    spacing = [round(size, 3) for size in case.image.spacing]
    if min(spacing) < _PLAUSIBLE_MM[0] or max(spacing) > _PLAUSIBLE_MM[1]:
        warnings.append(f"spacing {spacing} mm is implausible; check the header's units")
    return [*warnings, *case.image.notes]


def _intensity_warnings(low: float, high: float, family: Family | None) -> list[str]:
    if family == "CT" and low > _HIGHEST_AIR_HU:
        return [f"the lowest value is {low:g} where CT has air near -1000 HU; is it CT, and in HU?"]
    if family == "MR" and low < _LOWEST_MR:
        return [f"the lowest value is {low:g} where MR intensities are not negative; is it CT, or rescaled?"]
    return []


def _saturated(stats: IntensityStatistics) -> list[str]:
    """Bright tissue cut off at one value, as where an export was squeezed into 8 bits."""
    if stats.volume[99.0] == stats.highest:
        return [f"one voxel in a hundred or more has the highest value, {stats.highest:g}; bright tissue is cut off"]
    return []


def _clipped(masks: dict[str, np.ndarray]) -> list[str]:
    """Structures that reach the volume's edge and so may go on beyond it."""
    by_sides: dict[str, list[str]] = defaultdict(list)
    for name, mask in masks.items():
        sides = [_AXES[axis] for axis in range(3) if mask.take(0, axis).any() or mask.take(-1, axis).any()]
        if sides:
            by_sides[" and ".join(sides)].append(name)
    return [
        f"{_listed(names)} touch{'es' * (len(names) == 1)} the {sides} edge of the volume and may be cut off"
        for sides, names in by_sides.items()
    ]


def _listed(names: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _outside_crop(crop: Crop, masks: dict[str, np.ndarray]) -> list[str]:
    """Structures with voxels outside the foreground crop, which preparing loses."""
    lost = {name: int(mask.sum() - mask[crop_slices(crop)].sum()) for name, mask in masks.items()}
    return [f"{count} voxels of {name} lie outside the image's foreground" for name, count in lost.items() if count]


def _doubtful_sides(
    masks: dict[str, np.ndarray], spacing: tuple[float, float, float], registry: Registry | None
) -> list[str]:
    """Left and right partners that do not lie left and right of each other."""
    warnings = []
    for name, mask in masks.items():
        partner = registry.mirror(name) if registry else name
        paired = name.startswith("left ") and partner != name  # a left ventricle has no partner on the other side
        if not paired or not mask.any() or partner not in masks or not masks[partner].any():
            continue
        offset_mm = (_centroid(mask) - _centroid(masks[partner])) * np.array(spacing)
        if int(np.abs(offset_mm).argmax()) != 2:
            warnings.append(f"{name} and {partner} do not lie side by side; the header's axes look wrong")
        elif offset_mm[2] > 0:
            warnings.append(f"{name} lies to the right of {partner}; the names are swapped or the volume is flipped")
    return warnings


def _centroid(mask: np.ndarray) -> np.ndarray:
    """Mean index (d, h, w) of the true voxels."""
    return np.array([axis.mean() for axis in np.nonzero(mask)])


def _duplicates(pairs: Sequence[Pair]) -> list[str]:
    by_hash: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        with suppress(UserError):  # which the case's own report tells
            by_hash[source_sha256(pair.image)].append(pair)
    return [
        f"The cases {', '.join(pair.id for pair in same)} are one and the same image file; keep one of them."
        for same in by_hash.values()
        if len(same) > 1
    ]


def _renamed(case: CaseCheck, old: str, new: str) -> CaseCheck:
    """The case with the user's archive in its sentences where files were read from a temporary folder."""
    errors, warnings = (tuple(text.replace(old, new) for text in texts) for texts in (case.errors, case.warnings))
    return replace(case, errors=errors, warnings=warnings, image=case.image.replace(old, new))

"""What a check found: of every case, and of the folder."""

from __future__ import annotations

from dataclasses import dataclass, field

from adaptmedseg.data.intensity import IntensityStatistics
from adaptmedseg.data.normalise import Crop
from adaptmedseg.data.similarity import Signature


@dataclass(frozen=True)
class CaseCheck:
    """What one case is and what is wrong with it.

    Shape and spacing (mm) in the order d, h, w, the file's orientation letters, the range of intensities, the volume of
    every annotated structure in ml, errors that `prepare` refuses, and warnings worth a look. `statistics` are those of
    the image, `crop` is its foreground (start, stop per axis), `voxels` counts every annotated structure in it,
    `darkened` is the share of each structure's voxels that SegVol's rule sets to 0, `image` is
    its file, and `look` tells near duplicates.
    """

    id: str
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str = ""
    intensities: tuple[float, float] | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    statistics: IntensityStatistics | None = field(default=None, repr=False)
    crop: Crop | None = None
    voxels: dict[str, int] = field(default_factory=dict)
    darkened: dict[str, float] = field(default_factory=dict)
    image: str = ""
    look: Signature | None = field(default=None, repr=False, compare=False)

    @property
    def short_warnings(self) -> tuple[str, ...]:
        """The warnings without the file or case that they begin with, for where that is said already."""
        return tuple(text.removeprefix(f"{self.image}: ").removeprefix(f"{self.id}: ") for text in self.warnings)

    @property
    def severity(self) -> tuple[int, int]:
        """Errors and warnings, by which cases are put in order."""
        return len(self.errors), len(self.warnings)


@dataclass(frozen=True)
class CheckReport:
    """All cases of a folder, and the errors that belong to no single case."""

    cases: tuple[CaseCheck, ...]
    folder_errors: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[str, ...]:
        """Every error, the folder's first."""
        return (*self.folder_errors, *(error for case in self.cases for error in case.errors))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every warning."""
        return tuple(warning for case in self.cases for warning in case.warnings)

    @property
    def exit_code(self) -> int:
        """0 where `prepare` would accept the folder, else 1."""
        return 1 if self.errors else 0

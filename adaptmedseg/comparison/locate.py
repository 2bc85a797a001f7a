"""Finding the data of a comparison again, from another working directory or after its folder was moved."""

from collections.abc import Iterator
from pathlib import Path

from adaptmedseg.data.files import file_sha256
from adaptmedseg.data.prepared.manifest import MANIFEST
from adaptmedseg.errors import UserError


def locate(path: Path, digest: str, comparison: Path) -> Path:
    """Where a prepared set is now that a comparison names by `path` and by the SHA-256 of its manifest: there, or below
    a folder above the comparison, under the whole path or its end. UserError where it is in none of these."""
    other = None
    for place in _places(path, comparison):
        manifest = place / MANIFEST
        if manifest.is_file():
            if file_sha256(manifest) == digest:
                return place
            other = other or place
    if other is not None:
        raise UserError(f"{other} is not the data set that {comparison} was made with (its manifest differs)")
    raise UserError(f"{path} is no prepared data set, neither from here nor from a folder above {comparison}")


def _places(path: Path, comparison: Path) -> Iterator[Path]:
    yield path
    parts = path.parts[1:] if path.is_absolute() else path.parts
    for above in comparison.resolve().parents:
        for start in range(len(parts)):
            yield above.joinpath(*parts[start:])

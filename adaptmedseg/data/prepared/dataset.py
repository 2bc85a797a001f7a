"""A prepared data set as a whole: its cases, splits, folds and vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptmedseg.data.files import file_sha256
from adaptmedseg.data.prepared.case import PreparedCase
from adaptmedseg.data.prepared.manifest import MANIFEST, Split, case_of, read_manifest
from adaptmedseg.data.registry import Registry, default_registry
from adaptmedseg.errors import UserError


class PreparedDataset:
    """A prepared data set, opened with `PreparedDataset.open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        structures = tuple(manifest["structures"])
        self._cases = [case_of(entry, folder, structures, manifest.get("folds")) for entry in manifest["cases"]]

    @classmethod
    def open(cls, path: str | Path) -> PreparedDataset:
        """Open a prepared folder.

        Raises:
            UserError: the folder is no prepared data set, is of another version, or lacks files of a case.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        try:
            dataset = cls(folder, manifest)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{folder / MANIFEST} is damaged (at {error}); run prepare again.") from error
        for case in dataset._cases:
            for name, facts in case.files.items():
                path = case.folder / name
                if not path.is_file():
                    raise UserError(f"{path} is missing; copy the folder again or run prepare again.")
                if path.stat().st_size != facts["bytes"]:
                    raise UserError(
                        f"{path} has {path.stat().st_size} bytes where the manifest says {facts['bytes']}; copy the "
                        "folder again or run prepare again."
                    )
        return dataset

    def damaged(self) -> list[str]:
        """A sentence for every stored file whose bytes are not those that were written; reads everything."""
        return [
            f"{case.folder / name} is not what was written (SHA-256 differs); copy the folder or prepare it again."
            for case in self._cases
            for name, facts in case.files.items()
            if file_sha256(case.folder / name) != facts["sha256"]
        ]

    @property
    def name(self) -> str:
        """The data set's name as the user gave it."""
        return str(self.manifest["name"])

    @property
    def structures(self) -> tuple[str, ...]:
        """Canonical structure names; the position is the bit in the label masks."""
        return tuple(self.manifest["structures"])

    @property
    def modalities(self) -> tuple[str, ...]:
        """Canonical names of the modalities of all cases."""
        return tuple(self.manifest["modalities"])

    @property
    def folds(self) -> int | None:
        """The number of folds that the set was prepared with, or None."""
        return self.manifest.get("folds")

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of all cases, sorted."""
        return tuple(sorted({case.site for case in self._cases}))

    @property
    def registry(self) -> Registry:
        """The shipped registry together with the set's own structures."""
        return default_registry().extended(self.manifest.get("extra_structures", {}))

    def cases(self, split: Split | None = None, structures: Sequence[str] | None = None) -> list[PreparedCase]:
        """Cases in the manifest's order.

        Args:
            split: keep one split; None keeps all.
            structures: keep cases that annotate at least one of these names or synonyms; None keeps all.
        """
        if split not in (None, "train", "val", "test"):
            raise ValueError(f"split is {split!r}; choose 'train', 'val' or 'test'")
        chosen = [case for case in self._cases if split in (None, case.split)]
        if structures is None:
            return chosen
        wanted = {self.registry.structure(name).name for name in structures}
        return [case for case in chosen if wanted.intersection(case.annotated)]

    def fold(self, k: int) -> tuple[list[PreparedCase], list[PreparedCase]]:
        """Training and test cases of fold `k`; no patient is in both.

        Raises:
            UserError: the set was prepared without folds or has no fold `k`.
        """
        if self.folds is None or not 0 <= k < self.folds:
            raise UserError(f"{self.folder} has {self.folds or 'no'} folds, so no fold {k}; prepare it with --folds.")
        return [case for case in self._cases if case.fold != k], [case for case in self._cases if case.fold == k]

    def leave_site_out(self, site: str) -> tuple[list[PreparedCase], list[PreparedCase]]:
        """Cases of all other sites without the left-out site's patients, and the cases of `site`.

        Raises:
            UserError: no case is from `site`.
        """
        test = [case for case in self._cases if case.site == site]
        if not test:
            raise UserError(f"{self.folder} has no site {site!r}; its sites are {', '.join(self.sites)}.")
        patients = {case.patient for case in test}
        return [case for case in self._cases if case.patient not in patients], test

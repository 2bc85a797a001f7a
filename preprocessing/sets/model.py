"""What a published data set is: where it comes from, how its cases are found, and what its labels mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adaptmedseg.preprocessing.case import Cases, Reader
from adaptmedseg.preprocessing.reading import read_pair

from adaptmedseg.data.download import Checksum
from adaptmedseg.data.labelled import Absent


@dataclass(frozen=True)
class Download:
    """A file that the publisher serves without a login.

    `checksum` is the publisher's own statement, None where none is known here.
    """

    name: str
    url: str
    checksum: Checksum | None = None


@dataclass(frozen=True)
class DataSet:
    """One published data set.

    Attributes:
        name: what `prepare` calls it.
        title: what it is, in a few words.
        page: the publisher's page.
        licence: where the licence stands, or what the publisher states; never a guess.
        login: what is needed to get the files beyond an address; empty for nothing.
        layout: the published layout, one line.
        find: folder and target to cases.
        read: reads one case.
        labels: label values and structures; empty where the source's description names them.
        targets: choices of what to annotate, each a list of structures, the default first; empty takes all labels.
        contrasts: images of one patient that share an annotation, empty where there is one alone.
        default_contrasts: the ones prepared unless others are asked for; empty takes all.
        needs: a regular expression for the members of an archive that are needed.
        downloads: the files, where they can be fetched without a login.
        record: the address of a Zenodo record, from which checksums are asked, and the files themselves where
            `downloads` is empty.
        absent: what a structure without a voxel means in this set (see `annotated_structures`).
        spacing_stated: whether the files say how large voxels are.
    """

    name: str
    title: str
    page: str
    layout: str
    find: Callable[[Path, str], Cases]
    labels: Mapping[int, str] = field(default_factory=dict)
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    contrasts: tuple[str, ...] = ()
    default_contrasts: tuple[str, ...] = ()
    read: Reader = read_pair
    needs: str = ""
    downloads: tuple[Download, ...] = ()
    record: str = ""
    login: str = ""
    licence: str = ""
    absent: Absent = "unannotated"
    spacing_stated: bool = True

    def wants(self, member: str) -> bool:
        """Whether a member of an archive is needed, by its name."""
        return re.search(self.needs, member, re.IGNORECASE) is not None

    def structures(self, target: str) -> tuple[str, ...]:
        """The structures of a target, in bit order."""
        return self.targets[target] if self.targets else tuple(self.labels.values())

    @property
    def stated_licence(self) -> str:
        """The licence as it can be stated here."""
        return self.licence or f"as stated by the publisher at {self.page}"


def numbered(names: str) -> dict[int, str]:
    """Label values from 1 for names that semicolons divide."""
    return {value: " ".join(name.split()) for value, name in enumerate(names.split(";"), start=1)}


def zenodo(record: int, *names: str) -> tuple[Download, ...]:
    """Files of a Zenodo record."""
    return tuple(Download(name, f"https://zenodo.org/records/{record}/files/{name}") for name in names)


def zenodo_record(record: int) -> str:
    """The address of a Zenodo record's description."""
    return f"https://zenodo.org/api/records/{record}"

"""Prepared data sets on disk; `docs/prepared-format.md` is the format's description."""

from adaptmedseg.data.files import file_sha256
from adaptmedseg.data.prepared.case import PreparedCase
from adaptmedseg.data.prepared.dataset import PreparedDataset
from adaptmedseg.data.prepared.manifest import FORMAT, MANIFEST, VERSION, Split
from adaptmedseg.data.prepared.whole import whole_labels, whole_volume
from adaptmedseg.data.prepared.write import write_case, write_prepared

__all__ = [
    "FORMAT",
    "MANIFEST",
    "VERSION",
    "PreparedCase",
    "PreparedDataset",
    "Split",
    "file_sha256",
    "whole_labels",
    "whole_volume",
    "write_case",
    "write_prepared",
]

"""PROMISE12: T2 MRI of the prostate of several centres, as MetaImage pairs, with the whole gland."""

from __future__ import annotations

from pathlib import Path

from adaptmedseg.preprocessing.case import Cases
from adaptmedseg.preprocessing.sets.finding import grouped, named, paired
from adaptmedseg.preprocessing.sets.model import DataSet, zenodo, zenodo_record


def find(root: Path, target: str) -> Cases:
    """The training cases. Test cases repeat their numbers without annotation and are passed over."""
    test = r"(^|/)(live ?challenge_?)?test_?data"
    images = grouped(root, r"Case(\d+)\.(?:mhd|mha)", skip=test)
    labels = grouped(root, r"Case(\d+)_seg[^/]*\.(?:mhd|mha)", skip=test)
    return paired(images, labels, named("Case{}", "T2 MRI"))


SET = DataSet(
    name="promise12",
    title="PROMISE12: 50 annotated T2 MRI of the prostate from several centres",
    page="https://zenodo.org/records/8026660",
    layout="training_data/CaseNN.mhd with .raw, CaseNN_segmentation.mhd with .raw",
    find=find,
    labels={1: "prostate"},
    needs=r"^(?!.*test_?data).*\.(mhd|mha|raw|zraw)$",
    downloads=zenodo(8026660, "training_data.zip"),
    record=zenodo_record(8026660),
)

"""STARE: photographs of the retina with vessels drawn by two annotators; one slice a case."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
from adaptmedseg.preprocessing.case import CaseData, Cases, SourceCase
from adaptmedseg.preprocessing.reading import stack_case
from adaptmedseg.preprocessing.sets.finding import grouped, named, paired
from adaptmedseg.preprocessing.sets.model import DataSet, Download

from adaptmedseg.data.labels import LabelScheme
from adaptmedseg.errors import UserError

_PPM = r"\.ppm(?:\.gz)?"
_PAGE = "https://cecas.clemson.edu/~ahoover/stare/probing"
_GREEN = 1  # vessels stand out most in the green channel
_BRIGHT = 128
_LARGEST = 1 << 28


def find(root: Path, target: str) -> Cases:
    """The photographs that the annotator `target` (ah or vk) drew; the others of the archive are passed over."""
    images = grouped(root, r"im(\d+)" + _PPM)
    labels = grouped(root, rf"im(\d+)\.{target}" + _PPM)
    return paired(images, labels, named("im{}", "fundus photograph"), unlabelled="skip")


def read(case: SourceCase, scheme: LabelScheme) -> CaseData:
    """Read a photograph's green channel and the vessels, which are bright, as volumes of one slice.

    Raises:
        UserError: a file is damaged or of another format, or the sizes differ.
    """
    image, drawn = _picture(case.image), _picture(case.label)
    vessels = (drawn.max(axis=2) >= _BRIGHT).astype(np.uint8)
    return stack_case(case, _slice(image[..., min(_GREEN, image.shape[2] - 1)]), _slice(vessels), scheme)


def _slice(picture: np.ndarray) -> np.ndarray:
    """(rows, columns) to (x, y, 1)."""
    return picture.transpose()[:, :, None]


def _picture(path: Path) -> np.ndarray:
    """A binary PPM or PGM, packed or not, as uint8 (rows, columns, colours)."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); get it again.") from error
    header = re.match(rb"P([56])(?:\s+#[^\n]*)*\s+(\d+)(?:\s+#[^\n]*)*\s+(\d+)(?:\s+#[^\n]*)*\s+255\s", content)
    if header is None:
        raise UserError(f"{path} is no binary PPM picture of 8 bits; get it again.")
    colours = 3 if header[1] == b"6" else 1
    columns, rows = int(header[2]), int(header[3])
    body = content[header.end() :]
    if len(body) < rows * columns * colours or not rows * columns:
        raise UserError(f"{path} is truncated: {len(body)} bytes for {columns} x {rows} pixels; get it again.")
    return np.frombuffer(body, np.uint8, rows * columns * colours).reshape(rows, columns, colours)


SET = DataSet(
    name="stare",
    title="STARE: 20 photographs of the retina with vessels by two annotators",
    page=f"{_PAGE}/index.html",
    layout="imNNNN.ppm(.gz), imNNNN.ah.ppm(.gz), imNNNN.vk.ppm(.gz)",
    find=find,
    read=read,
    labels={1: "vessel"},
    targets={"ah": ("vessel",), "vk": ("vessel",)},
    needs=r"\.ppm(\.gz)?$",
    downloads=tuple(
        Download(f"{name}.tar", f"{_PAGE}/{name}.tar") for name in ("stare-images", "labels-ah", "labels-vk")
    ),
    spacing_stated=False,
)

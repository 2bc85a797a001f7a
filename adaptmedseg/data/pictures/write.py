"""Writing masks and maps as pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from adaptmedseg.data.files import write_atomic


def write_png(path: Path, values: np.ndarray) -> None:
    """Write (h, w) of 8 or 16 bits, or colours (h, w, 3) of 8, as PNG, atomically."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def write_probabilities(path: Path, values: np.ndarray) -> None:
    """Write a map (h, w) of float32 as TIFF, atomically."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values.astype(np.float32), compression="zlib")
    write_atomic(path, buffer.getvalue())

"""Reading pictures: PNG, JPEG, TIFF, PNM, BMP and WebP, grey or colour, with 8 or 16 bits."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from struct import error as struct_error

import numpy as np
import SimpleITK
from PIL import Image, UnidentifiedImageError

from adaptmedseg.data.pictures.tiff import LARGEST, tiff_pixels, too_large
from adaptmedseg.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".webp", ".gif")
PERCENTILES = (0.5, 99.5)  # of a picture with more than 8 bits, as MedSAM has them
_ORIENTATION = 0x0112  # EXIF
_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What damaged files make Pillow and tifffile raise; which one depends on where the damage lies.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct_error, zlib.error, RuntimeError)


@dataclass(frozen=True, eq=False)
class Picture:
    """`pixels` (h, w) grey or (h, w, 3) RGB in the file's own numbers: uint8, uint16, another integer or float32.

    `indexed`: the numbers are indices into the file's palette, `palette`, RGB (n, 3). `notes` say what was done.
    """

    path: Path
    pixels: np.ndarray
    palette: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def colours(self) -> np.ndarray:
        """RGB (h, w, 3), uint8, as networks of photographs see it.

        8 bits stay what they are. More are mapped linearly, the 0.5th percentile of all values to 0 and the 99.5th to
        255, the same for all colours. A grey picture gets three equal colours, a palette is looked up.
        """
        pixels = self.pixels if self.palette is None else self.palette[self.pixels]
        if pixels.dtype != np.uint8:
            low, high = np.percentile(pixels, PERCENTILES)
            if high <= low:
                low, high = float(pixels.min()), float(pixels.max())
            span = max(float(high - low), np.finfo(np.float32).tiny)
            pixels = np.rint(np.clip((pixels - low) / span, 0, 1) * 255).astype(np.uint8)
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def is_picture(path: Path) -> bool:
    """Whether a file's name says that it is a picture, packed with gzip or not."""
    return picture_suffix(path) != ""


def picture_suffix(path: Path) -> str:
    """The ending of a picture's name, with '.gz' where it is packed; empty for other files."""
    name = path.name.lower()
    bare = name.removesuffix(".gz")
    suffix = next((suffix for suffix in SUFFIXES if bare.endswith(suffix)), "")
    return path.name[len(bare) - len(suffix) :] if suffix else ""


def picture_stem(path: Path) -> str:
    """A picture's name without its ending."""
    return path.name.removesuffix(picture_suffix(path))


def read_picture(path: Path) -> Picture:
    """Read a picture as it is stored.

    An alpha channel is left out where it is opaque throughout, and told. Raises UserError for a missing, damaged or
    foreign file, for one of several frames or pages, transparent or CMYK colours, a rotation left to the viewer, and
    more pixels than 16,384 × 16,384.
    """
    content = _bytes(path)
    try:
        pixels = tiff_pixels(path, content) if content.startswith(_TIFF) else None
        picture = _read(path, content) if pixels is None else _from_array(path, pixels)
    except UnidentifiedImageError:
        raise UserError(f"{path}: is no picture; give one of {', '.join(SUFFIXES)}") from None
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is truncated or damaged ({reason}); get it again") from None
    if picture.pixels.dtype.kind == "f" and not np.isfinite(picture.pixels).all():
        count = int(np.count_nonzero(~np.isfinite(picture.pixels)))
        raise UserError(
            f"{path}: {count} of its {picture.pixels.size} values are not finite (NaN or infinite); replace them first"
        )
    return picture


def _bytes(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            content = file.read(8 * LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: is truncated or damaged ({error}); get it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    if not content:
        raise UserError(f"{path}: is an empty file; get it again")
    if len(content) > 8 * LARGEST:
        raise too_large(path)
    return content


def _read(path: Path, content: bytes) -> Picture:
    with Image.open(io.BytesIO(content)) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise UserError(f"{path}: holds {frames} frames; save the one that is meant as a picture of its own")
        if image.width * image.height > LARGEST:
            raise too_large(path)
        if image.getexif().get(_ORIENTATION, 1) != 1:
            raise UserError(f"{path}: is to be turned when it is shown (EXIF); save it turned, as its mask is")
        if _sixteen_bit_colours(content):
            return _from_array(path, _read_deep_png(path, image.format))
        image.load()
        if image.mode in ("P", "PA") and not image.has_transparency_data:
            palette = np.array(image.getpalette() or [0, 0, 0], np.uint8).reshape(-1, 3)
            indices = np.array(image)
            full = np.zeros((256, 3), np.uint8)
            full[: len(palette)] = palette[:256]
            return Picture(path, indices, full)
        if image.mode in ("P", "PA"):
            return _from_array(path, np.array(image.convert("RGBA")))
        if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L"):
            raise UserError(f"{path}: has {image.mode} colours; save it as RGB or grey first")
        return _from_array(path, np.array(image.convert("L") if image.mode == "1" else image))


def _sixteen_bit_colours(content: bytes) -> bool:
    """Whether Pillow would cut the picture's colours to 8 bits: a PNG or PPM with colours of 16."""
    if content.startswith(_PNG):
        depth, colour = content[24], content[25]
        return depth == 16 and colour != 0
    if content.startswith(b"P6"):
        words = [word for line in content[:1000].splitlines() for word in line.partition(b"#")[0].split()]
        return len(words) > 3 and words[3].isdigit() and int(words[3]) > 255
    return False


def _read_deep_png(path: Path, kind: str | None) -> np.ndarray:
    if kind != "PNG" or path.suffix.lower() == ".gz":
        raise UserError(f"{path}: has colours of 16 bits, which are read from PNG and TIFF alone; save it as PNG")
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path), imageIO="PNGImageIO"))


def _from_array(path: Path, pixels: np.ndarray) -> Picture:
    """Grey or RGB of an array (h, w) or (h, w, channels)."""
    notes = []
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1]
        opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
        if (alpha != opaque).any():
            share = float((alpha != opaque).mean())
            raise UserError(
                f"{path}: {share:.1%} of its pixels are transparent, and what shows through is not said; put it on a "
                "background first"
            )
        notes.append("its alpha channel, opaque everywhere, is left out")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] == 3):
        raise UserError(f"{path}: has an array of {'×'.join(map(str, pixels.shape))}; give a grey or RGB picture")
    if 0 in pixels.shape:
        raise UserError(f"{path}: has no pixels; get it again")
    if pixels.dtype.kind not in "uif":
        raise UserError(f"{path}: holds numbers of the kind {pixels.dtype}; save it with whole numbers or float32")
    if pixels.dtype.kind == "f":
        if pixels.dtype.itemsize > 4 and np.abs(pixels[np.isfinite(pixels)]).max(initial=0) > np.finfo(np.float32).max:
            raise UserError(f"{path}: holds values beyond float32 ({np.finfo(np.float32).max:.1g}); scale it first")
        pixels = pixels.astype(np.float32)
    elif pixels.dtype.kind == "i" and pixels.min() >= 0 and pixels.max() < 1 << 16:
        pixels = pixels.astype(np.uint16)  # Pillow holds 16 bits of some formats in 32
    return Picture(path, np.ascontiguousarray(pixels), notes=notes)

"""Reading pictures and masks: what is kept to the bit, and every bad file in a sentence."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import SimpleITK
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adaptmedseg.data.labels import LabelScheme
from adaptmedseg.data.pictures.frame import Frame
from adaptmedseg.data.pictures.masks import read_binary_mask, read_label_map
from adaptmedseg.data.pictures.read import is_picture, picture_stem, read_picture
from adaptmedseg.errors import UserError

SHAPE = (12, 17)
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, SHAPE, np.uint8)
RGB = RNG.integers(0, 256, (*SHAPE, 3), np.uint8)
DEEP = RNG.integers(0, 65536, SHAPE, np.uint16)
DEEP_RGB = RNG.integers(0, 65536, (*SHAPE, 3), np.uint16)


def pil(array: np.ndarray, **options: object) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(array).save(path, **options)


def packed(path: Path) -> None:
    Image.fromarray(RGB).save(path.with_suffix(""))
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))


GOOD: dict[str, tuple[str, Callable[[Path], object], np.ndarray]] = {
    "grey png": ("a.png", pil(GREY), GREY),
    "colour png": ("a.png", pil(RGB), RGB),
    "deep grey png": ("a.png", pil(DEEP), DEEP),
    "deep colour png": (
        "a.png",
        lambda path: SimpleITK.WriteImage(SimpleITK.GetImageFromArray(DEEP_RGB, True), path),
        DEEP_RGB,
    ),
    "grey tiff": ("a.tif", pil(GREY), GREY),
    "packed tiff": ("a.tiff", pil(RGB, compression="tiff_lzw"), RGB),
    "deep tiff": ("a.tif", lambda path: tifffile.imwrite(path, DEEP), DEEP),
    "deep colour tiff": ("a.tif", lambda path: tifffile.imwrite(path, DEEP_RGB, photometric="rgb"), DEEP_RGB),
    "planar tiff": (
        "a.tif",
        lambda path: tifffile.imwrite(path, np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate"),
        RGB,
    ),
    "float tiff": ("a.tif", lambda path: tifffile.imwrite(path, DEEP / np.float32(7)), DEEP / np.float32(7)),
    "ppm": ("a.ppm", pil(RGB), RGB),
    "pgm": ("a.pgm", pil(GREY), GREY),
    "packed ppm": ("a.ppm.gz", packed, RGB),
    "bits": ("a.png", pil(GREY > 99), (GREY > 99).astype(np.uint8) * 255),
    "opaque alpha": ("a.png", pil(np.dstack([RGB, np.full(SHAPE, 255, np.uint8)])), RGB),
    "grey and opaque alpha": ("a.png", pil(np.dstack([GREY, np.full(SHAPE, 255, np.uint8)])), GREY),
}


@pytest.mark.parametrize("case", GOOD)
def test_pixels_are_read_as_they_are_stored(tmp_path: Path, case: str) -> None:
    name, write, expected = GOOD[case]
    write(tmp_path / name)
    picture = read_picture(tmp_path / name)
    assert picture.pixels.dtype == expected.dtype
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.colours().shape == (*SHAPE, 3)
    assert bool(picture.notes) == ("alpha" in case)


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (200, 100, 50)).save(tmp_path / "a.jpg", quality=95)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.shape == (10, 20)
    assert np.abs(picture.pixels.astype(int) - [200, 100, 50]).max() < 4


def test_sixteen_bits_become_eight_by_percentiles() -> None:
    ramp = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    from adaptmedseg.data.pictures.read import Picture

    colours = Picture(Path("a.png"), ramp).colours()
    low, high = 9999 * 0.005, 9999 * 0.995
    expected = np.rint(np.clip((ramp - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(colours, np.repeat(expected[..., None], 3, axis=2))
    flat = Picture(Path("a.png"), np.full((4, 4), 700, np.uint16)).colours()
    assert (flat == 0).all()


def palette_png(path: Path, indices: np.ndarray, colours: list[int]) -> None:
    image = Image.fromarray(indices, "P") if not hasattr(Image, "frombytes") else Image.frombytes(
        "P", (indices.shape[1], indices.shape[0]), indices.tobytes()
    )  # fmt: skip
    image.putpalette(colours)
    image.save(path)


def test_a_palette_is_looked_up_for_pictures_and_kept_for_masks(tmp_path: Path) -> None:
    indices = (GREY % 3).astype(np.uint8)
    palette_png(tmp_path / "a.png", indices, [0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture = read_picture(tmp_path / "a.png")
    table = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]])
    np.testing.assert_array_equal(picture.colours(), table[indices])
    scheme = LabelScheme({"one": (1,), "both": (1, 2)})
    masks = read_label_map(tmp_path / "a.png", SHAPE, scheme).masks
    np.testing.assert_array_equal(masks["one"], indices == 1)
    np.testing.assert_array_equal(masks["both"], indices > 0)
    np.testing.assert_array_equal(read_binary_mask(tmp_path / "a.png", SHAPE, "x").masks["x"], indices > 0)


def cut(write: Callable[[Path], object], share: float = 0.6) -> Callable[[Path], None]:
    def damaged(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return damaged


def animated(path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(path, exif=exif)


see_through = np.dstack([RGB, GREY])
BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("a.png", lambda path: None, "no such file"),
    "folder": ("a.png", lambda path: path.mkdir(), "cannot be read"),
    "empty": ("a.png", lambda path: path.write_bytes(b""), "is an empty file"),
    "text": ("a.png", lambda path: path.write_text("<html>not found</html>", encoding="utf-8"), "is no picture"),
    "cut png": ("a.png", cut(pil(RGB)), "truncated or damaged"),
    "cut jpeg": ("a.jpg", cut(pil(RGB)), "truncated or damaged"),
    "cut tiff": ("a.tif", cut(pil(RGB)), "truncated or damaged"),
    "cut deep tiff": ("a.tif", cut(lambda path: tifffile.imwrite(path, DEEP_RGB, photometric="rgb"), 0.8), "damaged"),
    "cut ppm": ("a.ppm", cut(pil(RGB)), "truncated or damaged"),
    "cut gzip": ("a.ppm.gz", cut(packed), "truncated or damaged"),
    "animated gif": ("a.gif", animated, "holds 2 frames"),
    "animated png": ("a.png", animated, "holds 2 frames"),
    "pages": (
        "a.tif",
        lambda path: tifffile.imwrite(path, np.stack([GREY] * 3), photometric="minisblack"),
        "holds 3 pages",
    ),
    "transparent": ("a.png", pil(see_through), "% of its pixels are transparent"),
    "cmyk": ("a.jpg", lambda path: Image.new("CMYK", (5, 5)).save(path), "has CMYK colours"),
    "turned": ("a.jpg", turned, "is to be turned when it is shown"),
    "deep ppm": ("a.ppm", lambda path: path.write_bytes(b"P6\n2 1\n65535\n" + bytes(12)), "colours of 16 bits"),
    "not finite": (
        "a.tif",
        lambda path: tifffile.imwrite(path, np.full((3, 3), np.nan, np.float32)),
        "9 of its 9 values",
    ),
    "channels": (
        "a.tif",
        lambda path: tifffile.imwrite(path, np.zeros((9, 9, 5), np.uint8), photometric="minisblack", planarconfig=1),
        "has 5 channels, which are no colours; save those that are meant",
    ),
    "negative floats": (
        "a.tif",
        lambda path: tifffile.imwrite(path, GREY.astype(np.float32), photometric="miniswhite"),
        "has white as zero in more than 8 bits",
    ),
    "complex": (
        "a.tif",
        lambda path: tifffile.imwrite(path, GREY.astype(np.complex64), photometric="minisblack"),
        "holds numbers of the kind complex64",
    ),
    "beyond float32": (
        "a.tif",
        lambda path: tifffile.imwrite(path, GREY * 1e300, photometric="minisblack"),
        "holds values beyond float32",
    ),
    "two channels": (
        "a.tif",
        lambda path: tifffile.imwrite(path, np.dstack([GREY, GREY]), photometric="minisblack", planarconfig=1),
        "has 2 channels, which are no colours; save those that are meant",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pictures_are_told_in_a_sentence(tmp_path: Path, case: str) -> None:
    name, write, message = BAD[case]
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        read_picture(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_names() -> None:
    assert [is_picture(Path(name)) for name in ("a.PNG", "b.ppm.gz", "c.nii.gz", "d.dcm")] == [True, True, False, False]
    assert picture_stem(Path("im0001.ah.ppm.gz")) == "im0001.ah"


# Masks ----------------------------------------------------------------------------------


def test_soft_edges_are_cut_at_half_and_told(tmp_path: Path) -> None:
    mask = np.array([[0, 60, 127, 128, 200, 255]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "m.png")
    read = read_binary_mask(tmp_path / "m.png", (1, 6), "x")
    assert read.masks["x"].tolist() == [[False, False, False, True, True, True]]
    assert read.notes == ["4 pixels are neither black nor white; those from 128 of 255 on count as inside"]
    lower = read_binary_mask(tmp_path / "m.png", (1, 6), "x", threshold=0.2)
    assert lower.masks["x"].tolist() == [[False, True, True, True, True, True]]
    Image.fromarray(mask.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_binary_mask(tmp_path / "deep.png", (1, 6), "x").masks["x"], read.masks["x"])


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_eight_bits_in_a_deeper_mask_are_eight(tmp_path: Path, kind: type[np.generic]) -> None:
    tifffile.imwrite(tmp_path / "m.tif", np.array([[0, 255, 255, 0]]).astype(kind), photometric="minisblack")
    assert read_binary_mask(tmp_path / "m.tif", (1, 4), "x").masks["x"].tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(("kind", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_white_as_zero_is_turned_round_in_every_depth(tmp_path: Path, kind: type[np.generic], top: int) -> None:
    stored = GREY.astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, top - stored)


def test_a_mask_darker_than_the_threshold_is_not_called_empty(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"brightest pixel is 100 and those from 128 of 255 on .* --label 100=NAME"):
        read_binary_mask(tmp_path / "m.png", (1, 2), "x")
    assert read_binary_mask(tmp_path / "m.png", (1, 2), "x", threshold=0.3).masks["x"].tolist() == [[False, True]]


@pytest.mark.parametrize("top", [1, 255])
def test_zeros_and_ones_are_a_mask_as_black_and_white_is(tmp_path: Path, top: int) -> None:
    mask = (GREY > 128).astype(np.uint8) * top
    Image.fromarray(np.dstack([mask] * 3)).save(tmp_path / "m.png")
    read = read_binary_mask(tmp_path / "m.png", SHAPE, "x")
    np.testing.assert_array_equal(read.masks["x"], GREY > 128)
    assert read.notes == []


def test_a_sparse_file_holds_overlapping_rows(tmp_path: Path) -> None:
    rows = np.stack([GREY > 100, GREY > 200, np.zeros(SHAPE, bool)])
    scipy.sparse.save_npz(tmp_path / "m.npz", scipy.sparse.csr_matrix(rows.reshape(3, -1)))
    masks = read_label_map(tmp_path / "m.npz", SHAPE, LabelScheme({"a": (1,), "b": (2,), "c": (3,)})).masks
    for name, row in zip("abc", rows, strict=True):
        np.testing.assert_array_equal(masks[name], row)
    with pytest.raises(UserError, match="has 204 pixels and its picture 200"):
        read_label_map(tmp_path / "m.npz", (10, 20), LabelScheme({"a": (1, 2)}))
    np.savez(tmp_path / "other.npz", a=np.array([{}]))
    with pytest.raises(UserError, match="is no sparse matrix"):
        read_label_map(tmp_path / "other.npz", SHAPE, LabelScheme({"a": (1,)}))


SCHEME = LabelScheme({"a": (1,)}, dropped=(9,))
BAD_MASKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "other size": (pil(GREY[:, :9]), "is 9×12 pixels and its picture 17×12"),
    "colours": (pil(RGB), "has 204 colours, which no rule turns into structures"),
    "unknown value": (
        pil((GREY > 9).astype(np.uint8) * 3),
        "holds the value 3 without a name; name it, --label 3=NAME",
    ),
    "soft edges": (pil(GREY), "a black-and-white mask with soft edges is read without --label"),
    "transparent": (pil(see_through), "transparent"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_masks_are_told_in_a_sentence(tmp_path: Path, case: str) -> None:
    write, message = BAD_MASKS[case]
    path = tmp_path / "m.png"
    write(path)
    with pytest.raises(UserError, match=message) as error:
        read_label_map(path, SHAPE, SCHEME)
    assert str(error.value).startswith(str(path))


def test_a_mask_of_fractions_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", np.full(SHAPE, 0.5, np.float32))
    with pytest.raises(UserError, match="holds numbers that are no labels"):
        read_label_map(tmp_path / "m.tif", SHAPE, SCHEME)


# The square that networks look at ---------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(h=st.integers(1, 90), w=st.integers(1, 90), fit=st.sampled_from(["pad", "stretch"]))
def test_a_frame_keeps_places(h: int, w: int, fit: str) -> None:
    import torch

    frame = Frame((h, w), 64, fit)  # type: ignore[arg-type]
    inner = frame.inner
    assert max(inner) == 64
    assert frame.image(np.zeros((h, w, 3), np.uint8)).shape == (3, *inner)
    corners = frame.coordinates(torch.tensor([[-0.5, -0.5], [h - 0.5, w - 0.5]]))
    assert (corners[1] < torch.tensor(inner)).all()
    # Logits that fall along an axis over the square fall over the image too, and a constant stays what it is.
    slope = torch.linspace(3, -3, 16)[:, None].expand(16, 16)
    back = frame.logits(torch.stack([slope, torch.full((16, 16), 2.0)])[None])[0]
    assert back.shape == (2, h, w)
    assert (back[0].diff(dim=0) <= 1e-5).all()
    torch.testing.assert_close(back[1], torch.full((h, w), 2.0))


def test_a_mask_in_the_frame_comes_back() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 15:45] = True
    frame = Frame((40, 60), 120)
    square = frame.mask(mask)
    assert square.shape == (120, 120)
    assert square.sum() == 4 * mask.sum()
    logits = (square.float() * 2 - 1)[None, None]
    np.testing.assert_array_equal(frame.logits(logits)[0, 0].numpy() > 0, mask)

"""What is drawn in the world comes back in the world: every orientation, oblique, sheared, flat, in every format."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from geometry_cases import (
    FORMATS,
    MASK_FORMATS,
    ORIENTATIONS,
    TINY_MM,
    Inside,
    Orientation,
    affine_of,
    affines,
    ball,
    box,
    centres,
    opened,
    opened_by_itk,
    scan,
    shapes,
    write_volume,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptmedseg.data.normalise import crop_slices
from adaptmedseg.data.prepared import PreparedDataset, write_case, write_prepared
from adaptmedseg.data.volume import Grid, read_grid, read_image, read_labels, to_grid, write_mask
from adaptmedseg.inference.loading import LoadedModel
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.segvol import SegVol

DTYPES = ["uint8", "int16", "uint16", "int32", "float32", "float64"]
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def drawn(grid: Grid, inside: Inside) -> np.ndarray:
    """A shape of the world on the canonical array (d, h, w), by the canonical grid's own affine."""
    canonical = grid.canonical()
    return inside(centres(canonical.shape, canonical.affine)).transpose(2, 1, 0)


def assert_drawn(path: Path, affine: np.ndarray, shape: tuple[int, ...], inside: Inside) -> np.ndarray:
    """The voxels of a mask file lie in the world where the shape was drawn; gives their world positions (n, 3)."""
    mask, found = opened(path)
    assert mask.shape == shape
    np.testing.assert_allclose(found, affine, atol=TINY_MM)
    expected, got = centres(shape, affine)[inside(centres(shape, affine))], centres(shape, found)[mask > 0]
    # A centre that lies on the surface to within rounding may fall on either side: never more than a voxel or two.
    assert abs(len(got) - len(expected)) <= 2
    if len(got) == len(expected) and len(got):
        half = np.linalg.norm(affine[:3, :3], axis=0).min() / 2
        assert np.linalg.norm(got.mean(axis=0) - expected.mean(axis=0)) < half
        assert np.abs(got.min(axis=0) - expected.min(axis=0)).max() < half
        assert np.abs(got.max(axis=0) - expected.max(axis=0)).max() < half
    return got


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_a_ball_comes_back_in_every_orientation(tmp_path: Path, orientation: Orientation) -> None:
    shape = (11, 12, 13)
    affine = affine_of(orientation, (1.5, 2.0, 1.1), (10.0, -25.0, 17.0))
    suffix = FORMATS[ORIENTATIONS.index(orientation) % len(FORMATS)]
    image = read_image(write_volume(tmp_path / f"scan{suffix}", scan(shape), affine))
    centre = affine[:3, :3] @ (np.array(shape) - 1) / 2 + affine[:3, 3]
    inside = ball(centre, 5.3)
    for mask_suffix in MASK_FORMATS:
        write_mask(tmp_path / f"mask{mask_suffix}", drawn(image.grid, inside), image.grid)
        got = assert_drawn(tmp_path / f"mask{mask_suffix}", affine, shape, inside)
        # The ball lies wholly inside, so that the drawing itself is the yardstick.
        assert np.linalg.norm(got.mean(axis=0) - centre) < 0.5 * 1.1
        assert np.linalg.norm(got - centre, axis=1).max() == pytest.approx(5.3, abs=1.0)
        itk, itk_affine = opened_by_itk(tmp_path / f"mask{mask_suffix}")
        np.testing.assert_allclose(itk_affine, affine, atol=TINY_MM)
        np.testing.assert_allclose(centres(shape, itk_affine)[itk > 0], got, atol=TINY_MM)


@SETTINGS
@given(
    affine=affines(),
    shape=shapes(),
    suffix=st.sampled_from(FORMATS),
    mask_suffix=st.sampled_from(MASK_FORMATS),
    at=st.tuples(*[st.floats(0, 1)] * 3),
    size=st.floats(0.3, 1.5),
    square=st.booleans(),
)
def test_what_is_drawn_in_the_world_comes_back_in_the_world(
    tmp_path: Path,
    affine: np.ndarray,
    shape: tuple[int, int, int],
    suffix: str,
    mask_suffix: str,
    at: tuple[float, ...],
    size: float,
    square: bool,
) -> None:
    image = read_image(write_volume(tmp_path / f"scan{suffix}", scan(shape), affine))
    centre = affine[:3, :3] @ (np.array(at) * (np.array(shape) - 1)) + affine[:3, 3]
    reach = size * np.linalg.norm(affine[:3, :3], axis=0).max()
    inside = box(centre - reach, centre + reach) if square else ball(centre, reach)
    path = tmp_path / f"mask{mask_suffix}"
    write_mask(path, drawn(image.grid, inside), image.grid)
    assert_drawn(path, affine, shape, inside)
    again = read_labels(path)
    assert (again.grid.shape, again.grid.codes) == (image.grid.shape, image.grid.codes)
    np.testing.assert_array_equal(again.data > 0, drawn(image.grid, inside))
    if {suffix, mask_suffix} <= {".nii", ".nii.gz"}:
        np.testing.assert_array_equal(nib.load(path).affine, nib.load(tmp_path / f"scan{suffix}").affine)


@SETTINGS
@given(affine=affines(), shape=shapes(), suffix=st.sampled_from(FORMATS), dtype=st.sampled_from(DTYPES))
def test_back_on_the_grid_is_what_the_file_holds(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, int, int], suffix: str, dtype: str
) -> None:
    array = scan(shape, dtype) % 251
    image = read_image(write_volume(tmp_path / f"scan{suffix}", array, affine))
    np.testing.assert_array_equal(to_grid(image.data, image.grid), array)
    canonical = image.grid.canonical()
    assert image.data.shape == canonical.shape[::-1]
    assert (np.diag(canonical.affine)[:3] > -TINY_MM).all()
    if np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).max(axis=0).min() > 0.9:  # no axis in between
        assert canonical.codes == "RAS"
    # Every voxel keeps its place in the world.
    world = centres(canonical.shape, canonical.affine).transpose(2, 1, 0, 3)
    for axis in range(3):
        at_home = to_grid(world[..., axis], image.grid)
        np.testing.assert_allclose(at_home, centres(shape, affine)[..., axis], atol=TINY_MM)
    np.testing.assert_allclose(image.spacing, np.linalg.norm(canonical.affine[:3, :3], axis=0)[::-1])


@SETTINGS
@given(affine=affines(), shape=shapes(), pair=st.tuples(st.sampled_from(FORMATS), st.sampled_from(FORMATS)))
def test_one_world_in_two_formats_is_one_canonical_array(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, int, int], pair: tuple[str, str]
) -> None:
    first, second = (
        read_image(write_volume(tmp_path / f"{i}{suffix}", scan(shape), affine)) for i, suffix in enumerate(pair)
    )
    np.testing.assert_array_equal(first.data, second.data)
    assert first.grid.distance_mm(second.grid) < TINY_MM
    np.testing.assert_allclose(first.spacing, second.spacing, rtol=1e-5)


@SETTINGS
@given(affine=affines(), shape=shapes(2), voxel=st.tuples(*[st.floats(0, 1)] * 3))
def test_points_go_to_voxels_and_back(
    affine: np.ndarray, shape: tuple[int, int, int], voxel: tuple[float, ...]
) -> None:
    grid = Grid(shape, affine)
    canonical = grid.canonical()
    world = affine[:3, :3] @ (np.array(voxel) * (np.array(shape) - 1)) + affine[:3, 3]
    inverse = np.linalg.inv(canonical.affine)
    dhw = (inverse[:3, :3] @ world + inverse[:3, 3])[::-1]
    assert (dhw > -TINY_MM).all()
    assert (dhw < np.array(canonical.shape[::-1]) - 1 + TINY_MM).all()
    np.testing.assert_allclose(canonical.affine[:3, :3] @ dhw[::-1] + canonical.affine[:3, 3], world, atol=1e-6)
    # The voxel that holds the point, marked on the canonical array, holds it in the file too.
    mark = np.zeros(canonical.shape[::-1], np.uint8)
    mark[tuple(np.rint(dhw).astype(int).clip(0))] = 1
    at = np.argwhere(to_grid(mark, grid))[0]
    off = np.linalg.inv(affine[:3, :3]) @ (world - (affine[:3, :3] @ at + affine[:3, 3]))
    assert np.abs(off).max() < 0.5 + TINY_MM


@settings(SETTINGS, max_examples=15)
@given(affine=affines(), shape=shapes(4, 9))
def test_prepared_cases_find_back_to_the_scanners_grid(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, int, int]
) -> None:
    array = np.zeros(shape, np.int16)
    inner = tuple(slice(1, max(2, n - 1)) for n in shape)
    array[inner] = 50 + scan(array[inner].shape)
    image = read_image(write_volume(tmp_path / "scan.nii.gz", array, affine))
    truth = image.data > 60

    def write_cases(partial: Path) -> dict[str, object]:
        geometry = write_case(partial / "cases" / "one", image, truth.astype(np.uint8), ["liver"])
        entry = {
            **{"id": "one", "patient": "one", "site": "", "modality": "CT", "split": "test", "fold": None},
            **{"annotated": ["liver"], "voxels": {"liver": int(truth.sum())}, "sources": {}},
        }
        return {"name": "x", "modalities": ["CT"], "structures": ["liver"], "cases": [{**entry, **geometry}]}

    write_prepared(tmp_path / "prepared", write_cases, overwrite=True)
    case = PreparedDataset.open(tmp_path / "prepared").cases()[0]
    full = np.zeros(case.grid.canonical().shape[::-1], bool)
    full[crop_slices(case.crop)] = case.mask("liver")
    write_mask(tmp_path / "mask.nii.gz", full, case.grid)
    mask, found = opened(tmp_path / "mask.nii.gz")
    lost = case.voxels["liver"] - case.voxels_in_crop["liver"]
    assert int((array > 60).sum() - (mask > 0).sum()) == lost
    assert not (mask > 0)[array <= 60].any()
    np.testing.assert_allclose(found, affine, atol=TINY_MM)


class Bright(SegVol):
    """Finds the bright voxels of what it is shown, so that the right mask is known without weights."""

    def embed(self, image: torch.Tensor, modalities: list[str]) -> torch.Tensor:
        return image

    def segment(self, embedding: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        return 200 * (embedding[prompts.image_index, 0] - 0.5)


@settings(SETTINGS, max_examples=20)
@given(affine=affines(), suffix=st.sampled_from(FORMATS), mask_suffix=st.sampled_from(MASK_FORMATS))
def test_a_bright_ball_is_predicted_where_it_lies(
    tmp_path: Path, tiny_base: SegVol, affine: np.ndarray, suffix: str, mask_suffix: str
) -> None:
    shape = (15, 13, 17)
    centre = affine[:3, :3] @ np.array([5.0, 4.0, 9.0]) + affine[:3, 3]
    # About 60 voxels: few enough that the normalisation keeps the noise round the ball as foreground, so that the crop
    # is the whole volume and the view has its voxels.
    inside = ball(centre, (45 * 1000 * Grid(shape, affine).voxel_ml / np.pi) ** (1 / 3))
    array = np.random.default_rng(1).integers(1, 200, shape) + 800 * inside(centres(shape, affine))
    path = write_volume(tmp_path / f"scan{suffix}", array.astype(np.int16), affine)
    view = read_grid(path).canonical().shape[::-1]
    model = Bright(tiny_base.config).eval()
    predictor = Predictor(LoadedModel(model, view, "smooth", [], frozenset(), {}, "bright"), torch.device("cpu"))
    predictor.set_image(path, "T2 MRI")
    predictor.predict(["prostate"]).save(tmp_path / f"mask{mask_suffix}")
    assert_drawn(tmp_path / f"mask{mask_suffix}", affine, shape, inside)


@pytest.mark.parametrize("degrees", [(45.0, 0.0, 0.0), (0.0, 45.0, 0.0), (0.0, 0.0, -45.0), (45.0, 35.26439, 30.0)])
def test_axes_halfway_between_two_directions_are_ordered_alike_in_every_format(
    tmp_path: Path, degrees: tuple[float, float, float]
) -> None:
    for orientation in ORIENTATIONS:
        affine = affine_of(orientation, (0.7, 1.3, 2.0), degrees)
        images = [read_image(write_volume(tmp_path / f"a{s}", scan((3, 4, 5)), affine)) for s in (".nii", ".mha")]
        np.testing.assert_array_equal(images[0].data, images[1].data)
        for image in images:
            for suffix in (".nii", ".nrrd"):
                write_mask(tmp_path / f"mask{suffix}", image.data > 30, image.grid)

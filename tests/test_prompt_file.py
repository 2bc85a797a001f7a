"""The schema of prompts: what it takes, how it refuses, and that a place said in millimetres or voxels is one place."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geometry_cases import ORIENTATIONS, Orientation, affine_of
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmedseg.data.normalise import Crop
from adaptmedseg.data.registry import structure
from adaptmedseg.data.volume import Grid
from adaptmedseg.errors import UserError
from adaptmedseg.inference.prompt_file import PromptSet, parse_prompts, prompt_schema, read_prompts
from adaptmedseg.inference.prompt_options import prompts_from_options
from adaptmedseg.inference.prompt_space import to_structure_prompts
from adaptmedseg.models.prompts import StructurePrompt

DOCS = Path(__file__).resolve().parents[1] / "docs" / "prompts.md"
SHAPE = (12, 9, 7)
GOOD: dict[str, Any] = {
    "version": 1,
    "space": "voxel",
    "prompts": [
        {"structure": "liver", "points": [{"position": [1, 2, 3.5]}, {"position": [0, 0, 0], "label": "negative"}]},
        {"structure": "spleen", "text": False, "box": {"min": [5, 1, 4], "max": [2, 6, 1]}},
    ],
}


def changed(*path: str | int, value: object = None, remove: bool = False) -> dict[str, Any]:
    """GOOD with one value replaced or removed."""
    document = copy.deepcopy(GOOD)
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


def canonical_name(name: str) -> str:
    return structure(name).name


FIRST, POINT, BOX = ("prompts", 0), ("prompts", 0, "points", 0), ("prompts", 1, "box")
BAD: dict[str, tuple[object, tuple[str, ...]]] = {
    "a list": ([1], ("holds list", "an object with version, space and prompts")),
    "no version": (changed("version", remove=True), ("version is missing",)),
    "other version": (changed("version", value=2), ("version is 2", "give 1")),
    "no space": (changed("space", remove=True), ("space is missing",)),
    "space": (changed("space", value="mm"), ("space is 'mm'", "'world_mm' or 'voxel'")),
    "prompts": (changed("prompts", value={"structure": "liver"}), ("prompts is", "a list in brackets")),
    "empty": (changed("prompts", value=[]), ("prompts is empty", "name at least one")),
    "key": (changed("Prompts", value=[]), ("Prompts is no known key", "version, space, prompts")),
    "entry": (changed("prompts", 0, value="liver"), ("prompts[0] is 'liver'", "an object in braces")),
    "entry's key": (changed(*FIRST, "pionts", value=[]), ("prompts[0].pionts (liver)", "text, task, points, box")),
    "point's key": (changed(*POINT, "x", value=1), ("points[0].x (liver)", "position, label")),
    "box's key": (changed(*BOX, "mim", value=[]), ("prompts[1].box.mim (spleen)", "min, max")),
    "no structure": (changed(*FIRST, "structure", remove=True), ("prompts[0].structure is missing",)),
    "structure": (changed(*FIRST, "structure", value="livre"), ("prompts[0] (livre)", "'livre'", "liver")),
    "number as name": (changed(*FIRST, "structure", value=3), ("prompts[0].structure is 3", "a text")),
    "twice": (changed("prompts", 1, "structure", value="Liver"), ("prompts[1] (Liver)", "'liver' is asked twice")),
    "text": (changed(*FIRST, "text", value="yes"), ("prompts[0].text (liver) is 'yes'", "true or false")),
    "label": (changed(*POINT, "label", value="inside"), ("points[0].label", "'inside'", "'positive' or 'negative'")),
    "number": (changed(*POINT, "position", value=["1", 2, 3]), ("position[0]", "'1'", "a number")),
    "truth as number": (changed(*POINT, "position", value=[True, 2, 3]), ("position[0]", "True", "a number")),
    "NaN": (changed(*POINT, "position", value=[1, float("nan"), 3]), ("position[1]", "nan", "a finite number")),
    "infinity": (changed(*BOX, "max", value=[float("inf"), 2, 3]), ("max[0]", "inf", "a finite number")),
    "one number": (changed(*POINT, "position", value=[1]), ("points[0].position has 1 numbers", "3 (x, y, z)")),
    "four numbers": (changed(*BOX, "min", value=[1, 2, 3, 4]), ("box.min has 4 numbers",)),
    "mixed": (changed(*POINT, "position", value=[1, 2]), ("points[1].position has 3 numbers where others have 2",)),
    "flat box": (changed(*BOX, "min", value=[5, 6, 1]), ("prompts[1] (spleen): box is empty", "the same y")),
    "negative only": (changed(*POINT, "label", value="negative"), ("only negative points", "add a positive one")),
    "nothing": (changed("prompts", 1, "box", remove=True), ("asks for nothing", "text to true")),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_told_in_one_sentence(tmp_path: Path, kind: str) -> None:
    document, words = BAD[kind]
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UserError) as told:
        read_prompts(path)
    sentence = str(told.value)
    assert sentence.startswith(f"{path}: ")
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not valid JSON"),
        ('{"version": 1, "version": 1}', "'version' stands twice"),
        ("[" * 100_000, "not valid JSON"),
        ("\ud83c", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_json(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=word):
        read_prompts(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "none.json")


def test_millimetres_have_three_axes() -> None:
    flat = {"version": 1, "space": "world_mm", "prompts": [{"structure": "liver", "points": [{"position": [1, 2]}]}]}
    with pytest.raises(UserError, match="has 2 numbers; give 3"):
        parse_prompts(flat)


def test_the_documented_examples_are_right() -> None:
    examples = re.findall(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    volume, flat = (parse_prompts(json.loads(example)) for example in examples)
    assert volume.structures == ["liver", "left kidney", "spleen"]
    assert [point.label for point in volume.prompts[1].points] == ["positive", "negative"]
    assert flat.located
    (prompt,) = to_structure_prompts(flat, Grid((256, 256, 1), np.eye(4)), ((0, 1), (0, 256), (0, 256)), "slice")
    assert prompt.points is not None
    assert prompt.points.tolist() == [[0, 96, 120]]
    keys = prompt_schema()["$defs"]["StructurePrompts"]["properties"]
    assert all(f"`{key}`" in DOCS.read_text(encoding="utf-8") for key in keys)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["version", "space", "prompts", "structure", "points", "box", "min", "position"]), x)))  # fmt: skip
@settings(max_examples=60)
def test_any_document_is_read_or_refused(document: object) -> None:
    for whole in (document, changed("prompts", 0, value=document), changed(*BOX, value=document)):
        with contextlib.suppress(UserError):
            assert parse_prompts(whole).prompts


# The command line's short forms -----------------------------------------------------------


def test_short_forms() -> None:
    prompts = prompts_from_options(
        ["spleen"], ["Liver:1,-2.5,3", "-liver:4,5,6"], ["spleen:0,0,0,3,3,3"], "voxel", canonical_name
    )
    assert prompts.structures == ["spleen", "liver"]
    assert prompts.space == "voxel"
    spleen, liver = prompts.prompts
    assert spleen.box is not None
    assert [(point.position, point.label) for point in liver.points] == [
        ([1, -2.5, 3], "positive"), ([4, 5, 6], "negative")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("points", "boxes", "space", "words"),
    [
        (["liver"], [], "world", "--point liver: write NAME:x,y,z"),
        (["liver:1,2,x"], [], "world", "--point liver:1,2,x: write"),
        ([":1,2,3"], [], "world", "write NAME"),
        (["livre:1,2,3"], [], "world", "livre"),
        (["liver:1,2"], [], "world", "has 2 numbers; give 3"),
        (["liver:1,2,nan"], [], "world", "a finite number"),
        (["-liver:1,2,3"], [], "world", "only negative points"),
        ([], ["liver:1,2,3"], "world", "--box liver:1,2,3: has 3 numbers"),
        ([], ["liver:1,2,3,1,5,6"], "world", "box is empty"),
        ([], ["liver:1,2,3,4,5,6"] * 2, "world", "has a box already"),
        (["liver:1,2,3"], [], "mm", "--space mm: is unknown"),
    ],
)
def test_short_forms_are_refused_in_a_sentence(points: list[str], boxes: list[str], space: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        prompts_from_options([], points, boxes, space, canonical_name)


# One place, two spaces --------------------------------------------------------------------

numbers = st.floats(0, 1)
unit = st.tuples(numbers, numbers, numbers)


def whole(grid: Grid) -> Crop:
    w, h, d = grid.canonical().shape
    return (0, d), (0, h), (0, w)


def asked(space: str, points: list[np.ndarray], box: np.ndarray | None) -> PromptSet:
    entry: dict[str, Any] = {"structure": "liver", "points": [{"position": point.tolist()} for point in points]}
    if box is not None:
        entry["box"] = {"min": box[0].tolist(), "max": box[1].tolist()}
    return parse_prompts({"version": 1, "space": space, "prompts": [entry]})


def placed(prompts: PromptSet, grid: Grid, crop: Crop | None = None) -> StructurePrompt:
    (prompt,) = to_structure_prompts(prompts, grid, crop or whole(grid), "scan")
    return prompt


def world(grid: Grid, voxels: np.ndarray) -> np.ndarray:
    return voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def spread(fractions: tuple[float, float, float]) -> np.ndarray:
    """A voxel of SHAPE."""
    return np.array(fractions) * (np.array(SHAPE) - 1)


@given(st.sampled_from(ORIENTATIONS), st.floats(-40, 40), unit, unit, unit)
@settings(max_examples=60)
def test_millimetres_and_voxels_say_the_same(
    orientation: Orientation, angle: float, point: tuple, low: tuple, high: tuple
) -> None:
    """Points on any grid; boxes on grids along the axes, where a box is a box in both spaces."""
    voxel, corners = spread(point), np.stack([spread(low), spread(high) + 0.3])
    oblique = Grid(SHAPE, affine_of(orientation, (0.7, 1.3, 4.0), (angle, -angle / 2, 11.0)))
    by_voxel, by_mm = (
        placed(asked("voxel", [voxel], None), oblique),
        placed(asked("world_mm", [world(oblique, voxel)], None), oblique),
    )
    assert by_voxel.points is not None
    assert by_mm.points is not None
    np.testing.assert_allclose(by_voxel.points, by_mm.points, atol=1e-4)
    square = Grid(SHAPE, affine_of(orientation, (0.7, 1.3, 4.0), (0.0, 0.0, 0.0)))
    by_voxel, by_mm = (
        placed(asked("voxel", [], corners), square),
        placed(asked("world_mm", [], world(square, corners)), square),
    )
    assert by_voxel.box is not None
    assert by_mm.box is not None
    np.testing.assert_allclose(by_voxel.box, by_mm.box, atol=1e-4)
    assert (by_voxel.box[0] <= by_voxel.box[1]).all()
    assert by_voxel.kind == (True, 0, True)


@given(st.sampled_from(ORIENTATIONS), st.floats(-40, 40), unit)
@settings(max_examples=40)
def test_a_point_lands_on_its_own_voxel(orientation: Orientation, angle: float, fractions: tuple) -> None:
    """The canonical volume shows at the point's (d, h, w) what the file shows at its (x, y, z)."""
    grid = Grid(SHAPE, affine_of(orientation, (0.7, 1.3, 4.0), (angle, 5.0, 0.0)))
    voxel = np.rint(spread(fractions)).astype(int)
    prompt = placed(asked("voxel", [voxel.astype(float)], None), grid)
    assert prompt.points is not None
    found = prompt.points[0].numpy()[::-1]
    np.testing.assert_allclose(
        world(grid.canonical(), found.astype(np.float64)), world(grid, voxel.astype(np.float64)), atol=1e-4
    )


@given(st.sampled_from(ORIENTATIONS), st.floats(-40, 40), unit, unit)
@settings(max_examples=40)
def test_an_oblique_box_is_the_tightest_round_its_corners(
    orientation: Orientation, angle: float, low: tuple, high: tuple
) -> None:
    grid = Grid(SHAPE, affine_of(orientation, (1.0, 1.3, 2.0), (angle, angle / 3, -7.0)))
    corners = world(grid, np.stack([spread(low), spread(high)]))
    corners = np.stack([corners.min(axis=0), corners.max(axis=0) + 0.1])
    extent = world(grid, np.array(list(product(*[(-0.5, n - 0.5) for n in SHAPE]))))
    corners = np.clip(corners, extent.min(axis=0), extent.max(axis=0))
    box = placed(asked("world_mm", [], corners), grid).box
    assert box is not None
    eight = np.array(list(product(*corners.T)))
    canonical = grid.canonical()
    voxels = (eight - canonical.affine[:3, 3]) @ np.linalg.inv(canonical.affine[:3, :3]).T
    last = np.array(canonical.shape) - 1
    tight = np.clip([voxels.min(axis=0), voxels.max(axis=0)], 0, last)[:, ::-1]
    np.testing.assert_allclose(box, tight, atol=1e-3)


def test_prompts_are_counted_from_the_crop() -> None:
    grid = Grid(SHAPE, np.diag([-1.0, 1.0, 1.0, 1.0]))  # x runs to the left, so it turns round
    crop: Crop = ((1, 6), (2, 9), (3, 11))
    prompt = placed(asked("voxel", [np.array([2.0, 4, 3])], np.array([[0.0, 0, 0], [11, 5, 3]])), grid, crop)
    assert prompt.points is not None
    assert prompt.box is not None
    assert prompt.points.tolist() == [[2, 2, 6]]
    assert prompt.box.tolist() == [[0, 0, 0], [2, 3, 7]]  # cut to the crop


@pytest.mark.parametrize("space", ["voxel", "world_mm"])
def test_outside_is_refused(space: str) -> None:
    grid = Grid(SHAPE, affine_of(((0, 1, 2), (1, -1, 1)), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0)))
    crop: Crop = ((2, 7), (0, 9), (0, 12))

    def place(*voxels: tuple[float, float, float]) -> list[np.ndarray]:
        return [np.array(v, float) if space == "voxel" else world(grid, np.array(v, float)) for v in voxels]

    for voxel in ((12.6, 3, 3), (-0.6, 3, 3), (3, 3, 1e7)):
        with pytest.raises(
            UserError, match=r"prompts\[0\] \(liver\): points\[0\] at .* outside the image scan .*space"
        ):
            placed(asked(space, place(voxel), None), grid)
    placed(asked(space, place((11.5, 8.5, -0.5)), None), grid)  # the rim itself is inside
    for corners in (((1, 1, 1), (13, 3, 3)), ((20, 20, 20), (30, 30, 30))):
        with pytest.raises(UserError, match=r"box at .* reaches outside the image scan"):
            placed(asked(space, [], np.stack(place(*corners))), grid)
    with pytest.raises(UserError, match="empty margin"):
        placed(asked(space, place((3, 3, 0)), None), grid, crop)
    with pytest.raises(UserError, match="empty margin"):
        placed(asked(space, [], np.stack(place((3, 3, 0), (5, 5, 1)))), grid, crop)


def test_a_negative_point_off_the_crop_is_left_out() -> None:
    prompts = parse_prompts(changed(*FIRST, "points", 1, "position", value=[3, 3, 0]))
    first, second = to_structure_prompts(prompts, Grid(SHAPE, np.eye(4)), ((1, 7), (0, 9), (0, 12)), "scan")
    assert first.labels is not None
    assert first.labels.tolist() == [1]
    assert (first.text, second.text, second.points) == (True, False, None)


def test_two_coordinates_need_an_image_of_one_slice() -> None:
    with pytest.raises(UserError, match="has 2 numbers, but scan has three axes"):
        placed(asked("voxel", [np.array([1.0, 2.0])], None), Grid(SHAPE, np.eye(4)))

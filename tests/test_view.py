"""The local page: who may ask the server what, and that a click lands where it was seen."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
import torch
from adaptmedseg.preprocessing.folder import prepare_folder
from browser import CHROMIUM, Browser
from small_cases import MODALITY, call, small_folder

from adaptmedseg.cli.view import prepared_case, reference_of
from adaptmedseg.data.normalise import crop_slices
from adaptmedseg.data.pictures.write import write_png
from adaptmedseg.data.prepared import whole_labels
from adaptmedseg.data.shown import shown_colours, shown_image
from adaptmedseg.data.volume import read_image, read_labels
from adaptmedseg.errors import UserError
from adaptmedseg.inference.pictures import PicturePredictor
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.view.niivue import niivue_module, with_class
from adaptmedseg.view.picture_scene import PictureScene
from adaptmedseg.view.scene import VolumeScene
from adaptmedseg.view.server import ViewServer

SHAPE = (40, 48, 20)  # of the file, whose axes run to the left, posterior and inferior
BLOB = (slice(4, 12), slice(28, 38), slice(2, 8))  # file voxels: right, posterior, superior
AXIAL = (240.0, 600.0)  # a place on the axial plane of the page
TURN = 0.2  # radians by which the grid is oblique


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey block with one bright blob at the patient's right, on an oblique grid in LPI order."""
    rng = np.random.default_rng(0)
    data = np.zeros(SHAPE, np.float32)
    data[2:-2, 2:-2, 1:-1] = 60 + rng.normal(0, 2, (36, 44, 18))
    data[BLOB] = 250
    turn = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-2.0, -2.0, -4.0])
    affine[:3, 3] = [30, 40, 50]
    path = tmp_path_factory.mktemp("view") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture(scope="module")
def scene(scan: Path) -> VolumeScene:
    predictor = Predictor.load("small", device="cpu")
    predictor.set_image(scan, "CT")
    return VolumeScene(predictor, "scan", "CT")


@pytest.fixture(scope="module")
def server(scene: VolumeScene) -> Iterator[ViewServer]:
    with ViewServer(scene, niivue_module()) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def request(
    server: ViewServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, headers)
    answer = connection.getresponse()
    result = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return result


def at_point(position: list[float]) -> dict[str, Any]:
    points = [{"position": position, "label": "positive"}]
    return {"version": 1, "space": "voxel", "prompts": [{"structure": "prostate", "text": False, "points": points}]}


def test_without_the_token_everything_is_refused(server: ViewServer) -> None:
    for path in ("/", "/index.html", "/scene.json", "/image.nii", f"/{server.token[:-1]}/", f"/{server.token}", "//"):
        assert request(server, "GET", path)[0] == 403, path
    assert request(server, "POST", "/ask", {})[0] == 403
    assert request(server, "GET", f"/{server.token}/")[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:80", ""])
def test_a_name_that_was_made_to_point_here_is_refused(server: ViewServer, host: str) -> None:
    assert request(server, "GET", f"/{server.token}/", Host=host)[0] == 403


def test_pages_of_other_origins_may_not_ask(server: ViewServer) -> None:
    path, question = f"/{server.token}/ask", {"prompts": at_point([8, 24, 10])}
    assert request(server, "POST", path, question, Origin="http://evil.example")[0] == 403
    assert request(server, "POST", path, question, Origin="null")[0] == 403
    assert request(server, "POST", path, question, Origin=f"http://127.0.0.1:{server.server_port}")[0] == 200


def test_it_listens_on_this_machine_alone_and_lets_nothing_be_loaded_from_elsewhere(server: ViewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    headers = request(server, "GET", f"/{server.token}/")[1]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "http" not in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert len(server.token) >= 32


def test_paths_lead_to_no_other_file(server: ViewServer) -> None:
    for name in ("../server.py", "%2e%2e/server.py", "index.html", "nothing"):
        assert request(server, "GET", f"/{server.token}/{name}")[0] == 404


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no json", "is JSON"),
        ([1], "holds prompts"),
        ({"prompts": None}, "give an object"),
        ({"prompts": {"version": 1, "space": "voxel", "prompts": []}}, "prompts is empty"),
        ({"prompts": at_point([400, 0, 0])}, "lies outside the image"),
        ({"prompts": at_point([8, 24, 10]), "zoom": "yes"}, "zoom"),
    ],
)
def test_bad_questions_get_one_sentence(server: ViewServer, body: Any, words: str) -> None:
    status, _, content = request(server, "POST", f"/{server.token}/ask", body)
    assert status == 400
    sentence = json.loads(content)["error"]
    assert words in sentence
    assert "\n" not in sentence


def test_long_questions_are_not_read(server: ViewServer) -> None:
    status, _, content = request(server, "POST", f"/{server.token}/ask", b"", **{"Content-Length": str(1 << 30)})
    assert status == 400
    assert b"bytes" in content


def test_a_length_in_other_digits_is_no_length(server: ViewServer) -> None:
    status, _, reply = request(server, "POST", f"/{server.token}/ask", None, **{"Content-Length": "\u00b2"})
    assert status == 400, reply


def test_a_fault_of_ours_is_told_to_the_page(server: ViewServer) -> None:
    ended = threading.Event()
    told: list[BaseException | None] = []

    def handle_error(self: ViewServer, *_: object) -> None:
        told.append(sys.exc_info()[1])
        ended.set()

    fails = mock.patch.object(VolumeScene, "ask", side_effect=RuntimeError("no memory left"))
    with fails, mock.patch.object(ViewServer, "handle_error", handle_error):
        status, _, reply = request(server, "POST", f"/{server.token}/ask", {"prompts": []})
        assert ended.wait(60)  # the terminal is told after the page
    assert status == 500
    assert b"RuntimeError: no memory left" in reply
    assert [str(error) for error in told] == ["no memory left"]


def test_a_taken_port_is_told(server: ViewServer, scene: VolumeScene) -> None:
    with pytest.raises(UserError, match="is in use; choose another"):
        ViewServer(scene, b"", server.server_port)


def test_an_answer_is_the_predictors_and_is_saved_on_the_scans_grid(
    server: ViewServer, scene: VolumeScene, scan: Path, tmp_path: Path
) -> None:
    document = at_point([8.0, 30.0, 5.0])
    status, headers, content = request(server, "POST", f"/{server.token}/ask", {"prompts": document, "zoom": False})
    assert status == 200
    mask = np.frombuffer(zlib.decompress(content), np.uint8).reshape(SHAPE[::-1])
    direct = scene.predictor.predict(prompts=scene.predictor.parse(document), zoom=False).masks["prostate"]
    assert np.array_equal(mask, direct)
    facts = json.loads(headers["X-Answer"])
    assert facts["voxels"] == int(direct.sum())
    assert facts["origin"] == "user points"
    _, headers, content = request(server, "POST", f"/{server.token}/save", {})
    path = tmp_path / json.loads(headers["X-File-Name"])
    path.write_bytes(content)
    saved, image = nib.load(path), nib.load(scan)
    assert saved.shape == image.shape
    assert np.allclose(saved.affine, image.affine)
    assert path.name == "scan_prostate.nii.gz"


def test_shown_voxels_are_the_canonical_ones(scan: Path) -> None:
    volume = read_image(scan)
    shown = nib.Nifti1Image.from_bytes(shown_image(volume.data, volume.spacing))
    assert nib.aff2axcodes(shown.affine) == ("R", "A", "S")
    assert np.allclose(np.asanyarray(shown.dataobj).transpose(2, 1, 0), volume.data, atol=0.01)
    assert np.allclose(shown.header.get_zooms(), [2, 2, 4])


def test_the_top_row_of_a_picture_is_shown_on_top() -> None:
    colours = np.zeros((5, 7, 3), np.uint8)
    colours[0, 6] = [10, 20, 30]
    shown = np.asanyarray(nib.Nifti1Image.from_bytes(shown_colours(colours)).dataobj)
    assert shown.shape == (7, 5, 1)
    assert tuple(shown[6, 4, 0]) == (10, 20, 30)


def test_the_class_is_found_in_the_script_or_the_release_is_refused() -> None:
    script = (
        'x;console.log("Creating new Niivue instance");let B=A.get("o")??{},C=f(B);v=new $t2(C)}export{w as default}'
    )
    assert with_class(script).endswith("export { $t2 as Niivue };\n")
    with pytest.raises(ValueError, match="0 classes"):
        with_class("export {}")


def test_a_reference_of_another_grid_is_refused(scene: VolumeScene, scan: Path, tmp_path: Path) -> None:
    image = nib.load(scan)
    labels = (np.asanyarray(image.dataobj) > 200).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / "same.nii.gz")
    moved = image.affine.copy()
    moved[0, 3] += 5
    nib.save(nib.Nifti1Image(labels, moved), tmp_path / "moved.nii.gz")
    reference = reference_of(tmp_path / "same.nii.gz", scene.predictor)
    assert reference.labels.sum() == 8 * 10 * 6
    assert reference.names == {1: "label 1"}
    with pytest.raises(UserError, match="lies on another grid"):
        reference_of(tmp_path / "moved.nii.gz", scene.predictor)


def test_the_command_prints_the_address_and_ends_by_ctrl_c(scan: Path) -> None:
    with mock.patch.object(ViewServer, "serve_forever", side_effect=KeyboardInterrupt):
        outcome = call("view", scan, "--modality", "CT", "--no-open")
    assert outcome.code == 0
    assert outcome.out.startswith("http://127.0.0.1:")
    assert "Traceback" not in outcome.err


def test_a_prepared_case_is_shown_with_its_truth_on_the_whole_grid(tmp_path: Path) -> None:
    source = small_folder(tmp_path / "source", 2)
    labels = {1: "prostate", 2: "bladder"}
    dataset = prepare_folder(
        source,
        tmp_path / "prepared",
        name="small",
        modality=MODALITY,
        labels=labels,
        test_fraction=1.0,
        val_fraction=0.0,
    )
    case = prepared_case(dataset, "case_1")
    predictor = Predictor.load("small", device="cpu")
    predictor.set_case(case)
    whole = read_image(source / "images" / "case_1.nii.gz")
    assert predictor.volume.data.shape == whole.data.shape
    inside = crop_slices(case.crop)
    assert np.array_equal(predictor.volume.data[inside], whole.data[inside])
    labels_found, names = whole_labels(case)
    assert names == labels
    truth = read_labels(source / "labels" / "case_1.nii.gz").data
    assert np.array_equal(labels_found[inside], truth[inside])
    by_name = predictor.predict(["prostate"], zoom=False).masks["prostate"]
    assert not np.delete(by_name, range(inside[0].start, inside[0].stop), axis=0).any()
    with pytest.raises(UserError, match="has no case 'nobody'; it has case_0, case_1"):
        prepared_case(dataset, "nobody")


def test_a_pictures_prompts_are_pixels_from_its_top(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    write_png(tmp_path / "photo.png", colours)
    predictor = PicturePredictor.load("fresh:sam-small", device="cpu")
    predictor.set_image(tmp_path / "photo.png")
    scene = PictureScene(predictor, tmp_path / "photo.png")
    matrix = np.array(scene.facts()["to_file"])
    assert (matrix @ [3, 29, 0, 1]).tolist() == [3, 0, 0, 1]
    document = {"version": 1, "space": "voxel", "prompts": [
        {"structure": "object", "text": False, "box": {"min": [5, 4], "max": [20, 15]}}
    ]}  # fmt: skip
    reply = scene.ask(document, None)
    box = StructurePrompt("object", False, box=torch.tensor([[4.0, 5.0], [15.0, 20.0]]))
    assert np.array_equal(reply.mask[::-1], predictor.predict([box])[0].mask)
    assert scene.save().name == "photo_mask.png"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scan.nii.gz"], "--modality is missing"),
        (["photo.png", "--modality", "CT"], "is for volumes"),
        (["case", "--data", "nowhere"], "no prepared data set"),
        (["nowhere.nii.gz", "--modality", "CT"], "does not exist"),
        (["photo.png", "--model", "small"], "is one of volumes"),
    ],
)
def test_bad_calls_get_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "photo.png", np.zeros((4, 4, 3), np.uint8))
    outcome = call("view", *arguments, "--no-open")
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_click_lands_on_what_was_seen(server: ViewServer, scene: VolumeScene, tmp_path: Path) -> None:
    """The blob is found in a screenshot by its brightness alone, and the click is one on it, in file voxels."""
    asked: list[dict[str, Any]] = []
    answer = scene.ask

    def listen(document: Any, zoom: bool | None) -> Any:
        asked.append(document)
        return answer(document, zoom)

    scene.ask = listen  # type: ignore[method-assign]
    settled = "!/loading|asking/.test(document.getElementById('status').textContent)"
    with Browser(tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=server.url)
        browser.wait_for("document.getElementById('status') !== null")
        browser.wait_for(settled)
        browser.evaluate("document.getElementById('named').click()")
        browser.evaluate("document.getElementById('clear').click()")
        browser.wait_for(settled)
        asked.clear()
        for _ in range(SHAPE[2]):
            browser.mouse("mouseWheel", *AXIAL, deltaX=0, deltaY=-100)
        steps = 0
        while not (bright := browser.picture()[400:, :420].min(axis=2) > 225).any():
            browser.mouse("mouseWheel", *AXIAL, deltaX=0, deltaY=100)
            steps += 1
        assert steps == BLOB[2].start
        rows, columns = np.nonzero(bright)
        middle = rows[len(rows) // 2]
        y, x = float(middle + 400), float(np.median(columns[rows == middle]))
        browser.click(x, y)
        browser.wait_for(settled)
        browser.wait_for("document.querySelectorAll('#list .positive').length === 1")
        point = asked[-1]["prompts"][0]["points"][0]["position"]
        for place, part in zip(point, BLOB, strict=True):
            assert part.start - 0.5 <= place <= part.stop - 0.5
        assert point[2] == BLOB[2].start
        browser.drag([(x - 30, y - 20), (x, y), (x + 30, y + 20)])
        browser.wait_for("document.querySelectorAll('#list .box').length === 1")
        browser.wait_for(settled)
        box = asked[-1]["prompts"][0]["box"]
        low, high = np.sort([box["min"], box["max"]], axis=0)
        assert (low <= np.array(point)).all()
        assert (high >= np.array(point)).all()
        assert not [
            address for address in browser.addresses() if not address.startswith((server.url, "data:", "blob:"))
        ]
        assert not browser.complaints()

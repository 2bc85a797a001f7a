"""A picture with its model, as a scene of one slice."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from adaptmedseg.data.pictures.read import picture_stem
from adaptmedseg.data.pictures.write import write_png
from adaptmedseg.data.shown import shown_colours, shown_labels
from adaptmedseg.errors import UserError
from adaptmedseg.inference.picture_space import to_pixel_prompts
from adaptmedseg.inference.pictures import PicturePredictor
from adaptmedseg.inference.prompt_file import parse_prompts
from adaptmedseg.view.scene import Download, Reply


class PictureScene:
    """A picture that a predictor holds; its lowest row is the scene's first, and prompts are pixels (x, y)."""

    def __init__(self, predictor: PicturePredictor, path: Path):
        self.predictor, self.path = predictor, path
        self._last: np.ndarray | None = None

    def facts(self) -> dict[str, Any]:
        height, width = self.predictor.picture.shape
        upside_down = np.diag([1.0, -1.0, 1.0, 1.0])
        upside_down[1, 3] = height - 1
        return {
            "name": self.path.name,
            "kind": "picture",
            "modality": "",
            "model": self.predictor.loaded.lineage,
            "shape": [width, height, 1],
            "spacing": [1.0, 1.0, 1.0],
            "to_file": upside_down.tolist(),
            "to_world": None,
            "structures": [],
            "named": False,
            "zoom": False,
            "window": None,
            "reference": None,
            "notes": list(self.predictor.picture.notes),
        }

    def image(self) -> bytes:
        return shown_colours(self.predictor.picture.colours())

    def empty_mask(self) -> bytes:
        return shown_labels(np.zeros((1, *self.predictor.picture.shape), np.uint8), (1.0, 1.0, 1.0))

    def reference(self) -> bytes | None:
        return None

    def ask(self, document: object, zoom: bool | None) -> Reply:
        prompts = parse_prompts(document, canonical=str)
        asked = to_pixel_prompts(prompts, self.predictor.picture.shape, self.path.name)
        if len(asked) != 1:
            raise UserError("the page asks for one structure at a time")
        answer = self.predictor.predict(asked)[0]
        self._last = answer.mask
        pixels = int(np.count_nonzero(answer.mask))
        facts = {
            "structure": answer.structure,
            "origin": f"the model's own estimate of its overlap {answer.iou:.2f}",
            "windows": 0,
            "size": f"{pixels} pixels",
            "voxels": pixels,
        }
        return Reply(np.ascontiguousarray(answer.mask[::-1]).view(np.uint8), facts)

    def save(self) -> Download:
        if self._last is None:
            raise UserError("there is no mask yet; click into the image first")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mask.png"
            write_png(path, self._last.astype(np.uint8) * 255)
            return Download(f"{picture_stem(self.path)}_mask.png", path.read_bytes())

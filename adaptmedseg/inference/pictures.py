"""The Python interface for pictures: set an image once, ask by points, boxes and masks as often as one likes."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptmedseg.data.pictures.frame import Frame
from adaptmedseg.data.pictures.read import Picture, read_picture
from adaptmedseg.device import pick_device
from adaptmedseg.inference.picture_loading import LoadedPictureModel, load_picture_model
from adaptmedseg.inference.precision import inference_precision
from adaptmedseg.models.prompts import Prompts, StructurePrompt, batch_prompts
from adaptmedseg.models.sam import ALTERNATIVES, SINGLE, Masks

KEPT = 8  # images whose embeddings wait to be asked again: 4 MB each at SAM's size
DECODED_AT_ONCE = 32  # prompts: each takes some 30 MB in SAM's decoder


@dataclass(frozen=True, eq=False)
class PictureAnswer:
    """One structure of one picture: `logits` (h, w), float32, on its own pixels; `iou`, the model's own estimate of the
    mask's overlap with the truth; `alternative`: which of the model's masks it is, 0 for the one for clear prompts."""

    structure: str
    logits: np.ndarray
    iou: float
    alternative: int

    @property
    def mask(self) -> np.ndarray:
        """Boolean mask (h, w)."""
        return self.logits > 0

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities (h, w), float32."""
        return 1 / (1 + np.exp(-np.clip(self.logits, -80, 80)))


class PicturePredictor:
    """Encode a picture once, then predict from points and boxes.

    >>> predictor = PicturePredictor.load("sam_b.safetensors")
    >>> predictor.set_image("photo.png")
    >>> box = torch.tensor([[40.0, 30.0], [90.0, 80.0]])  # (h, w): lower and upper corner
    >>> predictor.predict([StructurePrompt("lesion", text=False, box=box)])[0].mask

    Embeddings of the last pictures are kept, so that setting one of them again costs nothing.
    """

    def __init__(self, loaded: LoadedPictureModel, device: torch.device, *, bf16: bool = True):
        self.loaded, self.device, self.bf16 = loaded, device, bf16
        self.model = loaded.model.to(device).eval()
        self.timings = {"read": 0.0, "encode": 0.0, "decode": 0.0}
        self.encoded = 0
        self._kept: OrderedDict[str, Any] = OrderedDict()  # what `encode` gives is the model's own affair
        self._picture: Picture | None = None
        self._embedding: Any = None

    @classmethod
    def load(cls, name: str, device: str = "auto", *, exact: bool = False) -> PicturePredictor:
        """A model file, run folder or known name; `exact` asks for float32 throughout."""
        return cls(load_picture_model(name), pick_device(device), bf16=not exact)

    @property
    def picture(self) -> Picture:
        """The picture that was set last."""
        if self._picture is None:
            raise RuntimeError("set_image comes before predict")
        return self._picture

    @property
    def frame(self) -> Frame:
        """How the picture lies in the square that the model looks at."""
        return Frame(self.picture.shape, self.loaded.size, self.loaded.fit)

    def set_image(self, image: str | Path | Picture) -> None:
        """Read and encode a picture, unless it is among the last ones. Raises UserError as `read_picture`."""
        started = time.perf_counter()
        picture = image if isinstance(image, Picture) else read_picture(Path(image))
        colours = picture.colours()
        self.timings = {"read": time.perf_counter() - started, "encode": 0.0, "decode": 0.0}
        self._picture = picture
        key = hashlib.sha256(repr(colours.shape).encode() + colours.tobytes()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self._encode(colours)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        self._embedding = self._kept[key]

    def _encode(self, colours: np.ndarray) -> Any:
        started = time.perf_counter()
        with inference_precision(self.device, self.bf16):
            square = self.model.normalise(self.frame.image(colours).to(self.device))
            embedding = self.model.encode(square[None])
        self.encoded += 1
        self.timings["encode"] = time.perf_counter() - started
        return embedding

    def predict(self, prompts: Sequence[StructurePrompt]) -> list[PictureAnswer]:
        """One mask a prompt, in their order; coordinates are pixels (h, w) of the picture.

        A single point may mean several things: of a model that was trained to offer alternatives, the one is taken that
        it thinks best, as in SAM.
        """
        groups: defaultdict[tuple[bool, int, bool], list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            groups[prompt.kind].append(index)
        answers: dict[int, PictureAnswer] = {}
        for (_, points, box), indices in groups.items():
            masks = ALTERNATIVES if self.loaded.alternatives and points == 1 and not box else SINGLE
            for start in range(0, len(indices), DECODED_AT_ONCE):
                rows = indices[start : start + DECODED_AT_ONCE]
                answers |= zip(rows, self._decode([prompts[row] for row in rows], masks), strict=True)
        return [answers[index] for index in range(len(prompts))]

    def _decode(self, asked: Sequence[StructurePrompt], masks: Masks) -> list[PictureAnswer]:
        """Prompts of one kind, in one batch."""
        if self._embedding is None:
            raise RuntimeError("set_image comes before predict")
        started, frame = time.perf_counter(), self.frame
        batch = _in_frame(batch_prompts(asked, [0] * len(asked), ["picture"]), frame).to(self.device)
        with inference_precision(self.device, self.bf16):
            output = self.model.decode(self._embedding, batch, masks)
            best = output.iou.float().argmax(dim=1, keepdim=True)
            chosen = torch.take_along_dim(output.logits.float(), best[..., None, None], dim=1)
            logits = frame.logits(chosen)[:, 0].cpu().numpy()
            iou = torch.take_along_dim(output.iou.float(), best, dim=1)[:, 0].cpu()
        self.timings["decode"] += time.perf_counter() - started
        return [
            PictureAnswer(prompt.structure, logits[row], float(iou[row]), masks[int(best[row, 0])])
            for row, prompt in enumerate(asked)
        ]


def _in_frame(prompts: Prompts, frame: Frame) -> Prompts:
    """Prompts on a picture's pixels to the square's."""
    points, boxes = (None if x is None else frame.coordinates(x) for x in (prompts.points, prompts.boxes))
    return Prompts(
        prompts.image_index, prompts.structures, prompts.modalities, False, points, prompts.labels, boxes, prompts.masks
    )

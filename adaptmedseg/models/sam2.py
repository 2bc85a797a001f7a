"""SAM 2's image model (Ravi et al. 2024, arXiv:2408.00714) as a zero-shot baseline: transformers' implementation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptmedseg.errors import UserError
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.sam import SINGLE, Masks, SamOutput, standardise

MISSING = "SAM 2 needs the package transformers; install it: pip install 'adaptmedseg[sam2]'"
EXTRA = "mask 0 and the alternatives 1 to 3 are two questions to SAM 2; ask one"


class Sam2Baseline(nn.Module):
    """transformers' Sam2Model under the interface of `models.sam.Sam`; the image is stretched to the square.

    An embedding is the three feature maps (b, c, h, w) that its decoder needs. It is asked by points and boxes.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.size = int(model.config.vision_config.backbone_config.image_size[0])

    def normalise(self, image: Tensor) -> Tensor:
        """One image (3, s, s) with values 0 to 255 to the encoder's input."""
        return standardise(image.float())

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (b, 3, s, s) to their feature maps, from fine to coarse."""
        return tuple(self.model.get_image_embeddings(images))

    def decode(self, embedding: tuple[Tensor, ...], prompts: Prompts, masks: Masks = SINGLE) -> SamOutput:
        """n prompts about b images, in pixels (h, w) of the input, to the masks asked for, as in `Sam.decode`."""
        if 0 in masks and len(masks) > 1:
            raise ValueError(EXTRA)
        if prompts.masks is not None:
            raise ValueError("SAM 2 is asked by points and boxes here, not by masks")
        outputs = []
        for image in range(len(embedding[0])):
            rows = (prompts.image_index == image).nonzero()[:, 0]
            if len(rows):
                maps = [part[image : image + 1] for part in embedding]
                outputs.append((rows, self._ask(maps, prompts.select(prompts.image_index == image), 0 not in masks)))
        order = torch.cat([rows for rows, _ in outputs]).argsort()
        logits, iou = (torch.cat([output[i] for _, output in outputs])[order] for i in (0, 1))
        keep = [0] if 0 in masks else [mask - 1 for mask in masks]
        return SamOutput(logits[:, keep], iou[:, keep])

    def _ask(self, maps: list[Tensor], prompts: Prompts, multimask: bool) -> tuple[Tensor, Tensor]:
        """Logits (n, m, h', w') and estimates (n, m) of the prompts of one image."""
        output = self.model(
            image_embeddings=maps,
            input_points=None if prompts.points is None else prompts.points.flip(-1)[None],
            input_labels=None if prompts.labels is None else prompts.labels[None].int(),
            input_boxes=None if prompts.boxes is None else prompts.boxes.flip(-1).flatten(1)[None],
            multimask_output=multimask,
        )
        return output.pred_masks[0], output.iou_scores[0]


def load_sam2(source: str) -> Sam2Baseline:
    """SAM 2 from a folder in transformers' format (config.json and model.safetensors), or its name on the hub.

    Pickled weights are refused. Raises UserError where the package or the model is missing.
    """
    try:
        from transformers import Sam2Model
        from transformers.utils import logging
    except ImportError:
        raise UserError(MISSING) from None
    if not Path(source).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        # The hub's names are OWNER/NAME: a misspelt folder is not looked for there.
        raise UserError(f"sam2:{source}: is no folder; give one with config.json and model.safetensors")
    logging.disable_progress_bar()
    try:
        model = Sam2Model.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"sam2:{source}: cannot be loaded ({reason}); give a folder with config.json and model.safetensors"
        ) from None
    return Sam2Baseline(model.eval())

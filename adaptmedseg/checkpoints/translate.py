"""SegVol's published checkpoint layouts: what their keys are called here, and which keys are left out on purpose.

The two tables are all there is to know; `translate` is a pure function over them. Facts: the publisher's loading code
(BAAI-DCAI/SegVol, `build_sam.py`), MONAI's ViT, whose parameter names the image encoder keeps, and the masked-image
pre-training whose head stands beside the encoder in `vit_pretrain.ckpt`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """One way in which SegVol's weights are stored: `prefix` of their keys becomes `target`.

    A file has the layout in which most of its keys begin with prefix + `sign`.
    """

    name: str
    known_from: str
    prefix: str
    target: str
    sign: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """Keys that are left out by name: the whole key, as in the file or as it is called here, matches `pattern`."""

    name: str
    pattern: str
    reason: str

    def covers(self, key: str) -> bool:
        return re.fullmatch(self.pattern, key) is not None


PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.", "text_encoder.")
ENCODER = PARTS[:1]
LAYOUTS = (
    Layout("project release", "SegVol_v1.pth", "module.", "", "image_encoder.", PARTS),
    Layout("hub release", "pytorch_model.bin", "model.", "", "image_encoder.", PARTS),
    Layout("encoder only", "vit_pretrain.ckpt", "model.encoder.", "image_encoder.", "patch_embedding.", ENCODER),
    Layout("flat", "safetensors and bare state dicts", "", "", "image_encoder.", PARTS),
)
LEFT_OUT = (
    Rule(
        "position_ids",
        r"text_encoder\.clip_text_model\.text_model\.embeddings\.position_ids",
        "the integers 0 to 76 that older text towers store",
    ),
    Rule(
        "norm_cross_attn",
        r"image_encoder\.blocks\.\d+\.norm_cross_attn\.(weight|bias)",
        "norms that newer MONAI releases create in each block and that SegVol never uses",
    ),
    Rule(
        "mask_downscaling",
        r"prompt_encoder\.mask_downscaling\.\d+\.(weight|bias)",
        "layers for mask prompts, which SegVol never uses",
    ),
    Rule(
        "pre-training head",
        r"model\.(mask_token|(to_pixels|patch_to_emb)\.(weight|bias))",
        "what masked-image pre-training keeps beside its encoder, and the second name of its patch embedding",
    ),
)


@dataclass(frozen=True)
class Translation(Generic[T]):
    """`loaded`: our name to the file's value; `keys`: our name to the file's key; `left_out`: the file's key to a rule;
    `strange`: keys of the file that lie outside its layout."""

    layout: Layout
    loaded: dict[str, T]
    keys: dict[str, str]
    left_out: dict[str, Rule]
    strange: list[str]


def find_layout(keys: Mapping[str, object]) -> Layout | None:
    """The layout that a file's keys have; None where they are no SegVol's."""
    counts = {layout: sum(key.startswith(layout.prefix + layout.sign) for key in keys) for layout in LAYOUTS}
    best = max(LAYOUTS, key=lambda layout: counts[layout])
    return best if counts[best] else None


def translate(tensors: Mapping[str, T], layout: Layout) -> Translation[T]:
    """A file's table of tensors under this project's names. Nothing is copied and nothing is checked but the names'
    beginnings: whether the names are complete and the shapes right depends on the model's sizes."""
    found: Translation[T] = Translation(layout, {}, {}, {}, [])
    for key, value in tensors.items():
        inside = key.startswith(layout.prefix)
        name = layout.target + key.removeprefix(layout.prefix) if inside else key
        rule = next((rule for rule in LEFT_OUT if rule.covers(name) or rule.covers(key)), None)
        if rule is not None:
            found.left_out[key] = rule
        elif inside and name.startswith(layout.parts):
            found.loaded[name] = value
            found.keys[name] = key
        else:
            found.strange.append(key)
    return found

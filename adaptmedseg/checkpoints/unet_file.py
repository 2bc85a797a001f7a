"""The reference U-Net as a safetensors file."""

import json
from pathlib import Path

from adaptmedseg.checkpoints.store import read_tensors, write_tensors
from adaptmedseg.errors import UserError
from adaptmedseg.models.unet import ReferenceUNet

UNET_FORMAT = "adaptmedseg-unet-1"


def save_unet(path: Path, model: ReferenceUNet, training: dict[str, object]) -> None:
    card = {"structures": model.structures, "spatial_size": model.spatial_size, "training": training}
    write_tensors(path, dict(model.state_dict()), {"format": UNET_FORMAT, "card": json.dumps(card)})


def load_unet(path: Path) -> tuple[ReferenceUNet, dict[str, object]]:
    """The network and its training summary. UserError for a damaged or foreign file."""
    tensors, metadata = read_tensors(path, UNET_FORMAT)
    try:
        card = json.loads(metadata["card"])
        model = ReferenceUNet(card["structures"], tuple(card["spatial_size"]))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, json.JSONDecodeError):
        raise UserError(f"{path}: is damaged; copy the file again") from None
    return model, card["training"]

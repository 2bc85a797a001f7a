"""The reference that a foundation model must beat: MONAI's plain 3D U-Net, trained from scratch on the same cases."""

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.segvol import Size3


class ReferenceUNet(nn.Module):
    """One sigmoid channel a structure; answers the same prompts as SegVol, by name alone."""

    def __init__(self, structures: list[str], spatial_size: Size3):
        super().__init__()
        self.structures = list(structures)
        self.spatial_size = spatial_size
        self.network = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=len(structures),
            channels=(16, 32, 64, 128),
            strides=(2, 2, 2),
            num_res_units=2,
        )

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        """Views (b, 1, d, h, w) to the logits of every structure (b, k, d, h, w)."""
        return self.network(image)

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        """The logits (n, d, h, w) of the structures asked for."""
        channel = torch.tensor([self.structures.index(name) for name in prompts.structures], device=embedding.device)
        return embedding[prompts.image_index, channel]

    def forward(self, image: Tensor, prompts: Prompts) -> Tensor:
        return self.segment(self.embed(image, prompts.modalities), prompts)

"""Published weights by name: where they come from, where they are kept, and how they are fetched."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adaptmedseg.data.download import OFFLINE, Checksum, cache_folder, check_recorded, download, is_offline
from adaptmedseg.errors import UserError

LICENCE = "MIT for the publisher's repository (BAAI-DCAI/SegVol); the weights' page names none: see the publisher"
SAM_LICENCE = "Apache-2.0 (the publisher's repository, facebookresearch/segment-anything)"
UNKNOWN_LICENCE = "unknown: see the publisher"


@dataclass(frozen=True)
class KnownWeights:
    """Weights that others publish. `sha256` is the publisher's own statement; None where there is none, and then the
    first file seen is the one that later ones are held against."""

    name: str
    url: str
    page: str
    megabytes: int
    sha256: str | None
    licence: str = LICENCE

    @property
    def original(self) -> Path:
        """Where the publisher's file is kept."""
        return cache_folder() / self.name / self.url.rsplit("/", 1)[-1]

    @property
    def converted(self) -> Path:
        """Where the base made of it is kept."""
        return cache_folder() / self.name / "base.safetensors"

    def absent(self) -> str:
        """The sentence for a base that was never converted here."""
        return (
            f"base '{self.name}': not on this machine yet; run `adaptmedseg weights convert {self.name}` once (it "
            f"fetches {self.megabytes} MB), without network after putting {self.original.name} from {self.page} at "
            f"{self.original}"
        )


# The one place of addresses. Revisions are fixed, so that an address always means the same file; checksums are those
# that the publisher's pages state, for SAM those that many independent projects record.
_HUB = "https://huggingface.co/BAAI/SegVol"
_REVISION = "516701d5bef430604a13f5db7ce896149d075663"
_FIRST_REVISION = "420b0c26655ca9e5820bf1f6ca19be7208e4cdd7"  # the last one with the project's own release
_SAM = "https://dl.fbaipublicfiles.com/segment_anything"
_SAM_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
KNOWN = {
    weights.name: weights
    for weights in (
        KnownWeights(
            "segvol",
            f"{_HUB}/resolve/{_REVISION}/pytorch_model.bin",
            _HUB,
            724,
            "500f2758a8f989339b2b2baf09a819169bc87549795193d3cfe505726ac0b399",
        ),
        KnownWeights(
            "segvol-v1",
            f"{_HUB}/resolve/{_FIRST_REVISION}/SegVol_v1.pth",
            f"{_HUB}/tree/{_FIRST_REVISION}",
            1660,
            "b751dc95f1a0c0c6086c1e6fa7f8a17bbb87635e5226e15f5d156fbd364dbb85",
        ),
        KnownWeights(
            "segvol-encoder",
            f"{_HUB}/resolve/{_REVISION}/vit_pretrain.ckpt",
            _HUB,
            353,
            "e8d032a3616497b0bbce2d928510d2e6e06b358f98481223b564aa127b07de32",
        ),
        KnownWeights(
            "sam-b",
            f"{_SAM}/sam_vit_b_01ec64.pth",
            _SAM_PAGE,
            375,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            SAM_LICENCE,
        ),
        KnownWeights(
            "sam-l",
            f"{_SAM}/sam_vit_l_0b3195.pth",
            _SAM_PAGE,
            1250,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            SAM_LICENCE,
        ),
        KnownWeights(
            "sam-h",
            f"{_SAM}/sam_vit_h_4b8939.pth",
            _SAM_PAGE,
            2564,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            SAM_LICENCE,
        ),
    )
}


def published_as(sha256: str) -> KnownWeights | None:
    """The known weights whose publisher states this checksum."""
    return next((weights for weights in KNOWN.values() if weights.sha256 == sha256), None)


def fetch(known: KnownWeights, progress: Callable[[int, int], None] | None = None) -> Path:
    """The publisher's file, from the cache or, the first time, from the network; its checksum is checked either way.

    `progress` takes (bytes had, bytes in all). Raises UserError offline, for a broken connection (what has come is
    kept, and the next call goes on from there) and for a file whose checksum is another.
    """
    path = known.original
    checksum = Checksum("sha256", known.sha256) if known.sha256 else None
    found = None
    if not path.exists():
        by_hand = f"put {path.name} from {known.page} at {path}"
        if is_offline():
            raise UserError(
                f"weights '{known.name}': not here, and {OFFLINE} forbids the network; unset it, or {by_hand}"
            )
        found = download(known.url, path, checksum, by_hand, progress)
    check_recorded(path, known.url, checksum, found)
    return path

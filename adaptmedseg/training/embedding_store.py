"""Image embeddings on disk, by what they were computed from."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adaptmedseg.data.files import write_atomic
from adaptmedseg.errors import UserError
from adaptmedseg.training.lock import claimed

FORMAT = "adaptmedseg-embedding-1"
EMBEDDING, MASKS = "embedding", "masks"


class DamagedEmbeddingError(Exception):
    """A file of the store does not hold what was written."""


@dataclass(frozen=True)
class StoredView:
    """The embedding (c, d', h', w') of a view, float16 or float32, and the structures that the view shows.

    `packed` (k, bytes) holds their masks bit by bit, in the order of `names`; `size` is the view's (d, h, w).
    """

    embedding: Tensor
    names: tuple[str, ...]
    packed: Tensor
    size: tuple[int, int, int]

    def mask(self, name: str) -> np.ndarray:
        """The boolean mask (d, h, w) of a structure."""
        bits = np.unpackbits(self.packed[self.names.index(name)].numpy(), count=int(np.prod(self.size)))
        return bits.astype(bool).reshape(self.size)


def stored_view(embedding: Tensor, masks: np.ndarray, names: list[str]) -> StoredView:
    """A view with masks (k, d, h, w)."""
    d, h, w = masks.shape[1:]
    packed = torch.from_numpy(np.packbits(masks.reshape(len(masks), -1), axis=1))
    return StoredView(embedding.contiguous(), tuple(names), packed, (d, h, w))


class EmbeddingStore:
    """A folder of files, one a view, each named by the hash of all that decides what it holds.

    Files appear whole or not at all, so that any number of processes may read and write; a file that is there is never
    written again but for damage.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._sound: set[str] = set()

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def holds(self, key: str) -> bool:
        """Whether the view is there and whole. Raises DamagedEmbeddingError for a file that is there and isn't."""
        if not self.path(key).exists():
            return False
        self.read(key)
        return True

    def read(self, key: str) -> StoredView:
        """A view; its bytes are compared with their hash when this process reads it first.

        Raises DamagedEmbeddingError for a file that cannot be read or holds something else.
        """
        path = self.path(key)
        try:
            data = path.read_bytes()  # not mapped: a file that shrinks under a map ends the process
            facts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
            tensors = load(data)
            embedding, packed = tensors[EMBEDDING], tensors[MASKS]
            if (facts["format"], facts["key"]) != (FORMAT, key):
                raise DamagedEmbeddingError(f"{path}: holds another view")
            if key not in self._sound and facts["sha256"] != _content_hash(embedding, packed):
                raise DamagedEmbeddingError(f"{path}: its content has changed")
            d, h, w = json.loads(facts["size"])
            names = tuple(json.loads(facts["names"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DamagedEmbeddingError(f"{path}: cannot be read ({error})") from None
        self._sound.add(key)
        return StoredView(embedding, names, packed, (d, h, w))

    def write(self, key: str, view: StoredView) -> None:
        """Add a view. UserError where the folder cannot be written."""
        facts = {
            "format": FORMAT,
            "key": key,
            "sha256": _content_hash(view.embedding, view.packed),
            "size": json.dumps(view.size),
            "names": json.dumps(view.names),
        }
        try:
            write_atomic(self.path(key), save({EMBEDDING: view.embedding, MASKS: view.packed}, facts))
        except OSError as error:
            raise UserError(
                f"{self.folder}: embeddings cannot be written ({error.strerror or error}); free some space or name "
                "another data.embeddings.folder"
            ) from None

    @contextmanager
    def claim(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Whether this process alone computes the view within the block; without `wait`, false where another does."""
        folder = self.folder / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be made ({error.strerror or error}); name another data.embeddings.folder"
            ) from None
        with claimed(folder / key[:2], wait=wait) as mine:  # few files serve all keys, for none is ever removed
            yield mine


def _content_hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

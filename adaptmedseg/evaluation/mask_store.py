"""Masks of a study in memory, for overlays and for comparing models."""

import numpy as np

from adaptmedseg.evaluation.records import Record
from adaptmedseg.inference.prompt_origin import question_of

_Key = tuple[str, str, str, str, str]


class MaskStore:
    """Masks by method, case, structure and what was asked, one bit a voxel."""

    def __init__(self) -> None:
        self._bits: dict[_Key, np.ndarray] = {}
        self._shapes: dict[_Key, tuple[int, ...]] = {}

    def put(self, record: Record, mask: np.ndarray) -> None:
        key = _key(record.method, record)
        self._bits[key], self._shapes[key] = np.packbits(mask), mask.shape

    def get(self, method: str, record: Record) -> np.ndarray:
        """The mask of `method` for the case, structure and question of `record`."""
        key = _key(method, record)
        shape = self._shapes[key]
        return np.unpackbits(self._bits[key], count=int(np.prod(shape))).reshape(shape).astype(bool)

    def has(self, method: str, record: Record) -> bool:
        """Whether `method` was asked what `record` was."""
        return _key(method, record) in self._bits

    def same(self, one: str, other: str, record: Record) -> bool:
        """Whether two methods gave the same mask, voxel for voxel."""
        return np.array_equal(self._bits[_key(one, record)], self._bits[_key(other, record)])


def _key(method: str, record: Record) -> _Key:
    return method, record.dataset, record.case, record.structure, question_of(record.prompt_origin)

"""A published checkpoint that was read and checked, whatever model it belongs to."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaptmedseg.checkpoints.known import UNKNOWN_LICENCE, published_as
from adaptmedseg.checkpoints.translate import Rule
from adaptmedseg.data.download import file_hash
from adaptmedseg.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` under this project's names, memory-mapped where possible.

    `keys` maps our names to the file's; `left_out`, the file's keys to the rules that leave them out; `new` lists our
    names that the file says nothing about.
    """

    path: Path
    layout: str
    known_from: str
    tensors: dict[str, Tensor]
    keys: dict[str, str]
    left_out: dict[str, Rule]
    new: list[str]

    def left_out_by_rule(self) -> dict[str, list[str]]:
        """Rule to keys of the file."""
        rules: dict[str, list[str]] = {}
        for key, rule in self.left_out.items():
            rules.setdefault(rule.name, []).append(key)
        return rules


def check_target(source: Checkpoint, out: Path, *, overwrite: bool) -> None:
    """UserError where a base can't be written at `out`."""
    if out.is_dir() or (out.exists() and not overwrite):
        raise UserError(f"{out}: exists already; choose another --out or pass --overwrite")
    if out.exists() and out.samefile(source.path):
        raise UserError(f"{out}: is the checkpoint itself; choose another --out")


def finite_values(source: Checkpoint) -> dict[str, Tensor]:
    """The tensors in float32. UserError where a value is not finite."""
    tensors = {key: tensor.float() for key, tensor in source.tensors.items()}
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{source.path}: its tensor {source.keys[key]} holds values that are not finite; fetch it anew"
            )
    return tensors


def origin(source: Checkpoint, licence: str | None) -> dict[str, object]:
    """What a card says of where the weights come from; the licence is the publisher's where it is not given and the
    file is known by its checksum."""
    digest = file_hash(source.path)
    publisher = published_as(digest)
    return {
        "licence": licence or (publisher.licence if publisher else UNKNOWN_LICENCE),
        "source": {
            "file": source.path.name,
            "sha256": digest,
            "published_as": publisher.name if publisher else "not known by its checksum",
            "layout": f"{source.layout} (as {source.known_from})",
        },
        "loaded": len(source.tensors),
        "left_out": {rule: len(keys) for rule, keys in source.left_out_by_rule().items()},
    }

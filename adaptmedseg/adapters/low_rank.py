"""Low-rank bypasses of linear layers: LoRA in its scalings, on whole layers or on their q and v, and Loose LoRA."""

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from adaptmedseg.adapters.bypass import LinearBypass, Switch
from adaptmedseg.models.adapter_config import Kind


@dataclass(frozen=True)
class Rows:
    """Rows start ≤ i < stop of a linear layer's output, by what they are: 'q', 'v', or '' for all."""

    name: str
    start: int
    stop: int


def all_rows(linear: nn.Linear) -> list[Rows]:
    return [Rows("", 0, linear.out_features)]


# The last part of a projection's name: how many projections are fused in it, and which of them are q and v.
QV_LAYERS: dict[str, tuple[int, dict[str, int]]] = {
    "qkv": (3, {"q": 0, "v": 2}),
    "q_proj": (1, {"q": 0}),
    "v_proj": (1, {"v": 0}),
    "to_q": (1, {"q": 0}),
    "to_kv": (2, {"v": 1}),
}


LOOSE_LAYERS = ("encode1", "encode2", "decode1", "decode2")


def qv_rows(name: str, linear: nn.Linear) -> list[Rows]:
    """The rows of q and v in a projection, by the last part of its name; none where it is no such projection."""
    fused, chosen = QV_LAYERS.get(name.rpartition(".")[2], (1, {}))
    width = linear.out_features // fused
    return [Rows(part, place * width, (place + 1) * width) for part, place in chosen.items()]


def scaling(kind: Kind, rank: int, alpha: float) -> float:
    """alpha / rank (Hu et al. 2021); alpha / √rank where it is rank-stabilised (Kalajdzievski 2023)."""
    return alpha / math.sqrt(rank) if kind == "rslora" else alpha / rank


class LowRank(LinearBypass):
    """A bypass of chosen rows of a linear layer's output, each choice with factors of its own."""

    def __init__(self, switch: Switch, linear: nn.Linear, rows: list[Rows], scale: float):
        super().__init__(switch)
        self.rows = rows
        self.scale = scale
        self.out_features = linear.out_features

    @property
    def strength(self) -> float:
        return self.scale * self.switch.scale

    def factors_of(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(r, c) and (rows, r)."""
        raise NotImplementedError

    def factors(self) -> tuple[Tensor, Tensor]:
        pairs = [self.factors_of(rows) for rows in self.rows]
        if len(pairs) == 1 and self.rows[0].stop - self.rows[0].start == self.out_features:
            return pairs[0]
        # Rows that are not chosen stay zero: one product serves the whole fused layer.
        blocks, end = [], 0
        for rows, (_, up) in zip(self.rows, pairs, strict=True):
            blocks += [up.new_zeros(rows.start - end, 0), up]
            end = rows.stop
        blocks.append(pairs[0][1].new_zeros(self.out_features - end, 0))
        return torch.cat([down for down, _ in pairs]), torch.block_diag(*blocks)

    def _new(self, name: str, rows: Rows, value: Tensor) -> None:
        self.register_parameter(_joined(name, rows), nn.Parameter(value))

    def _own(self, name: str, rows: Rows) -> Tensor:
        return cast(Tensor, getattr(self, _joined(name, rows)))


def _joined(name: str, rows: Rows) -> str:
    return f"{name}_{rows.name}" if rows.name else name


def _spread(like: Tensor, rows: int, columns: int) -> Tensor:
    """Weights that keep the variance of what passes through them."""
    return nn.init.kaiming_uniform_(torch.empty(rows, columns, device=like.device), nonlinearity="linear")


class LoRA(LowRank):
    """W x + s · B A x with B zero at the start (Hu et al. 2021, arXiv:2106.09685).

    On the q and v rows of a fused layer it is SAMed's (Zhang & Liu 2023): a pair of factors for each.
    """

    def __init__(self, switch: Switch, linear: nn.Linear, rows: list[Rows], rank: int, scale: float):
        super().__init__(switch, linear, rows, scale)
        for part in rows:
            down = torch.empty(rank, linear.in_features, device=linear.weight.device)
            self._new("down", part, nn.init.kaiming_uniform_(down, a=math.sqrt(5)))
            self._new("up", part, torch.zeros(part.stop - part.start, rank, device=linear.weight.device))

    def factors_of(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return self._own("down", rows), self._own("up", rows)


class LooseLoRA(LowRank):
    """GMISeg's loose bypass of q and v.

    The paper says: an encoder of two layers and a decoder of two; each layer's output is average-pooled to one common
    size; the four are concatenated, and the matrix they make takes the place of the low-rank one. It leaves open the
    widths, activations, the axis of pooling, and how the matrix gets its place. The reading taken here, with r the
    rank, for an input x of c values:

        e1 = E1 x (2r)    e2 = E2 e1 (r)    d1 = D1 e2 (2r)    d2 = D2 d1 (4r)
        z  = [pool e1; pool e2; pool d1; pool d2] (4r), pool: means of neighbouring channels, r of them a layer
        W x + s · B z,    B (c' × 4r) zero at the start,  s = alpha / r

    So z takes the place of LoRA's A x. The layers are plain matrices, for the paper names no activation; the bypass is
    then linear in x, costs what LoRA of rank 4r costs, and can be merged as LoRA can. q and v have layers of their own.
    """

    def __init__(self, switch: Switch, linear: nn.Linear, rows: list[Rows], rank: int, scale: float):
        super().__init__(switch, linear, rows, scale)
        widths = (linear.in_features, 2 * rank, rank, 2 * rank, 4 * rank)
        for part in rows:
            for name, (before, after) in zip(LOOSE_LAYERS, pairwise(widths), strict=True):
                self._new(name, part, _spread(linear.weight, after, before))
            self._new("up", part, torch.zeros(part.stop - part.start, 4 * rank, device=linear.weight.device))

    def factors_of(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The four layers as one matrix of the input (4r, c), and B."""
        return loose_down([self._own(name, rows) for name in LOOSE_LAYERS]), self._own("up", rows)


def loose_down(layers: list[Tensor]) -> Tensor:
    """The four layers of a loose bypass (2r, c), (r, 2r), (2r, r), (4r, 2r) as one matrix of the input (4r, c)."""
    rank = len(layers[1])
    outputs = accumulate(layers, lambda before, layer: layer @ before)
    return torch.cat([output.unflatten(0, (rank, -1)).mean(1) for output in outputs])

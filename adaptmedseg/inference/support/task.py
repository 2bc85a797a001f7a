"""One structure as a support set shows it: what it looks like, and how much to believe of each sign of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from adaptmedseg.inference.support.calibration import Calibration, Sampled, calibrate, left_out_dice, sample_pixels
from adaptmedseg.inference.support.extent import Extent
from adaptmedseg.inference.support.frozen import Encoded, FrozenSam
from adaptmedseg.inference.support.jitter import jittered
from adaptmedseg.inference.support.prompting import WAYS, parts_of
from adaptmedseg.inference.support.similarity import KERNELS, Bank, Cells, cells_of
from adaptmedseg.inference.support.supports import Support, others, subsets
from adaptmedseg.models.prompts import StructurePrompt

LEFT_OUT = 16  # supports that are left out in turn, at most
COPIES = 3  # changed copies of a lone support, which stand in for left-out ones
LIMIT = 8.0  # logits beyond it are cut: a decoder's certainty is no evidence without end
LIKENESSES = len(KERNELS) + 1  # maps of `Bank.priors`
SMOOTH = 2.0  # standard deviation, in pixels of the working picture, of the blurred prior


@dataclass(frozen=True, eq=False)
class Shown:
    """A support that was encoded, with the cells and the mask (h', w') of the structure on its working picture."""

    support: Support
    encoded: Encoded
    cells: Cells
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class Trial:
    """A picture whose mask is known, and the bank that it is predicted from."""

    encoded: Encoded
    bank: Bank
    sampled: Sampled


def show(sam: FrozenSam, support: Support, encoded: Encoded, structure: str) -> Shown:
    """Put a support's mask on its features."""
    return Shown(support, encoded, *_labelled(sam, encoded, support.masks[structure]))


def _labelled(sam: FrozenSam, encoded: Encoded, mask: np.ndarray) -> tuple[Cells, np.ndarray]:
    whole = torch.from_numpy(mask)[None].float()
    coverage = sam.cells(whole, sam.frame(encoded.shape))[0]
    working = torch.nn.functional.interpolate(whole[None], encoded.image.shape[:2], mode="area")[0, 0]
    return cells_of(encoded, coverage), (working >= min(0.5, float(working.max()))).numpy()


class SupportTask:
    """One structure of a support set, ready to be found in queries; nothing of the network is changed.

    Two regressions are calibrated, each on supports that are left out in turn (or, of a lone support, on changed copies
    of it). `prior` weighs the similarity to the supports' features (`Bank.priors`) and, where that finds left-out
    supports better, fixed filters of the picture (`local_features`). From what it expects come prompts for SAM's
    decoder, in three ways; `answer` weighs the decoder's answers and the prior itself.

    `expected_dice`: the mean over left-out supports (of a lone one, over its copies), six at most, of what `answer`
    fitted and cut without them makes of them. `prior` has seen all of them: a query can be expected to do worse.
    """

    def __init__(self, sam: FrozenSam, structure: str, shown: Sequence[Shown], seed: int = 0):
        self.sam, self.structure = sam, structure
        self.supports = [s.support.name for s in shown]
        self.extent = Extent.of([s.mask for s in shown])
        rng = np.random.default_rng([seed, len(shown)])
        self.banks = [Bank([shown[i].cells for i in part]) for part in subsets(len(shown), rng)]
        trials = self._trials(shown, rng)
        self.local = True
        rows = [trial.sampled.rows(self._signs(trial.encoded, trial.bank)) for trial in trials]
        self.local = len(shown) == 1 or self._filters_help(rows, [trial.sampled for trial in trials])
        rows = rows if self.local else [part[:, :LIKENESSES] for part in rows]
        self.prior = calibrate(rows, [trial.sampled for trial in trials])
        expected = [self.prior(self._signs(trial.encoded, trial.bank)) for trial in trials]
        rows = [
            trial.sampled.rows(self._evidence(trial.encoded, prior))
            for trial, prior in zip(trials, expected, strict=True)
        ]
        alone = torch.eye(rows[0].shape[1])[0]  # the prior as it is: what the decoder cannot better it leaves alone
        sampled = [trial.sampled for trial in trials]
        self.answer: Calibration = calibrate(rows, sampled, alone)
        self.expected_dice = left_out_dice(rows, sampled, alone)

    def _trials(self, shown: Sequence[Shown], rng: np.random.Generator) -> list[Trial]:
        if len(shown) == 1:
            return [self._copy(shown[0], rng) for _ in range(COPIES)]
        groups, trials = [s.support.group for s in shown], []
        for index in sorted(rng.permutation(len(shown))[:LEFT_OUT].tolist()):
            bank = Bank([shown[i].cells for i in others(groups, index, rng)])
            trials.append(Trial(shown[index].encoded, bank, sample_pixels(shown[index].mask, rng)))
        return trials

    def _copy(self, shown: Shown, rng: np.random.Generator) -> Trial:
        """A lone support, moved and brightened at random, to be predicted from the support as it is."""
        image, mask = jittered(shown.support.image, shown.support.masks[self.structure], rng)
        encoded = self.sam.encode(image)
        return Trial(encoded, self.banks[0], sample_pixels(_labelled(self.sam, encoded, mask)[1], rng))

    def logits(self, query: Encoded, given: StructurePrompt | None = None) -> Tensor:
        """Logits (h', w') on the query's working picture, above zero where the structure is: the mean over the subsets
        of the supports. `given`: a user's own prompt, in its pixels, in the place of prompts from the prior."""
        answers = [self.decided(query, self.expected(query, bank), given) for bank in self.banks]
        return torch.stack(answers).mean(0)

    def expected(self, query: Encoded, bank: Bank) -> Tensor:
        """Where the structure is expected by one subset alone, before the decoder is asked: logits (h', w')."""
        return self.prior(self._signs(query, bank))

    def prior_logits(self, query: Encoded) -> Tensor:
        """As `logits`, of the prior alone: no decoder."""
        return torch.stack([self.expected(query, bank) for bank in self.banks]).mean(0) - self.prior.threshold

    def prototype_logits(self, query: Encoded) -> Tensor:
        """The baseline (h', w'): above zero where the structure's mean feature is nearer than the rest's."""
        maps = [query.spread(bank.nearest_prototype(query)[None])[0] for bank in self.banks]
        return torch.stack(maps).mean(0).cpu()

    def decided(self, query: Encoded, expected: Tensor, given: StructurePrompt | None = None) -> Tensor:
        """Logits (h', w'), above zero where the structure is, from where it is expected."""
        return self.answer(self._evidence(query, expected, given)) - self.answer.threshold

    def _filters_help(self, rows: list[Tensor], sampled: list[Sampled]) -> bool:
        """Whether the filters better what the features say of supports that the regression has not seen."""
        alone = [part[:, :LIKENESSES] for part in rows]
        return left_out_dice(rows, sampled) > left_out_dice(alone, sampled)

    def _signs(self, query: Encoded, bank: Bank) -> Tensor:
        """What the prior weighs (k, h', w'): likeness to the supports and, where they help, filters of the picture."""
        likeness = query.spread(bank.priors(query)).cpu()
        return torch.cat([likeness, query.local.float()]) if self.local else likeness

    def _evidence(self, query: Encoded, expected: Tensor, given: StructurePrompt | None = None) -> Tensor:
        """What the answer weighs (k, h', w'): the prior, the prior blurred, and the decoder's logits in every way."""
        maps = [expected, torch.from_numpy(ndimage.gaussian_filter(expected.numpy(), SMOOTH))]
        parts = parts_of(expected, self.prior.threshold)
        for way in WAYS:
            asked = [part.prompt(self.structure, way) for part in parts] if given is None else [given]
            earlier = torch.stack([part.logits for part in parts]) if "mask" in way else None
            if given is not None and earlier is not None:
                earlier = expected[None]
            maps.append(self.sam.decode(query, asked, earlier).amax(0))
        return torch.stack(maps).clamp(-LIMIT, LIMIT)

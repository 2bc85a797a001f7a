"""How far the fast way's answers lie from the reference's numbers, with weights that were trained: on phantoms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaptmedseg.data.grid import Grid, Volume, canonical_volume
from adaptmedseg.data.overlap import dice
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.inference.settings import InferenceSettings
from adaptmedseg.phantoms import REGIONS, generate_case

MODALITY = "CT"
EXACT = "exact"


@dataclass(frozen=True)
class Agreement:
    """One structure of one phantom, one way against `--exact`: largest difference of logits and the masks' Dice.

    `voxels`: the size of the exact mask; `dice` is None for a structure that neither way finds.
    """

    way: str
    case: str
    structure: str
    logit_difference: float
    dice: float | None
    voxels: int


def ways_of(model: str, device: str) -> dict[str, Predictor]:
    """The exact way, the same in our windows, and the default."""
    plain = InferenceSettings(bf16=False)
    return {
        EXACT: Predictor.load(model, device=device, exact=True),
        "float32": Predictor.load(model, device=device, settings=plain),
        "default": Predictor.load(model, device=device),
    }


def compare_ways(ways: Mapping[str, Predictor], volume: Volume, structures: list[str]) -> Iterator[Agreement]:
    """Every structure of a volume, asked by name in each way."""
    logits: dict[str, dict[str, np.ndarray]] = {}
    for way, predictor in ways.items():
        predictor.set_image(volume, MODALITY)
        prompts = predictor.parse(
            {"version": 1, "space": "voxel", "prompts": [{"structure": name} for name in structures]}
        )
        logits[way] = {answer.structure: answer.result.logits for answer in predictor.answers(prompts)}
    for way in (way for way in ways if way != EXACT):
        for name, exact in logits[EXACT].items():
            found = logits[way][name]
            difference = float(np.abs(found - exact).max())
            yield Agreement(way, volume.path.name, name, difference, dice(found > 0, exact > 0), int((exact > 0).sum()))


def phantom_agreement(model: str, cases: int, device: str) -> Iterator[Agreement]:
    """Phantoms of each region by seeds from 0 on, asked for what both the model and the phantom know."""
    ways = ways_of(model, device)
    known = ways[EXACT].loaded.structures
    for region in REGIONS:
        for seed in range(cases):
            case = generate_case(seed, MODALITY, region)
            grid = Grid(case.image.shape, case.affine)
            volume = canonical_volume(case.image.astype(np.float32), grid, Path(f"{region} {seed}"))
            names = [name for name in case.names.values() if not known or name in known]
            yield from compare_ways(ways, volume, names)

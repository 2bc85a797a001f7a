"""The published data sets, one short file each; `KNOWN` lists them by name."""

from __future__ import annotations

from adaptmedseg.preprocessing.sets import (
    acdc,
    amos22,
    brats2021,
    chaos,
    flare22,
    isles2022,
    left_atrium,
    m3d_seg,
    msd,
    msd_prostate,
    nnunet,
    promise12,
    saml,
    stare,
    synapse,
    t2w_prostate,
)
from adaptmedseg.preprocessing.sets.model import DataSet

_MODULES = (
    msd_prostate,
    promise12,
    saml,
    t2w_prostate,
    flare22,
    amos22,
    chaos,
    brats2021,
    m3d_seg,
    nnunet,
    msd,
    acdc,
    left_atrium,
    synapse,
    isles2022,
    stare,
)
KNOWN: dict[str, DataSet] = {module.SET.name: module.SET for module in _MODULES}

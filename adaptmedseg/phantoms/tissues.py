"""Tissue tables and what one scanner makes of them: Hounsfield units in CT, spin-echo signal in T1 and T2 MRI."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tissue:
    """`hu`: unenhanced CT value; `arterial`/`venous`: enhancement in HU; `sigma`: variation between patients in HU;
    `grain`: texture inside one patient in HU; `pd`: proton density (0..1); `t1`, `t2`: ms at about 1.5 to 3 T;
    `mottle`: texture of the MR signal as a fraction."""

    hu: float
    arterial: float
    venous: float
    sigma: float
    grain: float
    pd: float
    t1: float
    t2: float
    mottle: float


TISSUES: dict[str, Tissue] = {
    "air": Tissue(-1000, 0, 0, 0, 0, 0.0, 1000, 50, 0.0),
    "couch": Tissue(-150, 0, 0, 60, 0, 0.0, 1000, 50, 0.0),
    "couch foam": Tissue(-930, 0, 0, 10, 5, 0.0, 1000, 50, 0.0),
    "skin": Tissue(25, 0, 10, 10, 5, 0.7, 700, 35, 0.05),
    "fat": Tissue(-104, 0, 2, 5, 6, 0.95, 290, 130, 0.06),
    "visceral fat": Tissue(-100, 0, 3, 6, 9, 0.93, 300, 120, 0.09),
    "muscle": Tissue(54, 4, 12, 5, 7, 0.8, 950, 38, 0.10),
    "cortical bone": Tissue(820, 0, 0, 120, 60, 0.08, 800, 12, 0.1),
    "marrow": Tissue(190, 3, 8, 50, 45, 0.72, 420, 75, 0.14),
    "femoral marrow": Tissue(285, 2, 5, 45, 35, 0.8, 350, 90, 0.10),
    "cartilage": Tissue(75, 0, 5, 12, 5, 0.7, 1000, 42, 0.05),
    "disc": Tissue(85, 0, 0, 12, 6, 0.75, 1100, 75, 0.15),
    "csf": Tissue(12, 0, 0, 4, 3, 1.0, 3800, 900, 0.02),
    "cord": Tissue(38, 0, 4, 4, 3, 0.8, 950, 85, 0.03),
    "lung": Tissue(-840, 3, 5, 30, 30, 0.12, 1100, 25, 0.3),
    "gas": Tissue(-985, 0, 0, 8, 5, 0.01, 1000, 20, 0.0),
    "stool": Tissue(15, 0, 0, 30, 45, 0.6, 700, 55, 0.35),
    "mucus": Tissue(30, 0, 0, 8, 8, 0.85, 1500, 140, 0.12),
    "bowel contents": Tissue(25, 0, 0, 40, 22, 0.9, 1800, 260, 0.3),
    "bowel wall": Tissue(40, 25, 35, 7, 6, 0.8, 1000, 62, 0.08),
    "urine": Tissue(4, 0, 2, 5, 3, 1.0, 3500, 1100, 0.02),
    "contrast urine": Tissue(220, 30, 40, 110, 15, 1.0, 3000, 900, 0.02),
    "bladder wall": Tissue(36, 8, 20, 5, 5, 0.8, 1000, 50, 0.06),
    "bile": Tissue(9, 0, 0, 5, 3, 1.0, 2500, 650, 0.03),
    "peripheral zone": Tissue(38, 12, 24, 5, 6, 0.92, 1600, 150, 0.14),
    "transition zone": Tissue(43, 18, 40, 5, 7, 0.87, 1350, 82, 0.16),
    "glandular nodule": Tissue(41, 20, 46, 6, 7, 0.92, 1500, 145, 0.2),
    "stromal nodule": Tissue(45, 22, 52, 6, 7, 0.84, 1200, 60, 0.14),
    "mixed nodule": Tissue(43, 20, 44, 6, 7, 0.88, 1350, 100, 0.22),
    "capsule": Tissue(45, 14, 26, 5, 4, 0.8, 1150, 52, 0.05),
    "stroma": Tissue(46, 10, 22, 5, 5, 0.78, 1100, 45, 0.06),
    "lesion": Tissue(42, 22, 34, 8, 6, 0.85, 1250, 72, 0.08),
    "seminal vesicle": Tissue(28, 8, 18, 7, 8, 0.92, 1700, 190, 0.4),
    "erectile tissue": Tissue(40, 20, 45, 6, 6, 0.9, 1500, 160, 0.08),
    "artery": Tissue(42, 240, 110, 10, 4, 0.5, 1600, 30, 0.1),
    "vein": Tissue(42, 30, 108, 10, 5, 0.75, 1550, 75, 0.2),
    "liver": Tissue(57, 12, 50, 8, 7, 0.8, 640, 46, 0.07),
    "spleen": Tissue(49, 62, 66, 6, 6, 0.85, 1050, 82, 0.06),
    "pancreas": Tissue(40, 55, 55, 7, 12, 0.82, 700, 60, 0.14),
    "kidney cortex": Tissue(33, 105, 120, 5, 6, 0.87, 1020, 88, 0.05),
    "kidney medulla": Tissue(33, 30, 110, 5, 6, 0.9, 1450, 118, 0.06),
}
FATTY = frozenset({"fat", "visceral fat", "marrow", "femoral marrow"})


@dataclass(frozen=True)
class Contrast:
    """Value and texture amplitude of every tissue in one acquisition: HU in CT, arbitrary units in MRI."""

    values: dict[str, float]
    texture: dict[str, float]


def ct_contrast(rng: np.random.Generator) -> Contrast:
    """Draw a contrast phase (native, arterial, venous) with its strength and the patient's deviations."""
    phase = str(rng.choice(["native", "arterial", "venous"], p=[0.4, 0.15, 0.45]))
    strength = float(rng.uniform(0.7, 1.2))
    values = {}
    for name, t in TISSUES.items():
        gain = {"native": 0.0, "arterial": t.arterial, "venous": t.venous}[phase]
        values[name] = t.hu + strength * gain + t.sigma * float(np.clip(rng.standard_normal(), -2, 2))
    return Contrast(values, {name: t.grain for name, t in TISSUES.items()})


def mr_contrast(rng: np.random.Generator, weighting: str) -> Contrast:
    """Spin-echo signal S = PD (1 - exp(-TR/T1)) exp(-TE/T2) for a random protocol; `weighting` is "T1" or "T2"."""
    if weighting == "T2":
        tr, te = float(rng.uniform(2800, 6000)), float(rng.uniform(80, 125))
    else:
        tr, te = float(rng.uniform(420, 750)), float(rng.uniform(8, 16))
    suppressed = weighting == "T2" and rng.random() < 0.12
    values, texture = {}, {}
    for name, t in TISSUES.items():
        pd, t1, t2 = (v * float(np.exp(rng.normal(0, 0.07))) for v in (t.pd, t.t1, t.t2))
        signal = pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)
        if suppressed and name in FATTY:
            signal *= 0.2
        values[name] = 1000.0 * float(signal)
        texture[name] = values[name] * t.mottle
    return Contrast(values, texture)

"""Generated bodies of known anatomy, imaged by simulated scanners: data without patients."""

from .anatomy import LABELS
from .generate import MODALITIES, REGIONS, PhantomCase, generate_case, write_phantoms

__all__ = ["LABELS", "MODALITIES", "REGIONS", "PhantomCase", "generate_case", "write_phantoms"]

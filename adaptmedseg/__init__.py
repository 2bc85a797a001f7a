"""Adapt a volumetric foundation model to new modalities and tasks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adaptmedseg.inference.predictor import Prediction, Predictor

__version__ = "0.1.0"
__all__ = ["Prediction", "Predictor", "__version__"]


def __getattr__(name: str) -> object:
    # Importing torch takes seconds; the command line's help should not wait for it.
    if name in ("Prediction", "Predictor"):
        from adaptmedseg.inference import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module 'adaptmedseg' has no attribute {name!r}")

"""Adapt a volumetric foundation model to new modalities and tasks."""

__version__ = "0.1.0"

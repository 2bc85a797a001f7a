"""Receipts: a published figure beside the one that data and weights at hand give, or what is missing for it."""

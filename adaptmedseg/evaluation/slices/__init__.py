"""Scores of models of slices and pictures, as the papers on them report scores."""

"""Published tables as data, one file a recipe (see `reproduction.recipes`)."""

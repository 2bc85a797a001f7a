"""A local page to look at a case and to ask a model by clicks and boxes."""

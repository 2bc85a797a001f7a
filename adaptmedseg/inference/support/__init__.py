"""A new task from a support set of labelled images, without re-training (GMISeg)."""

"""Losses: pure functions of outputs and targets, with masks and reductions explicit."""

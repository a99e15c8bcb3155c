"""Backbones: Flax modules from an image to all their named levels of features."""

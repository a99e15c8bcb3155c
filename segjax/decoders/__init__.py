"""Heads and necks that several systems share: maps of features to maps of class scores."""

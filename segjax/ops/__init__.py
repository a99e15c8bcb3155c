"""The compiled core: pure functions of arrays. It knows no Flax, no config and no files."""

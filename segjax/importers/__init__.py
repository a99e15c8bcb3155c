"""Published checkpoints become Flax variables, and back.

One module per layout holds a table: published name, our path, how the tensor is stored. A pattern's
`{w}` stands for the last part ("weight", "bias", ...), any other `{x}` for a number. Nothing in a
file is ever executed.
"""

from __future__ import annotations

from segjax.importers.engine import (
    initialise,
    layouts,
    our_path,
    published_names,
    to_published,
    to_variables,
)
from segjax.importers.files import Checkpoint, load, read

__all__ = [
    "Checkpoint",
    "initialise",
    "layouts",
    "load",
    "our_path",
    "published_names",
    "read",
    "to_published",
    "to_variables",
]

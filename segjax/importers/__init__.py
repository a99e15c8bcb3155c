"""Published checkpoints become Flax variables, and back.

One module per layout holds a table: published name, our path, how the tensor is stored. A pattern's
`{w}` stands for the last part ("weight", "bias", ...), any other `{x}` for a number. Nothing in a
file is ever executed.
"""

from __future__ import annotations

from segjax.importers.engine import (
    layouts,
    our_path,
    published_names,
    to_published,
    to_variables,
)
from segjax.importers.files import Checkpoint, load, read
from segjax.importers.initialise import (
    backbone_from_run,
    initialise,
    initialise_from_run,
    initialise_whole,
)

__all__ = [
    "Checkpoint",
    "backbone_from_run",
    "initialise",
    "initialise_from_run",
    "initialise_whole",
    "layouts",
    "load",
    "our_path",
    "published_names",
    "read",
    "to_published",
    "to_variables",
]

"""The contracts that the parts of segjax share: batches, systems and predictions.

Dimension letters used throughout: B images, H x W pixels, K classes, N tokens, C channels, S
segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import flax.struct
import jax

Array = jax.Array
Batch = Mapping[str, Array]
Scalars = dict[str, Array]
Variables = Mapping[str, Any]
Size = tuple[int, int]
"""(height, width) in pixels, everywhere but in `scale` settings, which are (long side, short
side)."""

IGNORE = -1
"""The value of `semantic` where a pixel has no label. Files write 255 or 0; readers map it once."""


@flax.struct.dataclass
class Semantic:
    """What a system predicts for semantic segmentation.

    Under `jax.jit` the fields that the caller does not return cost nothing.

    Attributes:
        labels: [B, H, W] int32, the class of each pixel of the input.
        scores: [B, h, w, K] float32 logits on the system's own grid; resized bilinearly (half-pixel
            centres) to [H, W], or to `covers` and cut to [H, W], their argmax is `labels`.
        regions: [B, h, w] int32 index (row-major) of the token each cell belongs to most, or None
            when the system has no regions.
        covers: (height, width) in pixels that the scores stand for where a system fills the image
            up at its bottom and right; None means the image.
    """

    labels: Array
    scores: Array
    regions: Array | None = None
    covers: Size | None = flax.struct.field(pytree_node=False, default=None)


class System(Protocol):
    """A trained thing: frozen, hashable, and pure in its methods. All above it knows these alone.

    A batch is a flat dict of arrays: `image` uint8 [B, H, W, 3] RGB (a float image is taken as
    already normalised); `semantic` int16 [B, H, W], IGNORE where unlabelled; `valid` bool [B],
    False for the padding of a last batch; `image_size` int32 [B, 2], optional, the extent of real
    pixels (what lies outside counts as mean colour).
    """

    classes: int

    def init(self, rng: Array, batch: Batch) -> Variables:
        """Fresh variables: {"params": ..., "batch_stats": ... where there is batch norm}."""

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        """The scalar training loss, what to log, and the new non-parameter variables.

        With `microbatches` > 1 the part of the network that treats images one by one runs in that
        many slices, one after another, keeping no activations; whatever couples images (batch norm,
        loss normalisers) sees the whole batch. The result equals that of `microbatches=1`.
        """

    def predict(self, variables: Variables, batch: Batch) -> Semantic:
        """Predictions for the batch in evaluation mode."""

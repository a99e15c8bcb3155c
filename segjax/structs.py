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
        decision: an `ops.assembly.Decision` where labels are not the argmax of the resized scores;
            K is then the number of channels it reads.
    """

    labels: Array
    scores: Array
    regions: Array | None = None
    covers: Size | None = flax.struct.field(pytree_node=False, default=None)
    decision: Any = flax.struct.field(pytree_node=False, default=None)


@flax.struct.dataclass
class Masks:
    """What a system predicts that answers with a set of masks (MaskFormer's family).

    Attributes:
        class_logits: [B, Q, K + 1] float32, the last one "no object".
        mask_logits: [B, h, w, Q] float32 on the system's own grid; a query holds the pixels where
            its logit, resized bilinearly (half-pixel centres) to `covers`, is positive.
        covers: (height, width) in pixels that the grid stands for: the padded image.
    """

    class_logits: Array
    mask_logits: Array
    covers: Size = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Panoptic:
    """A panoptic segmentation on the device: every pixel in at most one segment.

    Attributes:
        segment_map: [H, W] int32, 0 where there is no segment, else 1 + the row of the table.
        segment_class: [S] int32, the class of each segment, -1 beyond the last one.
        segment_score: [S] float32, the class score of the query that painted it first.
    """

    segment_map: Array
    segment_class: Array
    segment_score: Array


@flax.struct.dataclass
class Instances:
    """Instances found on the device, best first. Several may share a mask, and masks may overlap.

    Attributes:
        scores: [N] float32, 0..1.
        classes: [N] int32, -1 for an empty row.
        queries: [N] int32, which mask of `masks` belongs to it.
        masks: [Q, H, ceil(W / 8)] uint8, the masks' bits, eight pixels of a row a byte, the left
            one highest (`numpy.packbits`).
        areas: [N] int32, pixels of each mask.
        boxes: [N, 4] int32, (x, y, width, height) that just holds the mask, as COCO writes them.
    """

    scores: Array
    classes: Array
    queries: Array
    masks: Array
    areas: Array
    boxes: Array


@flax.struct.dataclass
class Refined:
    """What a system says that sharpens a coarse mask.

    Attributes:
        probability: [B, H, W] float32, 0..1, that a pixel belongs to the object.
        logits: [B, H, W] float32, of which it is the sigmoid.
    """

    probability: Array
    logits: Array


class System(Protocol):
    """A trained thing: frozen, hashable, and pure in its methods. All above it knows these alone.

    A batch is a flat dict of arrays: `image` uint8 [B, H, W, 3] RGB (a float image is taken as
    already normalised); `semantic` int16 [B, H, W], IGNORE where unlabelled; `valid` bool [B],
    False for the padding of a last batch; `image_size` int32 [B, 2], optional, the extent of real
    pixels (what lies outside counts as mean colour).

    Systems that answer with masks also read `segments` int16 [B, H, W], index into the segment
    table, -1 void (or [B, L, H, W], L layers, where instances may overlap: a segment is where any
    layer holds its index); `segment_class` int32 [B, S], -1 for the padding; `segment_is_crowd`
    bool [B, S]; and `segment_overflow` int32 [B], how many segments the table had no room for.

    Systems that sharpen masks read `coarse_mask` and, for the loss, `mask`: uint8 [B, H, W], 255
    where the object is. They also have `turns`, see `inference.refinement`.
    """

    classes: int

    def init(self, rng: Array, batch: Batch) -> Variables:
        """Fresh variables: {"params": ..., "batch_stats": ... where there is batch norm,
        "constants": ... where it is frozen}."""

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        """The scalar training loss, what to log, and the new non-parameter variables.

        With `microbatches` > 1 the part of the network that treats images one by one runs in that
        many slices, one after another, keeping no activations; whatever couples images (batch norm,
        loss normalisers) sees the whole batch. The result equals that of `microbatches=1`.
        """

    def predict(self, variables: Variables, batch: Batch) -> Semantic | Masks | Refined:
        """Predictions for the batch in evaluation mode."""

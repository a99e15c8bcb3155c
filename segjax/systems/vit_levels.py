"""What the systems share that take maps from several blocks of a ViT."""

from __future__ import annotations

from segjax.backbones.vit import ViT
from segjax.errors import SegjaxError
from segjax.structs import Array
from segjax.systems.vit_backbone import in_slices


def check_blocks(blocks: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """`config.model.levels` as it is, if it names blocks of a ViT of this depth from shallow to
    deep.

    Raises:
        SegjaxError: it doesn't.
    """
    blocks = tuple(blocks)
    if (
        not blocks
        or sorted(set(blocks)) != list(blocks)
        or not 0 <= blocks[0] <= blocks[-1] < depth
    ):
        raise SegjaxError(
            f"config.model.levels: {blocks} are not rising numbers of the {depth} blocks; take "
            f"some of 0 .. {depth - 1}."
        )
    return blocks


def block_maps(
    blocks: tuple[int, ...],
    backbone: ViT,
    image: Array,
    branch_scale: Array | None,
    slices: int,
) -> list[Array]:
    """Maps [B, Ht, Wt, C] after these blocks; that of the last block is normalised where the ViT
    has a final norm. All else: see `vit_backbone.in_slices`."""
    normalised = backbone.depth - 1 if backbone.final_norm else None
    names = ["norm" if block == normalised else f"block_{block}" for block in blocks]

    def apply(backbone: ViT, image: Array, scale: Array | None) -> list[Array]:
        levels = backbone(image, scale)
        return [levels[name] for name in names]

    return in_slices(apply, backbone, image, branch_scale, slices)

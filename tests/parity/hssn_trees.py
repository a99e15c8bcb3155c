"""The class trees of HSSN's rows: classes per level, leaves first, and the parent of each class in
the next level."""

from __future__ import annotations

Tree = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""(level_sizes, parents): parents[l][i] is the parent of class i of level l within level l + 1."""

TREES: dict[str, Tree] = {
    "cityscapes": (
        (19, 7),
        ((0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6, 6, 6, 6, 6, 6),),
    ),
    "person_part": (
        (7, 3, 2),
        ((0, 1, 1, 1, 1, 2, 2), (0, 1, 1)),
    ),
    "lip": (
        (20, 3, 2),
        ((0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 2, 1, 1, 1, 2, 2, 2, 2), (0, 1, 1)),
    ),
}

"""ResNets as torchvision names them (ResNet-50 and -101 on ImageNet) and mmcv after it (its "v1c"
and "v1d"), and behind a prefix the backbones of mmsegmentation's files.

A training initialisation: there is no segmentation head in these files.
"""

from __future__ import annotations

from segjax.importers.how import How, conv, image_conv
from segjax.importers.how import batch_norm as bn

Rows = tuple[tuple[str, str, How], ...]

Shortcut = tuple[str, int]
"""Our name of a shortcut's convolution, and its place in `downsample`; the norm comes next."""

PLAIN, POOLED = ("shortcut", 0), ("pooled_shortcut", 1)


def stage_rows(unit: str, ours: str, shortcuts: tuple[Shortcut, ...]) -> Rows:
    """The rows of bottlenecks whose names start with `unit` and whose paths start with `ours`."""
    rows = [
        # published name         our path                 how
        (unit + "conv{n}.{w}",   ours + "conv{n}/{w}",    conv),
        (unit + "bn{n}.{w}",     ours + "norm{n}/{w}",    bn),
    ]  # fmt: skip
    for name, place in shortcuts:
        rows += [
            (f"{unit}downsample.{place}.{{w}}",     f"{ours}{name}/{{w}}",      conv),
            (f"{unit}downsample.{place + 1}.{{w}}", f"{ours}{name}_norm/{{w}}", bn),
        ]  # fmt: skip
    return tuple(rows)


def rules(
    prefix: str = "",
    ours: str = "backbone/",
    shortcuts: tuple[Shortcut, ...] = (PLAIN, POOLED),
    first: How = conv,
) -> Rows:
    """The rows of a backbone whose names start with `prefix` and whose paths start with `ours`.

    torchvision's stages are numbered from 1, ours from 2. `first` is how the first convolution is
    stored.
    """
    stem, our_stem = prefix + "stem.", ours + "stem_"
    stages = [
        stage_rows(f"{prefix}layer{number}.{{b}}.", f"{ours}res{number + 1}_{{b}}/", shortcuts)
        for number in (1, 2, 3, 4)
    ]
    return (
        # published name      our path                  how
        (prefix + "conv1.{w}", our_stem + "conv/{w}",   first),
        (prefix + "bn1.{w}",   our_stem + "norm/{w}",   bn),
        (stem + "0.{w}",       our_stem + "conv1/{w}",  first),
        (stem + "1.{w}",       our_stem + "norm1/{w}",  bn),
        (stem + "3.{w}",       our_stem + "conv2/{w}",  conv),
        (stem + "4.{w}",       our_stem + "norm2/{w}",  bn),
        (stem + "6.{w}",       our_stem + "conv3/{w}",  conv),
        (stem + "7.{w}",       our_stem + "norm3/{w}",  bn),
        *(row for rows in stages for row in rows),
    )  # fmt: skip


# An encoder that sees masks beside the image (CascadePSP, CRM) begins without a use for them.
RULES = rules(first=image_conv)

# The ImageNet classifier, and the last stage where a network ends before it (CRM).
DROPPED = ("fc.*", "layer4.*", "*.num_batches_tracked")

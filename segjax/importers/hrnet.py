"""HRNets as their authors name them on ImageNet ("hrnetv2_w48"), and behind a prefix the backbones
of mmsegmentation's files.

A training initialisation: there is no segmentation head in these files.
"""

from __future__ import annotations

from segjax.importers.how import batch_norm as bn
from segjax.importers.how import conv
from segjax.importers.resnet import PLAIN, Rows, stage_rows


def rules(prefix: str = "", ours: str = "backbone/") -> Rows:
    """The rows of a backbone whose names start with `prefix` and whose paths start with `ours`."""
    same, new = prefix + "transition{t}.{i}.", prefix + "transition{t}.{i}.0."
    module, our_module = prefix + "stage{s}.{m}.", ours + "stage{s}_{m}/"
    unit, our_unit = module + "branches.{i}.{k}.", our_module + "branch_{i}_{k}/"
    up, down = module + "fuse_layers.{i}.{j}.", module + "fuse_layers.{i}.{j}.{k}."
    our_fuse = our_module + "fuse_{i}_{j}"
    return (
        # published name         our path                                  how
        (prefix + "conv1.{w}",   ours + "stem_0/conv/{w}",                 conv),
        (prefix + "bn1.{w}",     ours + "stem_0/norm/{w}",                 bn),
        (prefix + "conv2.{w}",   ours + "stem_1/conv/{w}",                 conv),
        (prefix + "bn2.{w}",     ours + "stem_1/norm/{w}",                 bn),
        *stage_rows(prefix + "layer1.{b}.", ours + "layer1_{b}/", (PLAIN,)),
        (same + "0.{w}",         ours + "transition{t}_{i}/conv/{w}",      conv),
        (same + "1.{w}",         ours + "transition{t}_{i}/norm/{w}",      bn),
        (new + "0.{w}",          ours + "new_branch{t}_{i}/conv/{w}",      conv),
        (new + "1.{w}",          ours + "new_branch{t}_{i}/norm/{w}",      bn),
        (unit + "conv1.{w}",     our_unit + "conv_0/conv/{w}",             conv),
        (unit + "bn1.{w}",       our_unit + "conv_0/norm/{w}",             bn),
        (unit + "conv2.{w}",     our_unit + "conv_1/conv/{w}",             conv),
        (unit + "bn2.{w}",       our_unit + "conv_1/norm/{w}",             bn),
        (up + "0.{w}",           our_fuse + "/conv/{w}",                   conv),
        (up + "1.{w}",           our_fuse + "/norm/{w}",                   bn),
        (down + "0.{w}",         our_fuse + "_{k}/conv/{w}",               conv),
        (down + "1.{w}",         our_fuse + "_{k}/norm/{w}",               bn),
    )  # fmt: skip


RULES = rules()

# The ImageNet classifier.
DROPPED = (
    "incre_modules.*",
    "downsamp_modules.*",
    "final_layer.*",
    "classifier.*",
    "*.num_batches_tracked",
)
